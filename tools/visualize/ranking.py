"""Pictures of a data set, and the gallery in the order of their similarity to a query."""

import os
from typing import Any, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from fastreid.data import build as data
from fastreid.data.common import CommDataset
from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.data.transforms import build_transforms
from fastreid.utils.compute_dist import build_dist
from torch import Tensor
from tqdm import tqdm

from fastreid_rib.data.folder import configure
from visualize import InputError
from visualize.models import Model

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".webp")


class Shot(NamedTuple):
    """A picture and who is on it.

    Attributes:
        path: of the file.
        pid: identity, or None if nobody said so.
        camera: number of the camera, or None.
        name: of the identity: its number, or what FolderReID calls it.
    """

    path: str
    pid: Optional[int] = None
    camera: Optional[int] = None
    name: str = ""


class Ranked(NamedTuple):
    """A picture of the gallery in its place.

    Attributes:
        shot: the picture.
        distance: to the query, by TEST.METRIC.
        right: whether it shows the query's identity; None if that is not known.
    """

    shot: Shot
    distance: float
    right: Optional[bool]


def load_dataset(name: str, cfg: Any) -> Tuple[List[Shot], List[Shot]]:
    """Query and gallery of a data set in FastReID's registry, in their order.

    Args:
        name: of the data set.
        cfg: which says where FolderReID finds its pictures.

    Raises:
        InputError: there is no such data set, or its files are not there.
    """
    try:
        dataset = DATASET_REGISTRY.get(name)
    except KeyError as error:
        raise InputError(
            f"FastReID knows no data set '{name}': write DATASETS.TESTS or --dataset."
        ) from error
    configure(cfg)
    try:
        held = dataset(root=data._root)
    except (RuntimeError, OSError, ValueError) as error:
        raise InputError(
            f"The data set {name} is not under {os.path.abspath(data._root)}: {error}. Set "
            "FASTREID_DATASETS to the folder that holds it, or give --images with --top-k 0, "
            "which need none."
        ) from error
    names = getattr(held, "identities", None)

    def shot(path: str, pid: int, camera: int, *_: Any) -> Shot:
        return Shot(path, pid, camera, names[pid] if names else str(pid))

    return [shot(*item) for item in held.query], [shot(*item) for item in held.gallery]


def spread(shots: Sequence[Shot], count: int) -> List[Shot]:
    """Some pictures out of many, evenly over the whole, so that nobody picks those that he likes.

    Args:
        shots: in their order.
        count: how many, >= 1; all if there are fewer.
    """
    count = min(count, len(shots))
    return [shots[i * len(shots) // count] for i in range(count)]


def find_images(paths: Sequence[str], known: Sequence[Shot]) -> List[Shot]:
    """The pictures that paths name, with their labels if they are pictures of the data set.

    Args:
        paths: files, and folders whose pictures are taken in the order of their names.
        known: pictures with labels.

    Raises:
        InputError: a path is missing, or a folder holds no picture.
    """
    files: List[str] = []
    for path in paths:
        if os.path.isdir(path):
            inside = sorted(f for f in os.listdir(path) if f.lower().endswith(IMAGE_ENDINGS))
            if not inside:
                raise InputError(f"The folder {path} holds no {', '.join(IMAGE_ENDINGS)}.")
            files += [os.path.join(path, name) for name in inside]
        elif os.path.isfile(path):
            files.append(path)
        else:
            raise InputError(f"There is no image {path}.")
    labels = {os.path.realpath(shot.path): shot for shot in known}
    return [labels.get(os.path.realpath(path), Shot(path)) for path in files]


def load_images(cfg: Any, shots: Sequence[Shot]) -> Tensor:
    """Pictures as the model gets them.

    Args:
        cfg: whose INPUT.SIZE_TEST they are brought to.
        shots: the pictures.

    Returns:
        (B, 3, H, W), float32, 0..255.

    Raises:
        InputError: a file is no picture.
    """
    pictures = _pictures(cfg, shots)
    images = []
    for i, shot in enumerate(shots):
        try:
            image = pictures[i]["images"].float()
        except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises for a broken file
            raise InputError(f"{shot.path} cannot be read as an image: {error}") from error
        if image.shape[0] != 3:
            raise InputError(f"{shot.path} has {image.shape[0]} channels, expected 3 (RGB) or 1.")
        images.append(image)
    return torch.stack(images)


@torch.no_grad()
def embed(model: Model, shots: Sequence[Shot]) -> Tensor:
    """Embeds a gallery, with a progress bar.

    Returns:
        (pictures, dim), float32, on the CPU.
    """
    loader, _ = data.build_reid_test_loader(model.cfg, test_set=_pictures(model.cfg, shots))
    batches = tqdm(loader, desc=f"{model.name}: gallery", unit="batch", total=len(loader))
    device = model.cfg.MODEL.DEVICE
    return torch.cat([model.network(b["images"].to(device)).float().cpu() for b in batches])


def distances(cfg: Any, queries: Tensor, gallery: Tensor) -> np.ndarray:
    """(queries, gallery) distances by TEST.METRIC, without query expansion and re-ranking."""
    return build_dist(queries, gallery, cfg.TEST.METRIC)


def rank(
    query: Shot, row: np.ndarray, gallery: Sequence[Shot], count: int
) -> Tuple[List[Ranked], Optional[int]]:
    """The nearest pictures of a gallery, as FastReID's evaluation counts them.

    Pictures of the query's identity from its own camera are left out, as there, and the query's
    own file.

    Args:
        query: the picture asked for.
        row: (gallery,), its distances.
        gallery: the pictures.
        count: how many to return.

    Returns:
        The first ``count``, and the place (from 1) of the first right one: None if the query's
        identity is unknown or not in the gallery.
    """
    own = os.path.realpath(query.path)
    ranked: List[Ranked] = []
    for i in np.argsort(row, kind="stable"):
        shot = gallery[i]
        same = None if query.pid is None else shot.pid == query.pid
        if (same and shot.camera == query.camera) or os.path.realpath(shot.path) == own:
            continue
        ranked.append(Ranked(shot, float(row[i]), same))
    first = next((place for place, item in enumerate(ranked, 1) if item.right), None)
    return ranked[:count], first


def _pictures(cfg: Any, shots: Sequence[Shot]) -> CommDataset:
    # It would sort the labels, which some pictures do not have; here the shots keep them.
    items = [(shot.path, 0, 0) for shot in shots]
    return CommDataset(items, build_transforms(cfg, is_train=False), relabel=False)
