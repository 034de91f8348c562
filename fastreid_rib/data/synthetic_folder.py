"""A folder of drawn pedestrians, laid out as Market-1501.

    bounding_box_train/0001_c3s1_000451_01.jpg     identity 1, camera 3, frame 451
    query/                                         one picture a camera, mostly occluded
    bounding_box_test/                             the gallery; identity 0: people nobody seeks
    synthetic.json                                 the spec that they were drawn from

The files hold PNG data under the name .jpg: Market-1501 loaders look for `*.jpg`, Pillow and
OpenCV go by the content, and the pixels of JPEG differ from one library version to the next.
"""

import hashlib
import json
import os
import uuid
from dataclasses import asdict, dataclass
from typing import Iterator, List, NamedTuple, Tuple

import numpy as np
from PIL import Image

from fastreid_rib.base.whole_files import renamed_to
from fastreid_rib.data.canvas import HEIGHTS
from fastreid_rib.data.figures import Pedestrian, draw_int
from fastreid_rib.data.scenes import Camera, photograph
from fastreid_rib.settings.declaration import Range, Settings, between, setting

TRAIN, QUERY, GALLERY = "bounding_box_train", "query", "bounding_box_test"

# raise it whenever another pixel comes out for the same spec: folders are named by it
_DRAWING = 1
# Market-1501's own loader refuses larger identities
_MAX_IDS = 1501


def _count(least: int, most: int) -> Range:
    return Range(
        f"an integer from {least} to {most}",
        lambda value: type(value) is int and least <= value <= most,
    )


_HEIGHT = Range(f"one of {HEIGHTS}", lambda value: value in HEIGHTS)


@dataclass(frozen=True)
class SyntheticSpec(Settings):
    """What decides the content of a folder: the same spec gives the same pixels everywhere."""

    num_train_ids: int = setting(200, _count(1, _MAX_IDS - 1), "Identities in the training set.")
    train_images: int = setting(12, _count(1, 9999), "Pictures of each of them.")
    num_test_ids: int = setting(60, _count(1, _MAX_IDS - 1), "Others, in query and gallery.")
    query_images: int = setting(3, _count(1, 6), "Queries of each, at most one a camera.")
    gallery_images: int = setting(8, _count(2, 9999), "Gallery pictures of each, by two cameras.")
    num_distractors: int = setting(30, _count(0, 9999), "Gallery pictures of people nobody seeks.")
    num_cameras: int = setting(6, _count(2, 6), "Cameras.")
    height: int = setting(64, _HEIGHT, "Of a picture in pixels; the width is half of it.")
    train_occluded: float = setting(0.3, between(0, 1), "Share of occluded training pictures.")
    query_occluded: float = setting(0.65, between(0, 1), "The same among the queries.")
    gallery_occluded: float = setting(0.1, between(0, 1), "The same in the gallery.")
    seed: int = setting(0, _count(0, 2**32 - 1), "Of all random numbers.")

    def conflicts(self) -> Iterator[Tuple[str, str]]:
        """Identities and queries that are too many beside other settings."""
        others = _MAX_IDS - self.num_train_ids
        if self.num_test_ids > others:
            yield "num_test_ids", f"at most {others} beside {{num_train_ids}}"
        if self.query_images > self.num_cameras:
            yield "query_images", "at most {num_cameras}"


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
    camera = Camera(_rng(spec, _CAMERA, shot.camera))
    # every distractor is somebody else
    person = (shot.pid,) if shot.pid else (0, shot.frame)
    who = Pedestrian(_rng(spec, _PERSON, *person))
    rng = _rng(spec, _PICTURE, shot.pid, shot.frame)
    return photograph(rng, camera, who, shot.occluded, spec.height)


def folder_name(spec: SyntheticSpec) -> str:
    """Name for the folder of a spec; another spec, or another way of drawing, has another."""
    return "SyntheticReID-" + hashlib.sha256(_written(spec).encode()).hexdigest()[:8]


def generate(directory: str, spec: SyntheticSpec) -> None:
    """Makes the folder of a spec, or what is missing of it.

    Any number of processes may do so at once, and may be killed at any time. None waits for
    another: a picture comes out the same whoever draws it, and appears under its name in one
    step, so the worst that can happen is that it is drawn twice.

    Raises:
        ValueError: the folder was made from another spec.
        OSError: the folder cannot be written, or the disk is full.
    """
    try:
        for subset in (TRAIN, QUERY, GALLERY):
            os.makedirs(os.path.join(directory, subset), exist_ok=True)
        _claim(directory, spec)
        shots = plan(spec)
        # each process begins elsewhere, so that together they draw most pictures once
        start = uuid.uuid4().int % len(shots)
        for shot in shots[start:] + shots[:start]:
            path = os.path.join(directory, shot.path)
            if not os.path.exists(path):
                with renamed_to(path) as partial:
                    Image.fromarray(picture(spec, shot)).save(partial, "png", compress_level=0)
    except OSError as error:
        raise OSError(
            error.errno,
            f"could not make the synthetic pedestrians ({error.strerror}); expected a data root "
            "that can be written: set FASTREID_DATASETS to one, or make the folder elsewhere "
            "and copy it",
            os.path.abspath(directory),
        ) from error


def _written(spec: SyntheticSpec) -> str:
    return json.dumps({**asdict(spec), "drawing": _DRAWING}, sort_keys=True)


def _claim(directory: str, spec: SyntheticSpec) -> None:
    """Writes the spec into a new folder; refuses one that holds another."""
    path = os.path.join(directory, "synthetic.json")
    if not os.path.exists(path):
        with renamed_to(path) as partial, open(partial, "w", encoding="utf-8") as file:
            file.write(_written(spec))
    with open(path, encoding="utf-8") as file:
        made, wanted = json.load(file), json.loads(_written(spec))
    if {name: made.get(name) for name in wanted} != wanted:  # 0.2 wrote more into it
        raise ValueError(
            f"expected the pictures of {wanted} in {os.path.abspath(directory)}, found those of "
            f"{made}; give another folder, or delete this one"
        )
