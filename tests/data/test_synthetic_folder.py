import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from fastreid_rib.data.synthetic_folder import (
    GALLERY,
    MARKER,
    QUERY,
    TRAIN,
    SyntheticSpec,
    digest,
    folder_name,
    generate,
    plan,
)

SMALL = SyntheticSpec(
    num_train_ids=3,
    train_images=3,
    num_test_ids=2,
    query_images=2,
    gallery_images=3,
    num_distractors=2,
    height=32,
)
# of every platform, Python and NumPy: a change of it makes everybody's folders anew and old
# results incomparable, so raise _DRAWING with it
SMALL_DIGEST = "b6b739cfc10592f62faf1ba9d9e59e61e3d6ee778d6b55a5b447bdb3e4b2a533"


@pytest.fixture()
def folder(tmp_path):
    generate(str(tmp_path / "made"), SMALL)
    return tmp_path / "made"


def files(folder):
    return {f"{p.parent.name}/{p.name}": p for p in folder.glob("*/*")}


def test_pixels_are_the_same_everywhere(folder):
    assert digest(str(folder)) == SMALL_DIGEST
    assert json.loads((folder / MARKER).read_text())["sha256"] == SMALL_DIGEST


def test_default_plan_has_the_promised_layout():
    spec = SyntheticSpec()
    shots = plan(spec)
    assert len({shot.path for shot in shots}) == len(shots) == 200 * 12 + 60 * (3 + 8) + 30
    pids = {s: {x.pid for x in shots if x.subset == s} for s in (TRAIN, QUERY, GALLERY)}
    assert pids[TRAIN] == set(range(1, 201))
    assert pids[QUERY] == set(range(201, 261))
    assert pids[GALLERY] == pids[QUERY] | {0}
    assert {shot.camera for shot in shots} == set(range(1, 7))


def test_every_query_can_be_found_in_another_camera():
    shots = plan(replace(SMALL, num_test_ids=50, query_images=6, gallery_images=2))
    seen = {}
    for shot in shots:
        seen.setdefault((shot.subset, shot.pid), []).append(shot.camera)
    for shot in shots:
        if shot.subset == QUERY:
            assert set(seen[GALLERY, shot.pid]) - {shot.camera}
            assert seen[QUERY, shot.pid].count(shot.camera) == 1


def test_occlusion_has_the_share_that_was_asked_for():
    shots = plan(SyntheticSpec())
    for subset, share in ((TRAIN, 0.3), (QUERY, 0.65), (GALLERY, 0.1)):
        occluded = [shot.occluded for shot in shots if shot.subset == subset]
        assert np.mean(occluded) == pytest.approx(share, abs=0.06)
    assert not any(
        s.occluded for s in plan(replace(SMALL, train_occluded=0.0)) if s.subset == TRAIN
    )
    assert all(s.occluded for s in plan(replace(SMALL, query_occluded=1.0)) if s.subset == QUERY)


def test_occluders_cover_something(tmp_path):
    """The same scenes with and without differ in a good part of the picture, not in all of it."""
    made = {}
    for share in (0.0, 1.0):
        directory = tmp_path / str(share)
        generate(str(directory), replace(SMALL, train_occluded=share, query_occluded=share))
        made[share] = directory
    changed = []
    for name in (s.path for s in plan(SMALL) if s.subset != GALLERY):
        clear, hidden = (np.asarray(Image.open(made[s] / name)).astype(int) for s in (0.0, 1.0))
        changed.append((abs(clear - hidden).sum(axis=2) > 90).mean())
    assert 0.1 < np.mean(changed) < 0.6


def test_files_hold_rgb_pictures(folder):
    assert set(files(folder)) == {shot.path for shot in plan(SMALL)}
    for path in files(folder).values():
        image = Image.open(path)
        assert (image.size, image.mode) == ((16, 32), "RGB")
        assert np.asarray(image).std() > 5


def test_other_parameters_give_another_folder_and_other_pictures(tmp_path, folder):
    other = replace(SMALL, seed=1)
    assert folder_name(other) != folder_name(SMALL) == folder_name(replace(SMALL))
    generate(str(tmp_path / "other"), other)
    assert digest(str(tmp_path / "other")) != SMALL_DIGEST
    with pytest.raises(ValueError, match="give another folder"):
        generate(str(folder), other)


def test_complete_folder_is_left_alone(folder):
    before = {name: os.stat(path).st_mtime_ns for name, path in files(folder).items()}
    generate(str(folder), SMALL)
    assert {name: os.stat(path).st_mtime_ns for name, path in files(folder).items()} == before


@pytest.mark.parametrize("marker", [None, b'{"seed"'], ids=["missing", "cut short"])
def test_interrupted_generation_is_finished(folder, marker):
    pictures = sorted(files(folder).values())
    pictures[0].unlink()
    pictures[1].write_bytes(pictures[1].read_bytes()[:100])
    (folder / MARKER).unlink()
    if marker is not None:
        (folder / MARKER).write_bytes(marker)
    generate(str(folder), SMALL)
    assert digest(str(folder)) == SMALL_DIGEST


def test_lost_picture_is_drawn_again(folder):
    next(iter(files(folder).values())).unlink()
    generate(str(folder), SMALL)
    assert digest(str(folder)) == SMALL_DIGEST


def test_several_processes_may_start_at_once(tmp_path):
    code = (
        "import sys; from fastreid_rib.data.synthetic_folder import *; "
        "spec = SyntheticSpec(num_train_ids=3, train_images=3, num_test_ids=2, query_images=2, "
        "gallery_images=3, num_distractors=2, height=32); "
        "generate(sys.argv[1], spec); print(digest(sys.argv[1]))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "made")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    # each must find the folder complete when its own call returns
    assert [p.communicate()[0].strip() for p in processes] == [SMALL_DIGEST] * 3
    assert set(files(tmp_path / "made")) == {shot.path for shot in plan(SMALL)}


def test_data_root_that_cannot_be_written_is_named(tmp_path):
    # a file where a folder should be: read-only folders do not stop root
    (tmp_path / "root").write_text("")
    with pytest.raises(OSError, match="set FASTREID_DATASETS") as caught:
        generate(str(tmp_path / "root" / "made"), SMALL)
    assert str(tmp_path / "root" / "made") in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_train_ids", 0),
        ("num_train_ids", 2.0),
        ("train_images", True),
        ("num_test_ids", 1400),
        ("num_cameras", 1),
        ("num_cameras", 7),
        ("query_images", 7),
        ("gallery_images", 1),
        ("num_distractors", -1),
        ("height", 48),
        ("train_occluded", 1.5),
        ("query_occluded", -0.1),
        ("gallery_occluded", float("nan")),
        ("seed", -1),
    ],
)
def test_bad_parameters_are_named(name, value):
    with pytest.raises(ValueError, match=f"expected {name} .*got {value}"):
        SyntheticSpec(**{name: value})
