"""Occluded and free queries apart: numbers by hand, FastReID's evaluation, the list, its errors."""

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
    reid_evaluation,
    testing,
)

from fastreid_rib.data.synthetic import SyntheticReIDTiny
from fastreid_rib.data.synthetic_folder import QUERY, plan
from fastreid_rib.integration import config, evaluation
from fastreid_rib.integration.evaluation import which_are_occluded

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


# Five queries and four gallery pictures; the third is in no gallery.
Q_PIDS, Q_CAMS = [1, 2, 9, 1, 3], [0, 1, 0, 2, 0]
G_PIDS, G_CAMS = [1, 2, 1, 3], [0, 0, 1, 1]
DIST = np.array([[0.0, 0.1, 0.2, 0.3], [0.2, 0.1, 0.3, 0.4], *[[0.1, 0.2, 0.3, 0.4]] * 3], "f")
OCCLUDED = np.array([True, False, True, True, False])


@pytest.fixture
def evaluate(make_small_cfg, monkeypatch):
    """FastReID's evaluator on distances that are given, with the parts."""

    def run(dist, occluded=OCCLUDED, changes=None, jaccard=None):
        monkeypatch.setattr(
            reid_evaluation,
            "build_dist",
            lambda *args, metric="", **kwargs: jaccard if metric == "jaccard" else dist,
        )
        evaluator = ReidEvaluator(make_small_cfg(changes), len(dist))
        evaluator.reset()
        targets, cameras = torch.tensor(Q_PIDS + G_PIDS), torch.tensor(Q_CAMS + G_CAMS)
        inputs = {"targets": targets, "camids": cameras}
        evaluator.process(inputs, torch.ones(len(targets), 2))
        return evaluation.evaluate_parts(evaluator.evaluate, occluded)

    return run


def test_what_is_ranked_is_what_fastreid_ranks(evaluate):
    rerank = {"TEST.RERANK.ENABLED": True, "TEST.RERANK.LAMBDA": 0.0}  # the Jaccard distance alone
    assert evaluate(-DIST, changes=rerank, jaccard=DIST) == evaluate(DIST)
    assert evaluate(-DIST, changes=rerank, jaccard=-DIST) != evaluate(DIST)


def test_a_part_without_right_answers_is_left_out(evaluate, said):
    stock, third = rank.evaluate_rank, np.arange(5) == 2
    results = evaluate(DIST, occluded=third)
    assert [key for key in results if "/" in key] == [f"free/{m}" for m in METRICS]
    # The third is dropped from FastReID's row too, so that this is the same.
    assert {m: results[f"free/{m}"] for m in METRICS} == {m: results[m] for m in METRICS}
    assert rank.evaluate_rank is stock
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
    assert which(make_small_cfg({**SILENT, **listing(tmp_path, every)})) is None
    del said[:]
    for names, mask, expected in (
        (["typo.jpg"], None, no_parts + "none of the 1 names in TEST.OCCLUDED, such as typo.jpg,"),
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
        (b" \n\n", "names none; write ''"),
        (b"\x89PNG\xff", "cannot be read: 'utf-8' codec"),
    ):
        if content is not None:
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
