"""FolderReID through FastReID: what it trains on, how it is evaluated, and what the log says."""

import os
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from fastreid.data import build, build_reid_test_loader, build_reid_train_loader
from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.engine import DefaultTrainer
from trees import small_market, write_tree

from fastreid_rib.base import pictures
from fastreid_rib.data import folder
from fastreid_rib.data.folder import FolderReID, FolderSettings
from fastreid_rib.data.own_pictures import SPLITS


@pytest.fixture(autouse=True)
def as_after_setup(tmp_path, monkeypatch):
    """A folder as `default_setup` makes it, and no settings of another test."""
    (tmp_path / "logs").mkdir()
    monkeypatch.setattr(folder, "_configured", FolderSettings())


@pytest.fixture
def own(tmp_path, make_cfg):
    """Writes a tree; returns the config that trains and tests on it."""

    def write(names, **keys):
        root = write_tree(tmp_path / "mine", names)
        changes = {f"DATASETS.FOLDER.{key}": value for key, value in keys.items()}
        return make_cfg(
            {
                "DATASETS.NAMES": ("FolderReID",),
                "DATASETS.TESTS": ("FolderReID",),
                "DATASETS.FOLDER.PATH": root,
                "SOLVER.IMS_PER_BATCH": 4,
                "DATALOADER.NUM_INSTANCE": 2,
                "MODEL.BACKBONE.PRETRAIN": False,
                "MODEL.HEADS.NUM_CLASSES": 3,
                **changes,
            }
        )

    return write


def data_of(cfg):
    folder.configure(cfg)
    return FolderReID()


PEOPLE = [f"{name}/{i}.jpg" for name in ("anna", "berta", "Cäsar", "d 4") for i in range(3)]


def test_it_is_registered_and_takes_the_settings_of_the_config(own):
    cfg = own(PEOPLE, TEST_SHARE=0.25)
    assert DATASET_REGISTRY.get("FolderReID") is FolderReID
    loader = build_reid_train_loader(cfg)
    assert loader.dataset.num_classes == 3 and folder._configured.test_share == 0.25
    loader, queries = build_reid_test_loader(cfg, dataset_name="FolderReID")
    assert (queries, len(loader.dataset)) == (3, 6)
    other = own(PEOPLE, TEST_SHARE=0.5)
    assert build_reid_test_loader(cfg=other, dataset_name="FolderReID")[1] == 6


def test_every_other_picture_matches_without_cameras(own):
    """By hand, through FastReID's own ranking."""
    from fastreid.evaluation.rank import evaluate_rank

    data = data_of(own(["test/anna/1.jpg", "test/anna/2.jpg", "test/b/1.jpg"]))
    assert [len(part) for part in (data.train, data.query, data.gallery)] == [0, 3, 3]
    assert data.identities == ("anna", "b")
    pids = np.array([pid for _, pid, _ in data.query])
    cameras = np.array([camera for *_, camera in data.query])
    assert len(set(cameras)) == 3 and data.query == data.gallery
    # a picture is nearest to itself, then to b, then to the other one of anna
    distances = np.array([[0, 3, 1], [3, 0, 1], [1, 1, 0]], np.float32)
    cmc, precision, _ = evaluate_rank(distances, pids, pids, cameras, cameras, use_cython=False)
    # itself is left out, so that anna's other picture is second; b has no other
    assert list(precision) == [0.5, 0.5] and list(cmc[:2]) == [0, 1]


def test_cameras_count_where_they_are_known_unless_they_are_not_to(own, tmp_path):
    def cameras(names, **keys):
        shutil.rmtree(str(tmp_path / "mine"), ignore_errors=True)
        data = data_of(own(names, **keys))
        return [camera for *_, camera in dict.fromkeys(data.query + data.gallery)]

    names = [f"test/{who}/c{camera}_{i}.jpg" for who in "ab" for camera in (1, 12) for i in "xy"]
    assert Counter(cameras(names)) == {0: 4, 1: 4}
    assert len(set(cameras(names, CAMERAS=False))) == 8
    some = [*names[:2], "test/a/3.jpg", "test/b/4.jpg"]
    assert sorted(Counter(cameras(some)).values()) == [1, 1, 2]
    apart = [f"{part}/{who}/{i}.jpg" for part in ("query", "gallery") for who in "ab" for i in "xy"]
    assert len(set(cameras(apart))) == 8


def test_market_s_layout_is_read_as_market_1501_reads_it(own, tmp_path):
    from fastreid.data.datasets.market1501 import Market1501

    names = small_market(cameras=(1, 2, 6), folder=".")
    names += ["bounding_box_test/-1_c1s1_0_00.jpg", "bounding_box_test/0000_c3s1_0_00.jpg"]
    data = data_of(own([name.replace("./", "") for name in names]))
    market = Market1501(root=str(tmp_path / "mine"))

    def facts(items, name):
        return sorted((os.path.basename(path), int(name(pid))) for path, pid, _ in items)

    def of_train(pid):
        return pid.rpartition("_")[2]

    assert facts(data.train, of_train) == facts(market.train, of_train)
    for part in ("query", "gallery"):
        ours, theirs = getattr(data, part), getattr(market, part)
        assert facts(ours, data.identities.__getitem__) == facts(theirs, str)
        # the same pictures share a camera
        cameras = {os.path.basename(path): camera for path, _, camera in theirs}
        pairs = {(cameras[os.path.basename(path)], camera) for path, _, camera in ours}
        assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


def test_a_table_says_what_is_occluded(own, tmp_path):
    rows = ("0.jpg,{0},query,yes", "1.jpg,{0},query,no", "2.jpg,{0},gallery,")
    lines = [f"mine/{who}/{row.format(who)}" for who in "ab" for row in rows]
    lines.insert(0, "path,identity,split,occluded")
    (tmp_path / "list.csv").write_text("\n".join(lines))
    cfg = own([f"{i}/{n}.jpg" for i in "ab" for n in range(3)], PATH=str(tmp_path / "list.csv"))
    assert {os.path.relpath(p, str(tmp_path)) for p in data_of(cfg).occluded_queries} == {
        os.path.join("mine", "a", "0.jpg"),
        os.path.join("mine", "b", "0.jpg"),
    }
    torch.manual_seed(0)
    results = DefaultTrainer.test(cfg, DefaultTrainer.build_model(cfg).eval())
    half = [results[f"{part}/mAP"] for part in ("occluded", "free")]
    assert sum(half) / 2 == pytest.approx(results["mAP"], rel=1e-5)
    folder.configure(own(PEOPLE))
    assert FolderReID().occluded_queries is None


def test_combineall_takes_each_picture_once(own):
    cfg = own([*PEOPLE, "test/x/1.jpg", "test/x/2.jpg", *(f"train/{name}" for name in PEOPLE)])
    folder.configure(cfg)
    data = FolderReID(combineall=True)
    assert len(data.train) == 12 + 2


def test_a_relative_path_counts_from_the_data_root(own, tmp_path, monkeypatch):
    cfg = own(PEOPLE, PATH="mine")
    monkeypatch.setattr(build, "_root", str(tmp_path))
    assert build_reid_train_loader(cfg).dataset.num_classes == 2


def test_it_trains_and_evaluates(own, heard):
    said = heard(folder.logger)
    cfg = own(PEOPLE)
    results = DefaultTrainer(cfg).train()
    assert 0 < results["mAP"] <= 100
    place = cfg.DATASETS.FOLDER.PATH
    divided = (
        f"FolderReID: nothing says which pictures of {place} are for training: 2 identities train, "
        "2 test, as DATASETS.FOLDER.TEST_SHARE says."
    )
    cameras = (
        "FolderReID: 6 of 6 test pictures have no camera: every other picture of their identity "
        "counts as a match."
    )
    trained = (
        "FolderReID: 6 of 6 training pictures have no camera: each is treated as a separate camera."
    )
    # before, training, evaluation
    assert said() == [divided, cameras, divided, trained, divided, cameras]


def test_what_is_skipped_and_what_deserves_a_look_is_told(own, heard):
    said, left_out = heard(folder.logger), heard(pictures.logger)
    names = [f"{part}/{who}/c{c}.jpg" for part in ("train", "test") for who in "ab" for c in (1, 2)]
    cfg = own([*names, "train/alone/c1.jpg", "val/a/c1.jpg", "val/a/c2.jpg", "test/nobody.jpg"])
    data = data_of(cfg)
    data.show_train()
    place = cfg.DATASETS.FOLDER.PATH
    assert left_out() == [
        f"FolderReID: of {place} 1 left out, no folder, and no name such as anna_c1_17.jpg (such "
        "as test/nobody.jpg).",
        f"FolderReID: of {place} 2 left out, in none of the folders {', '.join(SPLITS)} (such as "
        "val/a/c1.jpg).",
    ]
    assert said() == [
        "FolderReID: 2 identities are in training and test, such as a: the results will look "
        "better than they are.",
    ]


REFUSED = {
    "nothing is written": ([], {"PATH": ""}, "DATASETS.FOLDER.PATH must be a folder of pictures"),
    "nothing is there": ([], {"PATH": "gone"}, 'DATASETS.FOLDER.PATH: .*gone" is not found'),
    "a share": (PEOPLE, {"TEST_SHARE": 1.5}, "TEST_SHARE must be between 0 and 1, but is 1.5"),
    "a pattern": (PEOPLE, {"PATTERN": "x"}, "DATASETS.FOLDER.PATTERN must be"),
    "no test pictures": ([f"train/{name}" for name in PEOPLE], {}, "A test set is empty"),
    "no query": (
        [f"{part}/{name}" for part in ("train", "gallery") for name in PEOPLE],
        {},
        "FolderReID has no query pictures .0 queries, 12 in the gallery",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_refused_before_training(own, case):
    names, keys, told = REFUSED[case]
    with pytest.raises(ValueError, match=told):
        DefaultTrainer(own(names or ["none.txt.jpg"], **keys))


def test_one_camera_trains_where_cameras_do_not_count(own):
    names = [f"{name}_c1_{i}.jpg" for name in "abcdef" for i in range(3)]
    DefaultTrainer(own(names, CAMERAS=False))


def test_a_file_with_a_pattern(own, tmp_path):
    (tmp_path / "list.csv").write_text("path,identity\nmine/d 4/1.jpg,d\n")
    with pytest.raises(ValueError, match="PATTERN is for folders, but .*list.csv is a file"):
        data_of(own(PEOPLE, PATH=str(tmp_path / "list.csv"), PATTERN="(?P<identity>x)"))
