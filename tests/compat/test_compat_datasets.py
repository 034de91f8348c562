"""Data sets that are not there, are empty or cannot be evaluated: one error, before training."""

import os
import re

import pytest
import torch
from fastreid.config import get_cfg
from fastreid.data import common
from fastreid.data.build import fast_batch_collator
from fastreid.data.common import CommDataset
from fastreid.data.datasets.dukemtmcreid import DukeMTMC
from fastreid.data.datasets.market1501 import Market1501
from fastreid.data.datasets.msmt17 import MSMT17
from fastreid.engine import DefaultTrainer
from trees import DUKE, MARKET, in_market, market_names, small_market, write_tree

from fastreid_rib.compat import datasets

pytestmark = pytest.mark.usefixtures("as_after_setup")


@pytest.fixture
def rooted(tmp_path, monkeypatch):
    """Lets FastReID read its data sets from a tree of these names."""
    from fastreid.data import build

    def at(names):
        root = write_tree(tmp_path, names)
        monkeypatch.setattr(build, "_root", root)
        return root

    return at


MARKET_BOTH = {
    "DATASETS.NAMES": ("Market1501",),
    "DATASETS.TESTS": ("Market1501",),
    "SOLVER.IMS_PER_BATCH": 4,
    "DATALOADER.NUM_INSTANCE": 2,
    "MODEL.BACKBONE.PRETRAIN": False,
    "MODEL.HEADS.NUM_CLASSES": 0,
}


def test_folders_and_a_data_root_that_are_missing(tmp_path):
    for dataset, folder, part in (
        (Market1501, MARKET, "bounding_box_train"),
        (DukeMTMC, DUKE, "bounding_box_test"),
    ):
        names = [name for name in small_market(folder) if f"/{part}/" not in name]
        root = write_tree(tmp_path / part, names)
        with pytest.raises(RuntimeError) as error:
            dataset(root=root)
        message, place = str(error.value), os.path.join(root, folder)
        assert message.startswith(f'"{place}/{part}" is not found: {dataset.__name__}')
        there = sorted({"bounding_box_train", "query", "bounding_box_test"} - {part})
        assert f"{place} holds {', '.join(there)}." in message
        assert "FASTREID_DATASETS" in message and "FolderReID" in message
    with pytest.raises(RuntimeError, match=f"{re.escape(root)} holds {DUKE}"):
        MSMT17(root=root)


def test_a_data_set_without_pictures():
    with pytest.raises(ValueError, match="DATASETS.NAMES has training pictures"):
        CommDataset([], relabel=True)
    with pytest.raises(ValueError, match="DATASETS.TESTS has no queries, no gallery"):
        CommDataset([], relabel=False)


def test_data_sets_that_assert_name_the_key(tmp_path, rooted, make_cfg):
    """CUHK03 has assertions and packages of its own, VeRi asserts its identities."""
    rooted(
        ["veri/image_train/0777_c001_0_0.jpg", "veri/image_query/a.png", "veri/image_test/a.png"]
    )
    cfg = make_cfg({"DATASETS.NAMES": ("VeRi",)})
    with pytest.raises(ValueError, match="of DATASETS.NAMES .'VeRi',. cannot be read.*FolderReID"):
        DefaultTrainer.build_train_loader(cfg)
    root = tmp_path / "cuhk03"
    (root / "cuhk03_release").mkdir(parents=True)
    cfg = make_cfg({"DATASETS.NAMES": ("CUHK03",), "DATASETS.TESTS": ("CUHK03",)})
    with pytest.raises(RuntimeError, match="cuhk-03.mat.* is not found: CUHK03 .*DATASETS.NAMES"):
        DefaultTrainer.build_train_loader(cfg)
    for name in ("detected", "labeled"):
        (root / f"cuhk03_new_protocol_config_{name}.mat").touch()
        (root / f"images_{name}").mkdir()
    (root / "cuhk03_release" / "cuhk-03.mat").touch()
    with pytest.raises(
        ValueError, match="of DATASETS.TESTS .'CUHK03',. cannot be read: .*pip inst"
    ):
        DefaultTrainer.build_test_loader(cfg, "CUHK03")  # it would unpack the .mat file
    for kind in ("classic", "new"):
        for name in ("detected", "labeled"):
            (root / f"splits_{kind}_{name}.json").write_text("[]")
    with pytest.raises(ValueError, match="cannot be read: Condition split_id.*cuhk03.py, line"):
        DefaultTrainer.build_train_loader(cfg)


def labels_of(*items, relabel):
    """Identities and cameras that the loader of a data set gives of some pictures."""
    data = CommDataset([("a.jpg", *item) for item in items], relabel=relabel)
    data.transform = None
    batch = fast_batch_collator([data[i] for i in range(len(data))])
    return [batch["targets"].tolist(), batch["camids"].tolist()]


def test_labels_that_are_words(monkeypatch):
    monkeypatch.setattr(common, "read_image", lambda path: torch.zeros(3, 2, 2))
    words = ("anna", "door"), ("ben", "yard"), ("anna", "yard")
    assert labels_of(*words, relabel=False) == [[0, 1, 0], [0, 1, 1]]
    assert labels_of(("anna", 2), (7, 2), (3, 1), relabel=True) == [[2, 1, 0], [1, 1, 0]]
    # What worked is left as it is.
    assert labels_of((7, 3), (-1, 2), relabel=False) == [[7, -1], [3, 2]]
    assert labels_of(("b", "y"), ("a", "x"), relabel=True) == [[1, 0], [1, 0]]


def test_too_few_pictures_name_the_key():
    from fastreid.solver import build_lr_scheduler

    with pytest.raises(ValueError, match="Write a smaller SOLVER.IMS_PER_BATCH"):
        build_lr_scheduler(get_cfg(), None, 0)


# What cannot be evaluated: {case: (names, what the message says)}
HOPELESS = {
    "one camera": (
        small_market(cameras=(1,), shots=3),
        "3 of the 3 queries of Market1501 have no right answer in the gallery: 3 have their "
        "identity there by their own camera alone, which FastReID leaves out, and 0 not at all "
        "(1 cameras).",
    ),
    "other identities": (
        in_market(market_names(), market_names([20]), market_names([30])),
        "0 have their identity there by their own camera alone, which FastReID leaves out, and 4 "
        "not at all",
    ),
}


@pytest.mark.parametrize("case", HOPELESS)
def test_a_test_set_that_cannot_be_evaluated_stops_before_training(case, rooted, make_cfg):
    names, told = HOPELESS[case]
    rooted(names)
    cfg = make_cfg(MARKET_BOTH)
    with pytest.raises(ValueError, match=f"{re.escape(told)}.*FolderReID"):
        DefaultTrainer(cfg)
    with pytest.raises(ValueError):  # and so does an evaluation alone, before it embeds anything
        DefaultTrainer.build_test_loader(cfg, "Market1501")


def test_queries_without_an_answer_are_told(rooted, make_cfg, heard):
    said, names = heard(datasets.logger), small_market()
    rooted([n for n in names if not ("bounding_box_test/0011" in n and "_c2" in n)])
    DefaultTrainer.build_test_loader(make_cfg(MARKET_BOTH), "Market1501")
    assert said() == [
        "1 of the 6 queries of Market1501 have no right answer in the gallery: 1 have their "
        "identity there by their own camera alone, which FastReID leaves out, and 0 not at all "
        "(2 cameras). They do not count."
    ]


DRAWING = """
import random
import fastreid_rib
import numpy as np
import torch
from fastreid.config import get_cfg
from fastreid.engine import DefaultTrainer

class Trainer(DefaultTrainer):
    @classmethod
    def build_test_loader(cls, cfg, name):
        print("looked", random.random(), np.random.rand(), torch.rand(1))
        return super().build_test_loader(cfg, name)

    @classmethod
    def build_train_loader(cls, cfg):
        raise SystemExit(f"{random.random()} {np.random.rand()} {torch.rand(1)}")

for tests in ((), ("SyntheticReIDTiny",)):
    cfg = get_cfg()
    cfg.DATASETS.TESTS = tests
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)
    try:
        Trainer(cfg)
    except SystemExit as drawn:
        print("drawn", drawn)
"""


def test_looking_at_the_test_set_draws_nothing(run_script):
    """FastReID's VehicleID draws its queries when it is read."""
    # in a process of its own: threads of other tests' loaders draw, too
    said = run_script("-c", DRAWING).stdout
    without, looked = re.findall("drawn .*", said)
    assert without == looked and said.count("looked") == 1


def test_a_trainer_that_evaluates_in_its_own_way_is_left_alone(make_cfg, monkeypatch):
    def unasked(*args):
        raise AssertionError("asked")

    class Trainer(DefaultTrainer):
        @classmethod
        def build_evaluator(cls, cfg, name, output_folder=None):
            raise AssertionError("not before training")

    Trainer(make_cfg({"DATASETS.TESTS": ("NoSuchReID",)}))
    # Not later either: retrieval among the queries has no gallery, for one.
    monkeypatch.setattr(datasets, "refuse_unanswerable", unasked)
    _, queries = Trainer.build_test_loader(make_cfg(), "SyntheticReIDTiny")
    assert queries > 0
    with pytest.raises(AssertionError, match="asked"):
        DefaultTrainer.build_test_loader(make_cfg(), "SyntheticReIDTiny")
