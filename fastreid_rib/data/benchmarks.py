"""Benchmarks of occluded and partial persons, and CUHK03 with its new protocol.

Each is read in the layout that it was published in. Importing this module registers them with
FastReID.
"""

import logging
import os
import re
from typing import Any, Dict, List, Tuple

from fastreid.data.datasets.bases import ImageDataset

from fastreid_rib.base.pictures import ENDINGS, log_left_out, named, pictures_below, shots_in
from fastreid_rib.data import register

logger = logging.getLogger(__name__)

OCCLUDED, WHOLE = "occluded_body_images", "whole_body_images"
_ZHUO = "ICME2018_Occluded-Person-Reidentification_datasets"  # what its publishers call the folder


class Benchmark(ImageDataset):
    """A published data set, in a folder of its own below the data root.

    Pictures are named as in Market-1501, ``0001_c1s1_000001_00.jpg``, unless a subclass reads them
    in another way.

    Args:
        root: data root.
        **kwargs: what FastReID's `ImageDataset` takes.

    Attributes:
        dataset_name: begins the names of identities in training.
        folders: where it may be below the data root; the first is what the publishers call it.
        parts: folders of training (a test set has none), one of the queries, one of the gallery.
        published: number of pictures of each part. Another one is a warning: results on a part of
            a benchmark, or on an extended one, do not compare with published ones.

    Raises:
        RuntimeError: a folder is missing.
        ValueError: a folder is empty, or the name of a picture says nothing or something else than
            its folder.
    """

    dataset_name = ""
    folders: Tuple[str, ...] = ()
    parts: Tuple[str, ...] = ("bounding_box_train", "query", "bounding_box_test")
    published: Dict[str, int] = {}

    def __init__(self, root: str = "datasets", **kwargs: Any) -> None:
        places = [os.path.join(root, folder) for folder in self.folders]
        folder = next(filter(os.path.isdir, places), places[0])
        needed = [os.path.join(folder, *part.split("/")) for part in self.parts]
        self.check_before_run([folder, *needed])
        *train, query, gallery = (self.read(part, side % 2) for side, part in enumerate(needed))
        items = named(self.dataset_name, [item for part in train for item in part])
        super().__init__(items, query, gallery, **kwargs)

    def show_train(self) -> None:
        """Logs FastReID's table, and whether the pictures are as many as published.

        Raises:
            ValueError: the benchmark has no training pictures.
        """
        name = type(self).__name__
        if "train" not in self.published:
            raise ValueError(
                f"{name} is a test set without training pictures, but DATASETS.NAMES holds it. "
                f"Write DATASETS.NAMES ('Market1501',), as its published results do, and "
                f"DATASETS.TESTS ('{name}',)."
            )
        super().show_train()
        self._compare("train")

    def show_test(self) -> None:
        """Logs FastReID's table, and whether the pictures are as many as published."""
        super().show_test()
        self._compare("query")
        self._compare("gallery")

    def _compare(self, part: str) -> None:
        name, found, published = type(self).__name__, len(getattr(self, part)), self.published[part]
        if found != published:
            told = "%s has %d %s pictures here, and %d as published: results do not compare."
            logger.warning(told, name, found, part, published)

    def read(self, folder: str, side: int) -> List[Tuple[str, int, int]]:
        """Path, identity and camera (from 0) of the pictures in the folder of a part.

        Of the parts every second is a side 1, the one of whole persons where they stand apart.
        """
        shots = shots_in(folder, type(self).__name__)
        return [(os.path.join(folder, s.name), s.identity, s.camera - 1) for s in shots]


class SidesLayout(Benchmark):
    """A folder of hidden persons and one of whole ones, which is the gallery; no cameras.

    Pictures stand in a folder for each identity, or directly; their names begin with the number of
    the identity (``001_02.tif``). The two sides count as two cameras, so that every picture of the
    gallery is kept.
    """

    parts: Tuple[str, ...] = (OCCLUDED, WHOLE)

    def read(self, folder: str, side: int) -> List[Tuple[str, int, int]]:
        """Goes by the beginning of the names; the camera is the side."""
        name = type(self).__name__
        paths, left_out = pictures_below(folder)
        items = [(os.path.join(folder, p), _identity(folder, p, name), side) for p in paths]
        if not items:
            raise ValueError(
                f"{name}: {folder} holds no picture. Expected names such as 001/001_01.tif "
                f"({', '.join(ENDINGS)}, in any case)."
            )
        log_left_out(name, folder, left_out)
        return items


def _identity(folder: str, path: str, dataset: str) -> int:
    *outer, name = path.split("/")
    number = re.match(r"(\d+)_", name)
    wrong = outer and outer[-1].isdigit() and number and int(outer[-1]) != int(number.group(1))
    if number is None or wrong:
        raise ValueError(
            f"{dataset}: the name of {os.path.join(folder, path)} does not begin with the number "
            f"of an identity{', the one of its folder' if outer else ''}. Expected names such as "
            "001/001_01.tif. Rename the file, or move it out of the folder."
        )
    return int(number.group(1))


@register
class OccludedDuke(Benchmark):
    """Occluded-DukeMTMC: DukeMTMC-reID split anew, so that all queries are occluded.

    ``Occluded_Duke/{bounding_box_train,query,bounding_box_test}/0001_c2_f0046182.jpg``, as the
    publishers' script makes it from DukeMTMC-reID. Market-1501's evaluation.

    Source: Miao et al., Pose-Guided Feature Alignment for Occluded Person Re-Identification, ICCV
    2019; lists and script at github.com/lightas/Occluded-DukeMTMC-Dataset.
    """

    dataset_name = "occludedduke"
    folders = ("Occluded_Duke", f"{_ZHUO}/Occluded_Duke", "Occluded-DukeMTMC-reID")
    published = {"train": 15618, "query": 2210, "gallery": 17661}


@register
class OccludedREID(SidesLayout):
    """Occluded-REID: 200 identities by a mobile camera, five occluded and five whole pictures each.

    ``Occluded_REID/{occluded_body_images,whole_body_images}/001/001_01.tif``. A test set: results
    are published of models trained on Market-1501, with the occluded pictures as queries and all
    whole ones as gallery.

    Source: Zhuo et al., Occluded Person Re-identification, ICME 2018 (arXiv 1804.02792); layout at
    github.com/tinajia2012/ICME2018_Occluded-Person-Reidentification_datasets, protocol as in Gao et
    al., Pose-guided Visible Part Matching, CVPR 2020 (github.com/hh23333/PVPM).
    """

    dataset_name = "occludedreid"
    folders = ("Occluded_REID", f"{_ZHUO}/Occluded_REID", "OccludedREID")
    published = {"query": 1000, "gallery": 1000}


@register
class PartialREID(SidesLayout):
    """Partial-REID: 60 identities, five pictures of a part of the body and five whole ones each.

    ``Partial_REID/{partial_body_images,whole_body_images}/001_001.jpg``. A test set: results are
    published of models trained on Market-1501, with the partial pictures as queries and all whole
    ones as gallery.

    Source: Zheng et al., Partial Person Re-Identification, ICCV 2015; protocol as in He et al.,
    Deep Spatial Feature Reconstruction, CVPR 2018 (projects/PartialReID of FastReID, whose data set
    of the same name is taken in place of this one there). The release has occluded_body_images,
    too, which others (PVPM) take for queries: `PartialREIDOccluded`.
    """

    dataset_name = "partialreid"
    folders = ("Partial_REID", "Partial-REID_Dataset", "PartialREID")
    parts = ("partial_body_images", WHOLE)
    published = {"query": 300, "gallery": 300}


@register
class PartialREIDOccluded(PartialREID):
    """Partial-REID with its occluded pictures, not cut to the visible part, as queries."""

    parts = (OCCLUDED, WHOLE)


@register
class POccludedDuke(SidesLayout):
    """P-DukeMTMC-reID: identities of DukeMTMC-reID with occluded and with whole pictures.

    ``P-DukeMTMC-reid/{train,test}/{occluded_body_images,whole_body_images}/0001/0001_c2_f01.jpg``.
    The two sides count as two cameras, in place of Duke's: whole pictures by the query's camera are
    right answers, as in the published results.

    Source, layout and protocol: those of `OccludedREID`.
    """

    dataset_name = "poccludedduke"
    folders = ("P-DukeMTMC-reid", "P-DukeMTMC-reID", f"{_ZHUO}/P-DukeMTMC-reid")
    parts = (f"train/{OCCLUDED}", f"train/{WHOLE}", f"test/{OCCLUDED}", f"test/{WHOLE}")
    published = {"train": 12927, "query": 2163, "gallery": 9053}


@register
class CUHK03NP(Benchmark):
    """CUHK03 with its new protocol, persons as a detector found them.

    FastReID's own ``CUHK03`` makes the same split from ``cuhk-03.mat``, for which it needs h5py,
    scipy and imageio; this is the layout of the protocol's authors.

    ``cuhk03-np/detected/{bounding_box_train,query,bounding_box_test}/0001_c1_1.png``;
    Market-1501's evaluation.

    Source: Li et al., DeepReID, CVPR 2014; protocol: Zhong et al., Re-ranking Person
    Re-identification with k-reciprocal Encoding, CVPR 2017
    (github.com/zhunzhong07/person-re-ranking, CUHK03-NP).
    """

    dataset_name = "cuhk03np"
    folders = ("cuhk03-np/detected", "cuhk03np/detected", "CUHK03-NP/detected")
    published = {"train": 7365, "query": 1400, "gallery": 5332}


@register
class CUHK03NPLabeled(Benchmark):
    """The same persons, cut out by hand, in ``cuhk03-np/labeled``."""

    dataset_name = "cuhk03np_labeled"
    folders = ("cuhk03-np/labeled", "cuhk03np/labeled", "CUHK03-NP/labeled")
    published = {"train": 7368, "query": 1400, "gallery": 5328}
