import importlib
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fastreid_rib.compat import evaluation


@pytest.fixture
def ranking(tmp_path, monkeypatch):
    """A copy of FastReID's Cython folder as a package of its own, not compiled yet."""
    import fastreid

    folder = tmp_path / "ranking_copy"
    folder.mkdir()
    (folder / "__init__.py").write_text("def compile_helper():\n    raise SystemExit(1)\n")
    source = Path(fastreid.__file__).parent / "evaluation" / "rank_cylib"
    for name in ("rank_cy.pyx", "roc_cy.pyx"):
        shutil.copy(str(source / name), str(folder))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("ranking_copy")
    for name in [n for n in sys.modules if n.startswith("ranking_copy")]:
        del sys.modules[name]


def can_compile():
    try:
        import Cython  # noqa: F401
        import setuptools  # noqa: F401
    except ImportError:
        return False
    return any(shutil.which(compiler) for compiler in ("cc", "gcc", "clang"))


@pytest.mark.skipif(not can_compile(), reason="needs Cython, setuptools and a C compiler")
def test_it_is_compiled_into_the_cache(ranking, tmp_path, monkeypatch):
    from fastreid.evaluation.rank import eval_market1501

    monkeypatch.setenv("CFLAGS", "-O0")  # it has to be right, not fast
    monkeypatch.setenv("FASTREID_RIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path) + os.pathsep + os.environ["PATH"])
    python3 = tmp_path / "python3"  # not the running interpreter, and good for nothing
    python3.write_text("#!/bin/sh\nexit 1\n")
    python3.chmod(0o700)
    evaluation.compile_ranking(ranking)
    ranking.compile_helper()
    assert sorted(Path(ranking.__file__).parent.glob("*.so")) == []
    from ranking_copy.rank_cy import evaluate_cy

    rng = np.random.RandomState(0)
    case = (
        rng.rand(6, 40).astype(np.float32),
        rng.randint(0, 5, 6),
        rng.randint(0, 5, 40),
        rng.randint(0, 2, 6),
        rng.randint(0, 2, 40),
        10,
    )
    for ours, theirs in zip(evaluate_cy(*case, False), eval_market1501(*case)):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)

    # The next process finds it, unless somebody else could have put it there.
    paths = [str(tmp_path), str(Path(evaluation.__file__).parents[2])]
    found = (
        f"import sys; sys.path[:0] = {paths!r}; import ranking_copy;"
        "from fastreid_rib.compat import evaluation;"
        "evaluation.compile_ranking(ranking_copy); print(len(ranking_copy.__path__))"
    )
    command = [sys.executable, "-c", found]
    env = dict(os.environ, FASTREID_RIB_DISABLE="all")
    assert subprocess.check_output(command, env=env, text=True).strip() == "2"
    os.chmod(evaluation._cache_folder(ranking.__path__[0]), 0o777)
    assert subprocess.check_output(command, env=env, text=True).strip() == "1"


def test_a_failing_compiler_is_one_warning(ranking, monkeypatch, caplog):
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    evaluation.compile_ranking(ranking)
    with caplog.at_level(logging.WARNING):
        ranking.compile_helper()
        ranking.compile_helper()
    assert ["(exit status 1)" in record.getMessage() for record in caplog.records] == [True]
    assert list(Path(ranking.__file__).parent.glob("*.so")) == []


def test_fastreids_evaluator_calls_the_repaired_one():
    from fastreid.evaluation import rank_cylib, reid_evaluation

    assert reid_evaluation.compile_helper is rank_cylib.compile_helper
    assert rank_cylib.compile_helper.__stock__.__module__ == "fastreid.evaluation.rank_cylib"


@pytest.mark.parametrize("use_cython", [False, True])
def test_a_small_gallery(use_cython):
    """Two queries, of which one must leave out the nearest picture, its own camera's."""
    from fastreid.evaluation.rank import evaluate_rank

    distances = np.array([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]], np.float32)
    gallery, cameras = np.array([0, 1, 0, 1]), np.array([0, 1, 1, 1])
    cmc, precision, penalty = evaluate_rank(
        distances, np.array([0, 1]), gallery, np.array([0, 0]), cameras, use_cython=use_cython
    )
    # The first query finds its one picture second, the other its two first and third.
    np.testing.assert_allclose(cmc, [0.5] + [1.0] * 49)
    np.testing.assert_allclose(precision, [1 / 2, (1 + 2 / 3) / 2], rtol=1e-6)
    np.testing.assert_allclose(penalty, [1 / 2, 2 / 3], rtol=1e-6)


def test_expansion_and_re_ranking_look_at_no_more_than_there_is():
    from fastreid.evaluation.query_expansion import aqe
    from fastreid.utils.compute_dist import compute_jaccard_distance

    query, gallery = aqe(torch.eye(5)[:2], torch.eye(5)[2:], 1, 99, 0.0)
    assert (query.shape, gallery.shape) == ((2, 5), (3, 5))
    features = torch.rand(6, 4, generator=torch.Generator().manual_seed(2))
    twenty, six = (compute_jaccard_distance(features, k, 2) for k in (20, 6))  # on the CPU
    assert np.array_equal(twenty, six), "the last picture was counted many times"


def roc(features, people, queries=2):
    """TPR@FPR as FastReID's evaluator reports it; each picture has a camera of its own."""
    from fastreid.config import get_cfg
    from fastreid.evaluation import ReidEvaluator

    cfg = get_cfg()
    cfg.TEST.ROC.ENABLED = True
    evaluator = ReidEvaluator(cfg, queries)
    evaluator.reset()
    batch = {"targets": torch.tensor(people), "camids": torch.arange(len(people))}
    evaluator.process(batch, torch.tensor(features))
    found = evaluator.evaluate()
    return [found[f"TPR@FPR={rate}"] for rate in ("1e-04", "1e-03", "1e-02")]


def test_roc_of_a_perfect_model_and_of_another():
    right, other = [1.0, 0.0], [0.0, 1.0]
    gallery = [right, right, other, other]
    assert roc([right, other, *gallery], [0, 1, 0, 0, 1, 1]) == [100, 100, 100]
    # One of four right pairs is farther than every wrong one.
    assert roc([right, other, [-1.0, -0.2], *gallery[1:]], [0, 1, 0, 0, 1, 1]) == [75, 75, 75]
    # No picture is nearer to its own person than to the other one.
    assert roc([right, other, *gallery], [0, 1, 1, 1, 0, 0]) == [0, 0, 0]
