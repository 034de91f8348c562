"""Drawn pedestrians: the same pixels everywhere, a folder that is whole, data sets of FastReID."""

import hashlib
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from fastreid.data.common import CommDataset
from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.data.datasets.market1501 import Market1501
from PIL import Image

import fastreid_rib  # noqa: F401  arms the repairs that importing fastreid.data needs today
from fastreid_rib.data.synthetic import SyntheticReID, SyntheticReIDLarge, SyntheticReIDTiny
from fastreid_rib.data.synthetic_folder import (
    GALLERY,
    QUERY,
    TRAIN,
    SyntheticSpec,
    folder_name,
    generate,
    picture,
    plan,
)

SMALL = SyntheticSpec(3, 3, 2, query_images=2, gallery_images=3, num_distractors=2, height=32)
# Of every platform, Python and NumPy, before and since the code for drawing became shorter. A
# change makes everybody's folders anew and old results incomparable: raise _DRAWING with it.
PIXELS = {
    SMALL: (1, "6e4c3c310f96cee30461faf3a8c1603652a4da9039b26e427c82fe54768c5cb6"),
    SyntheticReID.spec: (31, "1a773d7c79d547c45894ad4a33862abbb99c93a85942ad8502dd8a0ee0cee26c"),
    SyntheticSpec(height=256, seed=5): (
        297,
        "bbd29080f62dc49ad81222ec221197cfaeee06ec218e89531710d58d084e07aa",
    ),
}


def files(folder):
    return {f"{p.parent.name}/{p.name}": p for p in folder.glob("*/*")}


def digest(pictures):
    """SHA-256 over the names and pixels of pictures."""
    total = hashlib.sha256()
    for name, pixels in sorted(pictures):
        total.update(f"{name}\n".encode() + np.asarray(pixels).tobytes())
    return total.hexdigest()


def held(folder):
    return digest((name, Image.open(path)) for name, path in files(folder).items())


@pytest.fixture
def folder(tmp_path):
    generate(str(tmp_path / "made"), SMALL)
    return tmp_path / "made"


@pytest.mark.parametrize("spec", PIXELS, ids=["small", "usual", "tall"])
def test_pixels_are_the_same_everywhere(spec):
    step, expected = PIXELS[spec]
    assert digest((shot.path, picture(spec, shot)) for shot in plan(spec)[::step]) == expected


def test_names_of_the_folders_stay():
    """Another name would have everybody draw anew."""
    names = [folder_name(of.spec) for of in (SyntheticReID, SyntheticReIDTiny, SyntheticReIDLarge)]
    assert names == [f"SyntheticReID-{key}" for key in ("f300b649", "b757f917", "c58da9be")]


def test_default_plan_has_the_promised_layout():
    shots = plan(SyntheticSpec())
    assert len({shot.path for shot in shots}) == len(shots) == 200 * 12 + 60 * (3 + 8) + 30
    pids = {s: {x.pid for x in shots if x.subset == s} for s in (TRAIN, QUERY, GALLERY)}
    assert pids[TRAIN] == set(range(1, 201))
    assert pids[QUERY] == set(range(201, 261))
    assert pids[GALLERY] == pids[QUERY] | {0}
    assert {shot.camera for shot in shots} == set(range(1, 7))
    for subset, share in ((TRAIN, 0.3), (QUERY, 0.65), (GALLERY, 0.1)):
        occluded = [shot.occluded for shot in shots if shot.subset == subset]
        assert np.mean(occluded) == pytest.approx(share, abs=0.06)
    of_train = [shot for shot in plan(SyntheticReIDLarge.spec) if shot.subset == TRAIN]
    assert of_train == [shot for shot in shots if shot.subset == TRAIN], "the large one's as well"


def test_every_query_can_be_found_in_another_camera():
    shots = plan(replace(SMALL, num_test_ids=50, query_images=6, gallery_images=2))
    seen = {}
    for shot in shots:
        seen.setdefault((shot.subset, shot.pid), []).append(shot.camera)
    for shot in shots:
        if shot.subset == QUERY:
            assert set(seen[GALLERY, shot.pid]) - {shot.camera}
            assert seen[QUERY, shot.pid].count(shot.camera) == 1


def test_a_complete_folder_is_left_alone_and_refuses_another_spec(folder):
    before = {name: os.stat(path).st_mtime_ns for name, path in files(folder).items()}
    assert before.keys() == {shot.path for shot in plan(SMALL)}
    generate(str(folder), SMALL)
    with pytest.raises(ValueError, match="give another folder"):
        generate(str(folder), replace(SMALL, seed=1))
    assert {name: os.stat(path).st_mtime_ns for name, path in files(folder).items()} == before


@pytest.mark.parametrize("marker", [True, False])
def test_interrupted_generation_is_finished(folder, marker):
    expected, lost = held(folder), sorted(files(folder).values())[::3]
    for path in lost if marker else [*lost, folder / "synthetic.json"]:
        path.unlink()
    generate(str(folder), SMALL)
    assert held(folder) == expected


def test_several_processes_may_start_at_once(tmp_path):
    code = (
        "import sys; from fastreid_rib.data.synthetic_folder import *; "
        f"generate(sys.argv[1], {SMALL!r}); print(len(list(__import__('pathlib')"
        ".Path(sys.argv[1]).glob('*/*.jpg'))))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "made")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    # each must find the folder complete when its own call returns
    assert [p.communicate()[0].strip() for p in processes] == [str(len(plan(SMALL)))] * 3
    assert held(tmp_path / "made") == PIXELS[SMALL][1]


def test_data_root_that_cannot_be_written_is_named(tmp_path):
    # a file where a folder should be: read-only folders do not stop root
    (tmp_path / "root").write_text("")
    with pytest.raises(OSError, match="set FASTREID_DATASETS") as caught:
        generate(str(tmp_path / "root" / "made"), SMALL)
    assert str(tmp_path / "root" / "made") in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("train_images", True),
        ("num_test_ids", 1400),
        ("num_cameras", 2),
        ("height", 48),
        ("gallery_occluded", float("nan")),
        ("seed", 1.0),
    ],
)
def test_bad_parameters_are_named(name, value):
    named = "query_images" if name == "num_cameras" else name  # three queries by two cameras
    with pytest.raises(ValueError, match=f"{named} must be .*got {3 if named != name else value}"):
        SyntheticSpec(**{name: value})


# As data sets of FastReID


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return DATASET_REGISTRY.get("SyntheticReIDTiny")(root=str(tmp_path_factory.mktemp("data")))


def test_importing_the_module_alone_is_enough_and_harmless_twice(run_script):
    # it is what loads FastReID here, so the hook meets the module half made
    code = (
        "import importlib, fastreid_rib.data.synthetic as synthetic\n"
        "importlib.reload(synthetic)\n"
        "from fastreid.data.datasets import DATASET_REGISTRY\n"
        "print(DATASET_REGISTRY.get('SyntheticReID').__name__)"
    )
    assert run_script("-c", code).stdout.split()[-1] == "SyntheticReID"


def test_fastreid_is_given_names_to_train_on_and_numbers_to_test(tiny):
    path, pid, camera = tiny.train[5]
    assert (pid, camera[:-1]) == ("SyntheticReIDTiny_1", "SyntheticReIDTiny_")
    assert (len(tiny.train), tiny.get_num_pids(tiny.train)) == (8 * 8, 8)
    assert (len(tiny.query), len(tiny.gallery)) == (6 * 2, 6 * 4 + 4)
    assert {pid for _, pid, _ in tiny.query} == set(range(9, 15))
    assert {pid for _, pid, _ in tiny.gallery} == {0, *range(9, 15)}
    assert {camera for _, _, camera in tiny.query + tiny.gallery} <= set(range(6))
    item = CommDataset(tiny.train, relabel=True)[5]
    assert np.asarray(item["images"]).shape == (64, 32, 3)
    assert (item["targets"], item["img_paths"]) == (0, path)


def test_market1501_of_fastreid_reads_the_folder(tiny, tmp_path):
    os.symlink(os.path.abspath(tiny.data_dir), str(tmp_path / "Market-1501-v15.09.15"))
    market = Market1501(root=str(tmp_path))

    def facts(items):
        return sorted(
            (os.path.basename(path), str(pid).split("_")[-1], str(camera).split("_")[-1])
            for path, pid, camera in items
        )

    for subset in ("train", "query", "gallery"):
        assert facts(getattr(market, subset)) == facts(getattr(tiny, subset))
