"""Occluded and free queries apart: numbers by hand, FastReID's evaluation, the list, its errors."""

import importlib
import logging
import os
import re
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from fastreid.data import build_reid_test_loader
from fastreid.data.common import CommDataset
from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.data.datasets.bases import ImageDataset
from fastreid.data.transforms import build_transforms
from fastreid.engine import DefaultTrainer
from fastreid.evaluation import (
    ReidEvaluator,
    inference_on_dataset,
    rank,
    rank_cylib,
    reid_evaluation,
    testing,
)
from fastreid.utils.checkpoint import Checkpointer

from fastreid_rib.data.synthetic import SyntheticReIDTiny
from fastreid_rib.data.synthetic_folder import QUERY, plan
from fastreid_rib.integration import config, evaluation
from fastreid_rib.integration.evaluation import PARTS, which_are_occluded

EVALUATION = "fastreid_rib.integration.evaluation"  # whose files log
METRICS = ["Rank-1", "Rank-5", "Rank-10", "mAP", "mINP"]
STOCK = [*METRICS, "metric"]
TOOLS = Path(__file__).resolve().parents[2] / "tools"


class SilentReIDTiny(ImageDataset):
    """SyntheticReIDTiny's pictures in a data set that says nothing of occlusion."""

    def __init__(self, root, **kwargs):
        same = SyntheticReIDTiny(root=root)
        super().__init__(same.train, same.query, same.gallery, **kwargs)


class HalfReIDTiny(SilentReIDTiny):
    """A third party's: it knows of three queries, and of one that is not there."""

    occluded_queries = None

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.occluded_queries = {path for path, *_ in self.query[:3]} | {"gone.jpg"}


for dataset in (SilentReIDTiny, HalfReIDTiny):
    if dataset.__name__ not in DATASET_REGISTRY._obj_map:
        DATASET_REGISTRY.register(dataset)


@pytest.fixture
def said():
    """What FastReID's printing and our module log: records. Both are cut off from caplog by now."""
    records, handler = [], logging.Handler()
    handler.emit = records.append
    loggers = logging.getLogger(testing.__name__), logging.getLogger(EVALUATION)
    levels = [log.level for log in loggers]
    for log in loggers:
        log.addHandler(handler)
        log.setLevel(logging.INFO)
    yield records
    for log, level in zip(loggers, levels):
        log.removeHandler(handler)
        log.setLevel(level)


def printed(records):
    """The rows of FastReID's tables: {what it is called: {metric: percent}}."""
    rows = OrderedDict()
    for record in records:
        if record.name == testing.__name__:
            heading, _, row = re.findall(r"\|(.*)\|", record.getMessage())
            cells = [[cell.strip() for cell in line.split("|")] for line in (heading, row)]
            (_, *names), (name, *percents) = cells
            assert name not in rows
            rows[name] = dict(zip(names, map(float, percents)))
    return rows


def warned(records):
    return [record.getMessage() for record in records if record.levelno >= logging.WARNING]


def told(records):
    return [record.getMessage() for record in records if record.name.startswith(EVALUATION)]


# Five queries and four gallery pictures, by hand. The first leaves out its own camera's picture 0
# and finds 2 second; the second and the fourth see all four; the third is in no gallery; the last
# finds its picture fourth.
Q_PIDS, Q_CAMS = [1, 2, 9, 1, 3], [0, 1, 0, 2, 0]
G_PIDS, G_CAMS = [1, 2, 1, 3], [0, 0, 1, 1]
DIST = np.array(
    [
        [0.0, 0.1, 0.2, 0.3],
        [0.2, 0.1, 0.3, 0.4],
        [0.1, 0.2, 0.3, 0.4],
        [0.1, 0.2, 0.3, 0.4],
        [0.1, 0.2, 0.3, 0.4],
    ],
    dtype=np.float32,
)
OCCLUDED = np.array([True, False, True, True, False])
BY_HAND = {  # Rank-1, Rank-5, Rank-10, mAP, mINP
    "": (2 / 4, 1, 1, (1 / 2 + 1 + 5 / 6 + 1 / 4) / 4, (1 / 2 + 1 + 2 / 3 + 1 / 4) / 4),
    "occluded/": (1 / 2, 1, 1, (1 / 2 + (1 + 2 / 3) / 2) / 2, (1 / 2 + 2 / 3) / 2),
    "free/": (1 / 2, 1, 1, (1 + 1 / 4) / 2, (1 + 1 / 4) / 2),
}


def rank_by(patch, cython):
    """Lets FastReID rank by its compiled module, which may be made only now, or in Python."""
    patch.setattr(rank, "IS_CYTHON_AVAI", cython)
    if cython:
        try:
            from fastreid.evaluation.rank_cylib.rank_cy import evaluate_cy
        except ImportError:
            rank_cylib.compile_helper()
            importlib.invalidate_caches()
            from fastreid.evaluation.rank_cylib.rank_cy import evaluate_cy
        patch.setattr(rank, "evaluate_cy", evaluate_cy, raising=False)


@pytest.fixture
def evaluate(make_small_cfg, monkeypatch):
    """FastReID's evaluator on distances that are given, with the parts, by one of its rankings."""

    def run(dist, occluded=OCCLUDED, cython=False, changes=None, pids=Q_PIDS, jaccard=None):
        rank_by(monkeypatch, cython)
        monkeypatch.setattr(
            reid_evaluation,
            "build_dist",
            lambda *args, metric="", **kwargs: jaccard if metric == "jaccard" else dist,
        )
        evaluator = ReidEvaluator(make_small_cfg(changes), len(dist))
        evaluator.reset()
        targets, cameras = torch.tensor(pids + G_PIDS), torch.tensor(Q_CAMS + G_CAMS)
        inputs = {"targets": targets, "camids": cameras}
        evaluator.process(inputs, torch.ones(len(targets), 2))
        if occluded is None:
            return evaluator.evaluate()
        return evaluation.evaluate_parts(evaluator.evaluate, occluded)

    return run


@pytest.mark.parametrize("cython", [False, True])
def test_numbers_by_hand(evaluate, cython):
    stock = rank.evaluate_rank
    results = evaluate(DIST, cython=cython)
    assert list(results) == STOCK + [f"{part}/{m}" for part in PARTS for m in METRICS]
    for part, shares in BY_HAND.items():
        found = [results[f"{part}{metric}"] / 100 for metric in METRICS]
        assert found == pytest.approx(shares, rel=1e-6), part
    assert rank.evaluate_rank is stock
    # FastReID's own row is what it is without the parts, to the last bit.
    alone = evaluate(DIST, occluded=None, cython=cython)
    assert alone == {key: results[key] for key in STOCK}


def test_what_is_ranked_is_what_fastreid_ranks(evaluate):
    rerank = {"TEST.RERANK.ENABLED": True, "TEST.RERANK.LAMBDA": 0.0}  # the Jaccard distance alone
    assert evaluate(-DIST, changes=rerank, jaccard=DIST) == evaluate(DIST)
    assert evaluate(-DIST, changes=rerank, jaccard=-DIST) != evaluate(DIST)


@pytest.mark.parametrize("cython", [False, True])
def test_a_part_without_right_answers_is_left_out(evaluate, said, cython):
    third = np.arange(5) == 2
    results = evaluate(DIST, occluded=third, cython=cython)
    assert [key for key in results if "/" in key] == [f"free/{m}" for m in METRICS]
    # The third is dropped from FastReID's row too, so that this is the same.
    assert {m: results[f"free/{m}"] for m in METRICS} == {m: results[m] for m in METRICS}
    assert warned(said) == ["No occluded query has a right answer in the gallery."]


@pytest.fixture
def model(make_small_cfg):
    """Some untrained network, in evaluation mode: what it finds is neither all nor nothing."""
    torch.manual_seed(0)
    return DefaultTrainer.build_model(make_small_cfg({"MODEL.BACKBONE.PRETRAIN": False})).eval()


def queries():
    """Names and occlusion of the tiny data set's queries, by its plan."""
    shots = [shot for shot in plan(SyntheticReIDTiny.spec) if shot.subset == QUERY]
    return [os.path.basename(shot.path) for shot in shots], [shot.occluded for shot in shots]


def alone(cfg, model, occluded):
    """FastReID's evaluation of a test set that holds no other queries."""
    data = DATASET_REGISTRY.get("SyntheticReIDTiny")(root=os.environ["FASTREID_DATASETS"])
    some = [item for item, hidden in zip(data.query, queries()[1]) if hidden == occluded]
    test_set = CommDataset(some + data.gallery, build_transforms(cfg, is_train=False), False)
    loader, count = build_reid_test_loader(
        test_set=test_set, test_batch_size=16, num_query=len(some), num_workers=0
    )
    return inference_on_dataset(model, loader, ReidEvaluator(cfg, count))


def test_fastreid_evaluates_the_parts_of_a_data_set_that_knows_them(make_small_cfg, model, said):
    cfg = make_small_cfg()
    results = DefaultTrainer.test(cfg, model)
    assert list(results)[:6] == STOCK
    rows = printed(said)
    assert list(rows) == [f"SyntheticReIDTiny{part}" for part in ("", " occluded", " free")]
    assert list(rows["SyntheticReIDTiny"]) == STOCK
    for part, hidden in (("occluded", True), ("free", False)):
        found = {metric: results[f"{part}/{metric}"] for metric in METRICS}
        expected = alone(cfg, model, hidden)
        assert found == pytest.approx({metric: expected[metric] for metric in METRICS}, abs=1e-4)
        assert rows[f"SyntheticReIDTiny {part}"] == pytest.approx(found, abs=0.0051)
    assert results["occluded/mAP"] != pytest.approx(results["free/mAP"], abs=0.1)
    count = sum(queries()[1])
    (line,) = told(said)
    assert line == (
        f"SyntheticReIDTiny: {count} of 12 queries are occluded, as the data set itself says."
    )


SILENT = {"DATASETS.TESTS": ("SilentReIDTiny",)}


def test_nothing_changes_where_nothing_is_known(make_small_cfg, model, said, monkeypatch):
    for _ in range(2):
        results = DefaultTrainer.test(make_small_cfg(SILENT), model)
        assert list(results) == STOCK
        (record,) = said  # FastReID's own table, and nothing of ours
        assert list(printed(said)) == ["SilentReIDTiny"] and record.name == testing.__name__
        del said[:]
        # And as a base class does of data sets of which some know.
        monkeypatch.setattr(SilentReIDTiny, "occluded_queries", None, raising=False)


def listing(tmp_path, names):
    path = tmp_path / "occluded.txt"
    path.write_text("\n".join(names), encoding="utf-8-sig")  # as editors on Windows do
    return {"TEST.OCCLUDED": str(path)}


def test_a_list_says_what_the_data_set_would(make_small_cfg, model, said, tmp_path):
    known = DefaultTrainer.test(make_small_cfg(), model)
    names = [name for name, hidden in zip(*queries()) if hidden]
    changes = listing(tmp_path, ["query/" + names[0], "", f"  {names[1]} ", *names[2:]])
    cfg = make_small_cfg({**SILENT, **changes})
    del said[:]
    assert DefaultTrainer.test(cfg, model) == known
    assert list(printed(said)) == [f"SilentReIDTiny{part}" for part in ("", " occluded", " free")]
    assert told(said) == [
        f"SilentReIDTiny: {len(names)} of 12 queries are occluded, as {cfg.TEST.OCCLUDED} says."
    ]


def which(cfg, dataset="SilentReIDTiny"):
    return which_are_occluded(cfg, dataset, [f"data/query/{n}" for n in queries()[0]])


def test_a_third_party_s_data_set_says_it_by_an_attribute(make_small_cfg, model, said):
    DefaultTrainer.test(make_small_cfg({"DATASETS.TESTS": ("HalfReIDTiny",)}), model)
    assert told(said) == [
        "1 of the 4 occluded queries that the data set itself says are none of HalfReIDTiny, such "
        "as gone.jpg: misspelt, or of another data set.",
        "HalfReIDTiny: 3 of 12 queries are occluded, as the data set itself says.",
    ]


def test_a_mistake_in_the_list_is_a_warning(make_small_cfg, said, tmp_path):
    no_parts = "SilentReIDTiny is not evaluated by occlusion: "
    first, every = queries()[0][0], queries()[0]
    for names, mask, expected in (
        (["typo.jpg"], None, no_parts + "none of the 1 names in TEST.OCCLUDED, such as typo.jpg,"),
        (every, None, no_parts + "all of its 12 queries are occluded, as"),
        ([first, "typo.jpg"], [True] + 11 * [False], "1 of the 2 occluded queries that "),
    ):
        cfg = make_small_cfg({**SILENT, **listing(tmp_path, names)})
        config.check(cfg)
        found = which(cfg)
        assert (found if found is None else found.tolist()) == mask
        (warning,) = warned(said)
        assert warning.startswith(expected)
        del said[:]
    assert warning.endswith(
        f"{cfg.TEST.OCCLUDED} says are none of SilentReIDTiny, such as typo.jpg: misspelt, or of "
        "another data set."
    )


def test_a_list_that_cannot_be_read_stops_before_training(make_small_cfg, tmp_path):
    path = tmp_path / "list.txt"
    for content, expected in (
        (None, "cannot be read: "),
        (b"", "names none; write ''"),
        (b" \n\n", "names none; write ''"),
        (b"\x89PNG\xff", "cannot be read: 'utf-8' codec"),
        ("a folder", "cannot be read: "),
    ):
        if content == "a folder":
            path.unlink()
            path.mkdir()
        elif content is not None:
            path.write_bytes(content)
        with pytest.raises(ValueError) as error:
            config.check(make_small_cfg({"TEST.OCCLUDED": str(path)}))
        message = str(error.value)
        assert message.startswith("TEST.OCCLUDED must be '' or a text file with the file name of ")
        assert expected in message and repr(str(path)) in message


def test_a_trainer_s_own_class_is_asked(make_small_cfg):
    class Trainer(DefaultTrainer):
        @classmethod
        def build_test_loader(cls, cfg, dataset_name):
            loader, count = super().build_test_loader(cfg, dataset_name)
            loader.dataset.img_items = loader.dataset.img_items[1:]
            return loader, count - 1

    assert Trainer.build_evaluator.__self__ is Trainer
    _, evaluator = Trainer.build_evaluator(make_small_cfg(), "SyntheticReIDTiny")
    assert evaluator.evaluate.args[1].tolist() == queries()[1][1:]


def test_two_processes_find_what_one_does(make_small_cfg, run_script, tmp_path, model, monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    from quickstart import metrics

    Checkpointer(model, str(tmp_path)).save("model")
    path = tmp_path / "config.yml"
    weights = {"MODEL.WEIGHTS": str(tmp_path / "model.pth"), "MODEL.BACKBONE.PRETRAIN": False}
    path.write_text(make_small_cfg(weights).dump())
    options = ["--config-file", str(path), "--eval-only", "--num-gpus", "2"]
    output = run_script("train_as_users_do.py", *options, env={"ARM": "1"}).stdout
    one = DefaultTrainer.test(make_small_cfg(), model)
    two = metrics(output.splitlines())
    assert list(two) == [f"SyntheticReIDTiny{part}" for part in ("", " occluded", " free")]
    for row, prefix in zip(two.values(), ("", "occluded/", "free/")):
        assert row == pytest.approx({m: one[prefix + m] for m in row}, abs=0.0051)
