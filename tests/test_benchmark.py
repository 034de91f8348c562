"""The benchmark counts right and runs; what it measures is no matter of pass or fail."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch

TOOLS = Path(__file__).resolve().parent.parent / "tools"


@pytest.fixture
def harness(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    from benchmarks import harness

    return harness


def test_cases_take_turns_and_the_first_round_does_not_count(harness):
    calls = []
    cases = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    times = harness.interleaved(cases, budget=0, before=lambda: calls.append("-"))
    rounds = harness.LEAST_REPEATS
    assert calls == ["-", "a", "-", "b"] * (rounds + 1)
    assert len(times["a"]) == len(times["b"]) == rounds


def test_the_ratio_is_that_of_the_rounds(harness):
    # The machine was ten times slower in the second round; both suffered.
    times = {"a": [2.0, 20.0, 2.0], "b": [1.0, 10.0, 1.0]}
    assert harness.ratio(times, "a", "b") == 2.0
    assert harness.medians(times) == {"a": 2.0, "b": 1.0}


def test_peak_memory_is_the_most_held_at_once(harness):
    def function():
        first = torch.zeros(1000)
        second = first + 1
        del first
        return second + 1

    # The scalars of the additions are tensors of four bytes each.
    assert 8000 <= harness.peak_bytes(function) <= 8064


def test_traffic(harness):
    matrix, bias, other = torch.randn(8, 33), torch.randn(33), torch.randn(8, 5)
    with harness.Traffic(33) as traffic:
        torch.addmm(bias, other, torch.randn(33, 5).t())  # randn, the bias copied, the product
        matrix.t() @ other  # no pass of its own
        matrix.exp().sum(1)  # read, write; read
        matrix[torch.zeros(8, dtype=torch.int64)]  # zeros; read, write
        other * 2
    assert traffic.launches == 9
    assert traffic.moved == 8 * 33 * (1 + 3 + 2) + 33 * 5


@pytest.mark.today_only
def test_kernels_are_measured(harness, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(TOOLS))
    import benchmark
    from benchmarks import kernels

    monkeypatch.setattr(kernels, "SIZES", [(8, 37, 5)])
    monkeypatch.setattr(kernels, "can_compile", lambda: False)  # half a minute of C++
    path = tmp_path / "numbers.json"
    command = ["benchmark.py", "kernels", "--seconds", "0", "--threads", "1", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", command)
    benchmark.main()
    result = json.loads(path.read_text())
    assert {"commit", "torch", "fastreid-rib"} <= set(result["about"])
    (numbers,) = result["kernels"]
    for name in ("fused", "eager", "published", "products"):
        assert numbers["milliseconds"][name]["both"] > 0
    assert numbers["fused / products"] > 0 and numbers["row kernel"]["kernel / pass"] > 0
    assert numbers["gpu work"]["fused"] == {"launches": 4, "passes": 3.0}
    assert numbers["gpu work"]["published"]["launches"] > 37
    # One buffer of n x K, padded, the n x D gradient, and what is of the size n.
    assert numbers["peak bytes"]["fused"] <= 4 * (8 * 48 + 8 * 5 + 3 * 8)
    assert numbers["peak bytes"]["eager"] > numbers["peak bytes"]["fused"]


def test_the_ways_agree(harness):
    from benchmarks import kernels

    problem = kernels.Problem(8, 37, 5, "cpu")
    expected = kernels.Problem.fused(problem, problem.embeddings)
    for name in ("eager", "published"):
        loss = getattr(problem, name)(problem.embeddings)
        assert torch.allclose(loss, expected, rtol=1e-4, atol=1e-5)


def test_growth_is_found_and_a_size_is_a_training(harness):
    from benchmarks import scaling

    sizes = [(1000, 10**4, 10), (1000, 10**5, 3), (10**4, 10**4, 10), (10**5, 10**4, 2)]
    results = [
        {
            "identities": c,
            "images": n,
            "iterations": i,
            "refresh": 2e-11 * scaling.operations(c, n, i) + 3e-9 * c * scaling.clusters(c),
        }
        for c, n, i in sizes
    ]
    assert scaling.growth(results) == pytest.approx([2e-11, 3e-9])
    result = scaling.train(50, 2000)
    assert 1 <= result["iterations"] <= scaling.ITERATIONS
    assert result["refresh"] > 0 and result["step"] > 0
    assert result["report"]["mutual_information"] == pytest.approx(math.log(50), abs=0.05)
    assert len(result["losses"]) == scaling.STEPS and max(result["losses"]) < 14


def test_refresh_is_compared_with_faiss(harness, monkeypatch):
    pytest.importorskip("faiss")
    from benchmarks import refresh

    for name, value in (("IMAGES", 300), ("DIMENSIONS", 16), ("IDENTITIES", 10)):
        monkeypatch.setattr(refresh, name, value)
    results = refresh.measure(2)
    for case in results.values():
        assert len(case["faiss from scratch"]["seconds"]) == 1
        assert len(case["whole refresh"]["seconds"]) == 2
        ours = case["K-means of the refresh"]["inertia"]
        assert ours == case["whole refresh"]["inertia"]
        assert ours == pytest.approx(case["faiss, same start"]["inertia"], rel=0.05)
