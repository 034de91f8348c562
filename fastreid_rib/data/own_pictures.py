"""People's own pictures: of whom each is, by which camera, and what it is for.

They stand in folders (`own_tree`) or in a table (`own_table`). What cannot be understood is left
out with a reason, never in silence; where nothing can, or where it is doubtful, that is an error.
"""

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from fastreid_rib.base.pictures import LeftOut, told

TRAIN, QUERY, GALLERY = "train", "query", "gallery"

SPLITS: Dict[str, Tuple[str, ...]] = {
    **dict.fromkeys(("train", "training", "bounding_box_train", "image_train"), (TRAIN,)),
    **dict.fromkeys(("query", "queries", "probe", "probes", "image_query"), (QUERY,)),
    **dict.fromkeys(("gallery", "bounding_box_test", "image_test"), (GALLERY,)),
    "test": (QUERY, GALLERY),
}
"""What the pictures of a folder (or of a row) of this name are for. Those in ``test`` are queries
and gallery at once: each is looked for among the others."""

_CAMERA = re.compile(r"^c(am(era)?)?[-_ ]?(?=\d+$)", re.IGNORECASE)


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


@dataclass
class Collection:
    """Pictures as they are read.

    Attributes:
        place: their folder or table.
        pictures: what was understood, in the order of the paths or of the table.
        left_out: what was not, by the reason.
    """

    place: str
    pictures: List[Picture] = field(default_factory=list)
    left_out: LeftOut = field(default_factory=dict)

    def add(self, picture: Picture) -> None:
        """Takes a picture, unless it is junk."""
        if picture.identity == "-1":
            self.leave_out("identity -1: junk, as in Market-1501", picture.path)
        else:
            self.pictures.append(picture)

    def leave_out(self, reason: str, path: str) -> None:
        """Leaves one out."""
        self.left_out.setdefault(reason, []).append(path)

    def checked(self) -> "Collection":
        """Itself.

        Raises:
            ValueError: nothing was understood, with the reasons; or it is doubtful what belongs
                together.
        """
        where = f"DATASETS.FOLDER.PATH {self.place}"
        if not self.pictures:
            reasons = "; ".join(told(self.left_out)) or "it holds no picture"
            raise ValueError(
                f"{where} has no picture that can be used: {reasons}. Expected "
                "IDENTITY/picture.jpg, with or without a folder train, query, gallery or test "
                "around it, or names such as 0001_c1s1_000001_00.jpg. DATASETS.FOLDER.PATTERN says "
                r"another layout, such as '(?P<camera>\w+)/(?P<identity>\w+)/' "
                "(docs/guide/data.md)."
            )
        identities = {picture.identity for picture in self.pictures}
        cameras = {picture.camera for picture in self.pictures if picture.camera}
        for what, names in (("identities", identities), ("cameras", cameras)):
            first: Dict[str, str] = {}
            for name in sorted(names):
                number = name if what == "identities" else _CAMERA.sub("", name)
                key = str(int(number)) if number.isdecimal() else number.casefold()
                other = first.setdefault(key, name)
                if other != name:
                    raise ValueError(
                        f"{where} has the {what} {other!r} and {name!r}: are they one? Write the "
                        "same name, or names that differ in more than case and zeros; "
                        "DATASETS.FOLDER.PATTERN says which part of a path is the name."
                    )
        splits = {picture.split for picture in self.pictures if picture.split}
        parts = sorted(split for split in splits if SPLITS[split] in ((QUERY,), (GALLERY,)))
        if "test" in splits and parts:
            raise ValueError(
                f"{where} has pictures in test, which are queries and gallery at once, and in "
                f"{parts[0]}. Write query or gallery in place of test."
            )
        return self


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
    counts = Counter(picture.identity for picture in pictures)
    several = sorted(identity for identity, count in counts.items() if count > 1)
    number = min(len(several), round(test_share * len(counts)))
    drawn = np.random.RandomState(0).permutation(len(several))[:number]
    tested = {several[i] for i in drawn}
    return [
        picture._replace(split="test" if picture.identity in tested else TRAIN)
        for picture in pictures
    ]
