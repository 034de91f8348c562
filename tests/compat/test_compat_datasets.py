"""Data sets that are not there, are empty or cannot be evaluated: one error, before training."""

import os
import re
import warnings

import pytest
import torch
from fastreid.data.common import CommDataset
from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.data.datasets.dukemtmcreid import DukeMTMC
from fastreid.data.datasets.market1501 import Market1501
from fastreid.data.datasets.msmt17 import MSMT17
from fastreid.engine import DefaultTrainer
from trees import DUKE, MARKET, in_market, market_names, small_market, write_picture, write_tree

from fastreid_rib.compat import datasets

pytestmark = pytest.mark.usefixtures("as_after_setup")


@pytest.fixture
def said(heard):
    """What the repairs log."""
    return heard(datasets.logger)


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


def test_a_folder_that_is_missing(tmp_path):
    for dataset, folder, part in (
        (Market1501, MARKET, "bounding_box_train"),
        (Market1501, MARKET, "query"),
        (DukeMTMC, DUKE, "bounding_box_test"),
    ):
        names = [name for name in small_market(folder) if f"/{part}/" not in name]
        root = write_tree(tmp_path / part, names)
        with pytest.raises(RuntimeError) as error:
            dataset(root=root)
        message = str(error.value)
        place = os.path.join(root, folder)
        assert message.startswith(f'"{place}/{part}" is not found: {dataset.__name__}')
        there = sorted({"bounding_box_train", "query", "bounding_box_test"} - {part})
        assert f"{place} holds {', '.join(there)}." in message
        assert "FASTREID_DATASETS" in message and "FolderReID" in message


def test_a_data_root_that_is_missing_is_named(tmp_path):
    write_picture(tmp_path / "elsewhere" / "a.jpg")
    for dataset in (DukeMTMC, MSMT17):
        with pytest.raises(RuntimeError, match=f"{re.escape(str(tmp_path))} holds elsewhere"):
            dataset(root=str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # FastReID's own, of another structure
        with pytest.raises(RuntimeError, match="bounding_box_train, .*query"):
            Market1501(root=str(tmp_path))


def test_a_data_set_without_pictures():
    with pytest.raises(ValueError, match="DATASETS.NAMES has training pictures"):
        CommDataset([], relabel=True)
    with pytest.raises(ValueError, match="DATASETS.TESTS has no queries, no gallery"):
        CommDataset([], relabel=False)


# What cannot be evaluated: {case: (names, what the message says)}
HOPELESS = {
    "one camera": (
        small_market(cameras=(1,), shots=3),
        "3 of the 3 queries of Market1501 have no right answer in the gallery: 3 have their "
        "identity there by their own camera alone, which FastReID leaves out, and 0 not at all "
        "(1 cameras).",
    ),
    "the identities' own cameras": (
        in_market(
            market_names(),
            ["0011_c1s1_0_00.jpg", "0012_c2s1_0_00.jpg"],
            ["0011_c1s1_1_00.jpg", "0012_c2s1_1_00.jpg"],
        ),
        "2 have their identity there by their own camera alone, which FastReID leaves out, and 0 "
        "not at all (2 cameras).",
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
    with pytest.raises(ValueError) as error:
        DefaultTrainer(cfg)
    assert told in str(error.value)
    assert "FolderReID" in str(error.value)
    with pytest.raises(ValueError):  # and so does an evaluation alone, before it embeds anything
        DefaultTrainer.build_test_loader(cfg, "Market1501")


def test_queries_without_an_answer_are_told(rooted, make_cfg, said):
    names = small_market()
    rooted([n for n in names if not ("bounding_box_test/0011" in n and "_c2" in n)])
    DefaultTrainer(make_cfg(MARKET_BOTH))
    assert [line for line in said() if "queries" in line] == [
        "1 of the 6 queries of Market1501 have no right answer in the gallery: 1 have their "
        "identity there by their own camera alone, which FastReID leaves out, and 0 not at all "
        "(2 cameras). They do not count."
    ]


def test_a_data_set_without_queries_is_refused(make_cfg):
    cfg = make_cfg({"DATASETS.TESTS": ("TrainingOnlyReID",)})

    def training_only(**kwargs):
        data = DATASET_REGISTRY.get("SyntheticReIDTiny")(**kwargs)
        data._query = []
        return data

    DATASET_REGISTRY._obj_map["TrainingOnlyReID"] = training_only
    try:
        with pytest.raises(ValueError, match="TrainingOnlyReID has no query pictures .0 queries, "):
            DefaultTrainer(cfg)
        with pytest.raises(ValueError):  # 0 evaluates after the last epoch
            DefaultTrainer(
                make_cfg({"DATASETS.TESTS": ("TrainingOnlyReID",), "TEST.EVAL_PERIOD": 0})
            )
    finally:
        del DATASET_REGISTRY._obj_map["TrainingOnlyReID"]


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
        print("looked", draw())
        return super().build_test_loader(cfg, name)

    @classmethod
    def build_train_loader(cls, cfg):
        raise SystemExit(draw())

def draw():
    return random.random(), np.random.rand(), float(torch.rand(1))

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
    with pytest.raises(KeyError, match="NoSuchReID"):
        DefaultTrainer(make_cfg({"DATASETS.TESTS": ("NoSuchReID",)}))


def test_one_picture_of_an_identity_and_labels_from_anywhere(rooted, make_cfg):
    rooted(
        in_market(
            [*market_names([7], (1, 2)), "0900_c1s1_0_00.jpg", *market_names([31], (2, 3))],
            market_names([50, 60], (1, 2), 1),
            market_names([50, 60], (1, 2), 2),
        )
    )
    trainer = DefaultTrainer(make_cfg(MARKET_BOTH))
    assert trainer.data_loader.dataset.num_classes == 3
    results = trainer.train()
    assert 0 < results["mAP"] <= 100


def test_what_fastreid_says_of_itself(tmp_path):
    """The defects, without the repairs."""
    from fastreid.data.datasets.bases import Dataset
    from fastreid.data.samplers import NaiveIdentitySampler, TrainingSampler
    from fastreid.evaluation.rank import evaluate_rank

    root = write_tree(tmp_path, small_market())
    data = Market1501(root=root)
    with pytest.raises(RuntimeError) as error:
        Dataset.check_before_run.__stock__(data, "gone")
    assert str(error.value) == '"gone" is not found'
    with pytest.raises(AssertionError, match="^Dataset folder not found$"):
        MSMT17.__init__.__stock__(data, root=root)
    with pytest.raises(ValueError, match="DATALOADER.SAMPLER_TRAIN TrainingSampler"):
        NaiveIdentitySampler([], 4, 2, seed=0)
    with pytest.raises(AssertionError, match="^$"):
        TrainingSampler(0, seed=0)
    one = torch.zeros(1, dtype=torch.int64).numpy()
    with pytest.raises(AssertionError, match="all query identities do not appear in gallery"):
        evaluate_rank(torch.zeros(1, 1).numpy(), one, one, one, one, use_cython=False)
