"""People's own pictures: of whom each is, by which camera, and what it is for.

They stand in folders (`own_tree`) or in a table (`own_table`). What cannot be understood is left
out with a reason, never in silence; where nothing can, that is an error.
"""

from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

TRAIN, QUERY, GALLERY = "train", "query", "gallery"

SPLITS: Dict[str, Tuple[str, ...]] = {
    "train": (TRAIN,),
    "training": (TRAIN,),
    "bounding_box_train": (TRAIN,),
    "query": (QUERY,),
    "probe": (QUERY,),
    "gallery": (GALLERY,),
    "bounding_box_test": (GALLERY,),
    "test": (QUERY, GALLERY),
}
"""What the pictures of a folder (or of a row) of this name are for. Those in ``test`` are queries
and gallery at once: each is looked for among the others."""

_JUNK = "-1"  # the identity of pictures that Market-1501 passes over


class Picture(NamedTuple):
    """One picture.

    Attributes:
        path: where it is.
        identity: of whom, a name or a number.
        camera: by which, or None if that is not known.
        split: what it is for, a name of `SPLITS`, or None if that is not said.
        occluded: whether something stands before the person, or None if that is not known.
    """

    path: str
    identity: str
    camera: Optional[str] = None
    split: Optional[str] = None
    occluded: Optional[bool] = None


class Found(NamedTuple):
    """What was read.

    Attributes:
        pictures: at least one, in the order of their paths, or of the table.
        skipped: what was left out, by the reason.
    """

    pictures: List[Picture]
    skipped: Dict[str, List[str]]


class Collection:
    """Pictures as they are read, and what is left out."""

    def __init__(self, place: str) -> None:
        """Nothing yet.

        Args:
            place: the folder or table, for messages.
        """
        self._place = place
        self._pictures: List[Picture] = []
        self._skipped: Dict[str, List[str]] = {}

    def add(self, picture: Picture) -> None:
        """Takes a picture, unless it is junk."""
        if picture.identity == _JUNK:
            self.skip(f"identity {_JUNK}: junk, as in Market-1501", picture.path)
        else:
            self._pictures.append(picture)

    def skip(self, reason: str, path: str) -> None:
        """Leaves one out."""
        self._skipped.setdefault(reason, []).append(path)

    def found(self) -> Found:
        """All that was read.

        Raises:
            ValueError: that is nothing; with the reasons.
        """
        if not self._pictures:
            reasons = "; ".join(told(self._skipped)) or "it holds no picture"
            raise ValueError(
                f"DATASETS.FOLDER.PATH {self._place} has no picture that can be used: {reasons}. "
                "Expected IDENTITY/picture.jpg, with or without a folder train, query, gallery or "
                "test around it, or names such as 0001_c1s1_000001_00.jpg; DATASETS.FOLDER.PATTERN "
                "says another layout (docs/guide/data.md)."
            )
        return Found(self._pictures, self._skipped)


def told(skipped: Dict[str, List[str]]) -> List[str]:
    """A sentence for each reason: how many were left out, and one of them."""
    return [
        f"{len(paths)} left out, {reason} (such as {paths[0]})" for reason, paths in skipped.items()
    ]


def divide(pictures: Sequence[Picture], test_share: float) -> List[Picture]:
    """Gives pictures of which nothing says what they are for to training and test.

    Whole identities go to one or the other; the same ones whenever the identities are the same. An
    identity with one picture, which could not be found, trains.

    Args:
        pictures: without a split.
        test_share: share of the identities that test, 0..1.

    Returns:
        The same pictures, in their order, with the splits "train" and "test".
    """
    counts: Dict[str, int] = {}
    for picture in pictures:
        counts[picture.identity] = counts.get(picture.identity, 0) + 1
    several = sorted(identity for identity, count in counts.items() if count > 1)
    number = min(len(several), round(test_share * len(counts)))
    drawn = np.random.RandomState(0).permutation(len(several))[:number]
    tested = {several[i] for i in drawn}
    return [
        picture._replace(split="test" if picture.identity in tested else TRAIN)
        for picture in pictures
    ]
