"""Training sets that are worse than they could be, for studies; no part of the package.

``STUDY.PICTURES`` keeps so many pictures of each identity, ``STUDY.WRONG_LABELS`` gives a share of
the pictures another identity. What is kept and what is wrong is the same for every SEED of a run,
so that runs differ by their training alone.
"""

import random

from fastreid.data import build
from fastreid.data.common import CommDataset
from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.data.transforms import build_transforms

SEED = 5


def worse(items, pictures, wrong):
    """A training set with fewer pictures and wrong labels.

    Args:
        items: tuples of path, identity and more, as FastReID's data sets have them.
        pictures: most of an identity; 0: all.
        wrong: share of the pictures whose identity becomes another one of the set, 0..1.

    Returns:
        Tuples of the same kind, sorted by path.

    Raises:
        ValueError: a share beyond 0..1, a negative number of pictures, or wrong labels in a set of
            one identity.
    """
    identities = sorted({item[1] for item in items})
    if not 0 <= wrong <= 1 or pictures < 0:
        raise ValueError(
            "STUDY.WRONG_LABELS must be in 0..1 and STUDY.PICTURES >= 0, got "
            f"{wrong} and {pictures}"
        )
    if wrong and len(identities) < 2:
        raise ValueError("STUDY.WRONG_LABELS needs two identities or more")
    draw = random.Random(SEED)
    kept = {identity: [] for identity in identities}
    for item in sorted(items):  # in which order a folder is read is up to the file system
        kept[item[1]].append(item)
    if pictures:
        kept = {identity: draw.sample(of, min(pictures, len(of))) for identity, of in kept.items()}
    items = sorted(item for of in kept.values() for item in of)
    mislabelled = set(draw.sample(range(len(items)), round(wrong * len(items))))
    return [
        _mislabel(item, identities, draw) if i in mislabelled else item
        for i, item in enumerate(items)
    ]


def _mislabel(item, identities, draw):
    others = [identity for identity in identities if identity != item[1]]
    return (item[0], draw.choice(others), *item[2:])


def train_loader(cfg, pictures, wrong):
    """FastReID's training loader on a worse training set.

    Args:
        cfg: a FastReID config.
        pictures: see :func:`worse`.
        wrong: see :func:`worse`.
    """
    sets = [DATASET_REGISTRY.get(name)(root=build._root) for name in cfg.DATASETS.NAMES]
    items = worse([item for data in sets for item in data.train], pictures, wrong)
    train_set = CommDataset(items, build_transforms(cfg, is_train=True), relabel=True)
    return build.build_reid_train_loader(cfg, train_set=train_set)
