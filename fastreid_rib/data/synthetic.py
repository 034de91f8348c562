"""Pedestrians drawn by code as data sets in FastReID's registry: nothing to download.

    DATASETS:
      NAMES: ("SyntheticReID",)
      TESTS: ("SyntheticReID",)

Importing this module registers them.
"""

import os
from typing import Any, Dict, List, Set, Tuple

from fastreid.data.datasets.bases import ImageDataset

from fastreid_rib.base.pictures import named
from fastreid_rib.data import register
from fastreid_rib.data.synthetic_folder import (
    GALLERY,
    QUERY,
    TRAIN,
    SyntheticSpec,
    folder_name,
    generate,
    plan,
)


@register
class SyntheticReID(ImageDataset):
    """Synthetic pedestrians, made on first use in a folder of their own under the data root.

    200 training identities with 12 pictures each, 60 others in query and gallery, six cameras,
    most of the queries occluded. A subclass with another `spec` draws others.

    Attributes:
        occluded_queries: paths of the queries in which something stands before the person.

    Args:
        root: data root; FastReID passes the environment variable FASTREID_DATASETS, or "datasets".
        **kwargs: what FastReID's `ImageDataset` takes (transform, mode, combineall, verbose).

    Raises:
        OSError: the pictures are not there yet and the data root cannot be written.
    """

    _junk_pids = [0, -1]
    dataset_name = "SyntheticReID"
    spec = SyntheticSpec()
    occluded_queries: Set[str] = set()

    def __init__(self, root: str = "datasets", **kwargs: Any) -> None:
        self.data_dir = os.path.join(root, folder_name(self.spec))
        generate(self.data_dir, self.spec)
        self.occluded_queries = set()
        items: Dict[str, List[Tuple[str, int, int]]] = {TRAIN: [], QUERY: [], GALLERY: []}
        for shot in plan(self.spec):  # not a listing: its order is the same on every machine
            path = os.path.join(self.data_dir, *shot.path.split("/"))
            items[shot.subset].append((path, shot.pid, shot.camera - 1))
            if shot.subset == QUERY and shot.occluded:
                self.occluded_queries.add(path)
        train = named(self.dataset_name, items[TRAIN])
        super().__init__(train, items[QUERY], items[GALLERY], **kwargs)


@register
class SyntheticReIDTiny(SyntheticReID):
    """A SyntheticReID that is made in half a second, for tests and smoke runs."""

    dataset_name = "SyntheticReIDTiny"
    spec = SyntheticSpec(8, 8, num_test_ids=6, query_images=2, gallery_images=4, num_distractors=4)


@register
class SyntheticReIDLarge(SyntheticReID):
    """SyntheticReID's training pictures, with 400 test identities instead of 60.

    For comparisons that the 180 queries of the small one are too few for. Other people stand in
    this test than in the small one from the 61st on, and a larger gallery is harder: numbers of the
    two do not compare.
    """

    dataset_name = "SyntheticReIDLarge"
    spec = SyntheticSpec(num_test_ids=400, num_distractors=200)
