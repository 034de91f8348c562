"""A folder of drawn pedestrians, laid out as Market-1501.

    bounding_box_train/0001_c3s1_000451_01.jpg     identity 1, camera 3, frame 451
    query/                                         one picture a camera, mostly occluded
    bounding_box_test/                             the gallery; identity 0: people nobody seeks
    synthetic.json                                 written last: what was made, and its digest

The files hold PNG data under the name .jpg: Market-1501 loaders look for `*.jpg`, Pillow and
OpenCV go by the content, and the pixels of JPEG differ from one library version to the next.
"""

import hashlib
import json
import os
import uuid
from dataclasses import asdict, dataclass
from typing import Dict, List, NamedTuple

import numpy as np
from PIL import Image

from fastreid_rib.base.whole_files import renamed_to
from fastreid_rib.data.canvas import HEIGHTS
from fastreid_rib.data.figures import Pedestrian, draw_int
from fastreid_rib.data.scenes import Camera, photograph

TRAIN, QUERY, GALLERY = "bounding_box_train", "query", "bounding_box_test"
MARKER = "synthetic.json"

# raise it whenever another pixel comes out for the same spec: folders are named by it
_DRAWING = 1
# Market-1501's own loader refuses larger identities
_MAX_IDS = 1501


@dataclass(frozen=True)
class SyntheticSpec:
    """What decides the content of a folder: the same spec gives the same pixels everywhere.

    Args:
        num_train_ids: identities in the training set.
        train_images: pictures of each of them.
        num_test_ids: identities in query and gallery, none of them in the training set.
        query_images: queries of each, at most one a camera.
        gallery_images: gallery pictures of each, at least two, so that each query has one that
            another camera took.
        num_distractors: gallery pictures of people whom nobody looks for (identity 0).
        num_cameras: 2 to 6.
        height: of a picture in pixels: 32, 64, 128, 256 or 512; the width is half of it.
        train_occluded: share of occluded pictures in the training set, 0 to 1.
        query_occluded: the same among the queries.
        gallery_occluded: the same in the gallery.
        seed: 0 to 2**32 - 1.

    Raises:
        ValueError: a value is out of range.
    """

    num_train_ids: int = 200
    train_images: int = 12
    num_test_ids: int = 60
    query_images: int = 3
    gallery_images: int = 8
    num_distractors: int = 30
    num_cameras: int = 6
    height: int = 64
    train_occluded: float = 0.3
    query_occluded: float = 0.65
    gallery_occluded: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        limits = {
            "num_train_ids": (1, _MAX_IDS - 1),
            "train_images": (1, 9999),
            "num_test_ids": (1, _MAX_IDS - self.num_train_ids),
            "num_cameras": (2, 6),
            "query_images": (1, self.num_cameras),
            "gallery_images": (2, 9999),
            "num_distractors": (0, 9999),
            "seed": (0, 2**32 - 1),
        }
        shares = dict.fromkeys(("train_occluded", "query_occluded", "gallery_occluded"), (0, 1))
        for name, (low, high) in {**limits, **shares}.items():
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not low <= value <= high or (name in limits and not whole):
                what = "an integer" if name in limits else "a share"
                raise ValueError(
                    f"expected {name} to be {what} from {low} to {high}, got {value!r}"
                )
        if self.height not in HEIGHTS:
            raise ValueError(f"expected height to be one of {HEIGHTS}, got {self.height!r}")


class Shot(NamedTuple):
    """One picture of a folder.

    Attributes:
        subset: `TRAIN`, `QUERY` or `GALLERY`.
        pid: identity, from 1 (training), from num_train_ids + 1 (test), 0 for distractors.
        camera: from 1.
        frame: number in the file name; no two pictures of an identity share it.
        occluded: whether something stands before the person.
    """

    subset: str
    pid: int
    camera: int
    frame: int
    occluded: bool

    @property
    def path(self) -> str:
        """Path within the folder, with "/" between its parts."""
        return f"{self.subset}/{self.pid:04d}_c{self.camera}s1_{self.frame:06d}_01.jpg"


# streams of random numbers that do not touch: the first key after the seed
_PLAN, _CAMERA, _PERSON, _PICTURE = range(4)


def _rng(spec: SyntheticSpec, *key: int) -> np.random.RandomState:
    # RandomState's stream is frozen by NumPy's compatibility policy, Generator's is not
    return np.random.RandomState([spec.seed, *key])


def plan(spec: SyntheticSpec) -> List[Shot]:
    """The pictures that a folder consists of, in a fixed order."""
    rng = _rng(spec, _PLAN)
    shots: List[Shot] = []

    def add(subset: str, pid: int, images: int, first_frame: int, occluded: float) -> None:
        cameras = [int(c) for c in rng.permutation(spec.num_cameras)]
        for i in range(images):
            hidden = draw_int(rng, 0, 9999) < occluded * 10000
            camera = cameras[i % spec.num_cameras] + 1
            shots.append(Shot(subset, pid, camera, first_frame + i, hidden))

    first_test = spec.num_train_ids + 1
    for pid in range(1, first_test):
        add(TRAIN, pid, spec.train_images, 1, spec.train_occluded)
    for pid in range(first_test, first_test + spec.num_test_ids):
        add(QUERY, pid, spec.query_images, 1, spec.query_occluded)
        add(GALLERY, pid, spec.gallery_images, spec.query_images + 1, spec.gallery_occluded)
    add(GALLERY, 0, spec.num_distractors, 1, spec.gallery_occluded)
    return shots


def picture(spec: SyntheticSpec, shot: Shot) -> np.ndarray:
    """What one shot of the plan shows: (height, height // 2, 3), uint8, RGB."""
    camera = Camera.random(_rng(spec, _CAMERA, shot.camera))
    # every distractor is somebody else
    person = (shot.pid,) if shot.pid else (0, shot.frame)
    who = Pedestrian.random(_rng(spec, _PERSON, *person))
    rng = _rng(spec, _PICTURE, shot.pid, shot.frame)
    return photograph(rng, camera, who, shot.occluded, spec.height)


def folder_name(spec: SyntheticSpec) -> str:
    """Name for the folder of a spec; another spec, or another way of drawing, has another."""
    return "SyntheticReID-" + hashlib.sha256(_parameters(spec).encode()).hexdigest()[:8]


def generate(directory: str, spec: SyntheticSpec) -> None:
    """Makes the folder, or what is missing of it; returns at once where it is complete.

    Any number of processes may do so at once, and may be killed at any time. None waits for
    another: a picture comes out the same whoever draws it, and appears under its name in one
    step, so the worst that can happen is that it is drawn twice.

    Args:
        directory: the folder, made if need be.
        spec: what goes into it.

    Raises:
        ValueError: the folder was made from another spec.
        OSError: the folder cannot be written, or the disk is full.
    """
    shots = plan(spec)
    if _finished(directory, spec, shots):
        return
    try:
        for subset in (TRAIN, QUERY, GALLERY):
            os.makedirs(os.path.join(directory, subset), exist_ok=True)
        # each process begins elsewhere, so that together they draw most pictures once
        start = uuid.uuid4().int % len(shots)
        for shot in shots[start:] + shots[:start]:
            path = os.path.join(directory, shot.path)
            if not _whole(path):
                with renamed_to(path) as partial:
                    Image.fromarray(picture(spec, shot)).save(partial, "png", compress_level=0)
        made = {**json.loads(_parameters(spec)), "images": len(shots), "sha256": digest(directory)}
        marker = os.path.join(directory, MARKER)
        with renamed_to(marker) as partial, open(partial, "w", encoding="utf-8") as file:
            json.dump(made, file, indent=1)
    except OSError as error:
        raise OSError(
            error.errno,
            f"could not make the synthetic pedestrians ({error.strerror}); expected a data root "
            "that can be written: set FASTREID_DATASETS to one, or make the folder elsewhere "
            "and copy it",
            os.path.abspath(directory),
        ) from error


def digest(directory: str) -> str:
    """SHA-256 over the names and pixels of all pictures in a folder, in hexadecimal."""
    total = hashlib.sha256()
    for subset in (TRAIN, QUERY, GALLERY):
        for name in sorted(os.listdir(os.path.join(directory, subset))):
            if name.endswith(".jpg"):
                with Image.open(os.path.join(directory, subset, name)) as image:
                    total.update(f"{subset}/{name}\n".encode() + image.tobytes())
    return total.hexdigest()


def _parameters(spec: SyntheticSpec) -> str:
    return json.dumps({**asdict(spec), "drawing": _DRAWING}, sort_keys=True)


def _whole(path: str) -> bool:
    """Whether a picture is there and was not cut short."""
    try:
        with Image.open(path) as image:
            image.load()
    except OSError:
        return False
    return True


def _finished(directory: str, spec: SyntheticSpec, shots: List[Shot]) -> bool:
    """Whether the marker and all pictures are there; the marker alone may outlive its pictures."""
    try:
        with open(os.path.join(directory, MARKER), encoding="utf-8") as file:
            made: Dict[str, object] = json.load(file)
    except (OSError, ValueError):
        return False
    wanted = json.loads(_parameters(spec))
    if {name: made.get(name) for name in wanted} != wanted:
        raise ValueError(
            f"expected the pictures of {wanted} in {os.path.abspath(directory)}, found those of "
            f"{made}; give another folder, or delete this one"
        )
    return all(os.path.exists(os.path.join(directory, shot.path)) for shot in shots)
