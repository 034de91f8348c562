"""Each defect of FastReID, and what a repair makes of it: the same case without and with it."""

import re

import cases
import numpy as np
import pytest
import torch
from cases import labels_of, reranked_beyond_the_gallery
from of_itself import outcome, report

from fastreid_rib.compat.evaluation import numpy_lacks_bool
from fastreid_rib.compat.training import zero_grad_drops_gradients

pytestmark = pytest.mark.published


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    """What FastReID does without the repairs in question: {case: its outcome}."""
    return report(cases, tmp_path_factory.mktemp("stock"))


# (case, what comes of it in FastReID, what comes of it with the repair)
ERRORS = [
    (cases.empty_epoch, "ZeroDivisionError", "ValueError: .*Write a smaller SOLVER.IMS_PER_BATCH"),
    (cases.one_identity, "ZeroDivisionError", "ValueError: .*NUM_CLASSES is 1: the training set"),
    (cases.sync_bn, "(?!.*NORM)", "ValueError: .*MODEL.BACKBONE.NORM BN and MODEL.HEADS.NORM BN"),
    (cases.amp_trainer, None, "ValueError: .*write SOLVER.AMP.ENABLED False"),
    (
        cases.load_truncated,
        "(?!ValueError)",
        "ValueError: .*model_0001.pth is truncated.* newest whole checkpoint beside it is "
        "model_0000.pth.*last_checkpoint",
    ),
    (
        cases.lost_folder,
        "(?!.*FASTREID_DATASETS)",
        "OSError: .*no-such-root is gone: is the disk .*FASTREID_DATASETS",
    ),
    (
        cases.nan_of_a_rank,
        "FloatingPointError(?!.*rank)",
        "FloatingPointError: loss_cls is nan on rank 1, at iteration 7",
    ),
]
VALUES = [
    (cases.words_of_a_test_set, "'list' object has no attr", [[0, 1, 0], [0, 1, 1]]),
    (cases.words_and_numbers, "'<' not supported", [[2, 1, 0], [1, 1, 0]]),
    (cases.drawn_ranks, "TypeError", 2 * 5),
    (cases.affine, "resample", [3, 32, 16]),
    (cases.expanded_beyond_the_gallery, "out of bounds", [[2, 5], [3, 5]]),
    (cases.regnet, "FileNotFoundError", [[1, 368, 4, 2], [1, 1280, 4, 2]]),
    (cases.ddp, "ValueError", [16, 3]),
    (cases.reranked, "Error", [12, 12]),
    (
        cases.iterate_loader,
        "RuntimeError|AssertionError",
        [[0, 1, 2, 3], [4, 5, 6, 7]],
    ),
    (
        cases.killed_writer,
        "Error",  # half a file
        ["last_checkpoint", "model_best.pth", "model_best.pth.partial"],
    ),
]


@pytest.mark.parametrize("row", ERRORS, ids=lambda row: row[0].__name__)
def test_an_error_says_what_to_write(row, stock):
    case, before, after = row
    by_itself = stock[case.__name__]
    assert by_itself is None if before is None else re.match(before, by_itself, re.S), by_itself
    assert re.match(after, outcome(case), re.S), outcome(case)


@pytest.mark.parametrize("row", VALUES, ids=lambda row: row[0].__name__)
def test_what_failed_works(row, stock):
    case, before, after = row
    assert re.search(before, stock[case.__name__]), stock[case.__name__]
    assert case() == after


def test_without_the_repair_nothing_is_learned(stock):
    if zero_grad_drops_gradients():
        assert len(set(stock["learned"])) == 1
    else:
        assert stock["learned"] == cases.learned()
    assert stock["pair_as_optimizer"].startswith(
        "TypeError"
    )  # test_compat_training.py has the rest


def test_the_compiler_that_fails_ends_fastreid(stock):
    assert stock["failing_make"].startswith("SystemExit")  # test_compat_evaluation.py has the rest


def test_samplers_of_fastreid_never_fill_a_batch(stock):
    assert stock["batches_that_never_come"] == [False, False]
    assert stock["reweighted"] is not True


def test_a_teacher_is_where_the_student_is(stock):
    assert stock["teacher_of_another_device"] != "cpu"
    assert cases.teacher_of_another_device() == "cpu"


def test_labels_that_worked_are_left_as_they_are():
    assert labels_of((7, 3), (-1, 2), relabel=False) == [[7, -1], [3, 2]]
    assert labels_of(("b", "y"), ("a", "x"), relabel=True) == [[1, 0], [1, 0]]


def test_pictures_of_one_bit(stock):
    refused = np.__version__ >= "2"
    expected = "ValueError" if refused else "torch.float32"
    assert stock["black_and_white"].startswith(expected)
    assert cases.black_and_white() == "torch.float32"


def test_a_cosine_after_a_warm_up_as_long_as_the_training(stock):
    assert stock["annealed_after_a_long_warm_up"].startswith("ZeroDivisionError")
    assert 0 < cases.annealed_after_a_long_warm_up() < 1e-3


def test_cuhk03_protocol(stock):
    if numpy_lacks_bool():
        assert stock["bool_of_cuhk03"].startswith("AttributeError")
    assert cases.bool_of_cuhk03() == [[1.0] * 50, 1.0]
    assert numpy_lacks_bool() == (not hasattr(np, "bool"))  # NumPy itself is untouched


def test_small_gallery(stock):
    # "inhomogeneous" since NumPy 1.24; older ones make objects of the rows and fail at the next.
    assert stock["small_gallery"].startswith("ValueError")
    for cython in (False, True):
        cmc, precision, penalty = cases.small_gallery(cython)
        # The first query finds its one picture second, the other its two first and third.
        np.testing.assert_allclose(cmc, [0.5] + [1.0] * 49)
        np.testing.assert_allclose(precision, [1 / 2, (1 + 2 / 3) / 2], rtol=1e-6)
        np.testing.assert_allclose(penalty, [1 / 2, 2 / 3], rtol=1e-6)


def test_re_ranking_looks_at_no_more_than_there_is(stock):
    twenty, six = stock["reranked_beyond_the_gallery"]
    assert twenty != six, "the last picture was counted many times"
    assert reranked_beyond_the_gallery() == [six, six]


def test_numpy_numbers_load(stock):
    from fastreid_rib.base.safe_reads import loads_weights_only

    if loads_weights_only():
        assert stock["load_scalars"].startswith("UnpicklingError")
    else:
        assert stock["load_scalars"] == [71.5, 3]
        assert stock["load_code"] is True, "this torch ran it"
    assert cases.load_scalars() == [71.5, 3]


def test_classes_that_are_mended_for_fastreid_alone():
    from fastreid.engine import defaults
    from fastreid.layers.batch_norm import SyncBatchNorm

    ddp = torch.nn.parallel.DistributedDataParallel
    assert issubclass(defaults.DistributedDataParallel, ddp)
    assert defaults.DistributedDataParallel is not ddp
    assert not hasattr(torch.nn.SyncBatchNorm.forward, "__stock__")
    assert hasattr(SyncBatchNorm.forward, "__stock__")
