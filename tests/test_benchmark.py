"""The benchmarks count right and run; what they measure is no matter of pass or fail."""

import json
import sys
from pathlib import Path

import pytest
import torch

TOOLS = Path(__file__).resolve().parent.parent / "tools"


@pytest.fixture(autouse=True)
def tools(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Runs a benchmark by its name; gives the numbers that it writes."""

    def run(name, *options):
        import benchmark

        path = tmp_path / "numbers.json"
        command = ["benchmark.py", name, *options, "--json", str(path)]
        monkeypatch.setattr(sys, "argv", command)
        benchmark.main()
        return json.loads(path.read_text())

    return run


def test_cases_take_turns_and_the_first_round_does_not_count():
    from benchmarks import harness

    calls = []
    cases = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    times = harness.interleaved(cases, budget=0, before=lambda: calls.append("-"))
    rounds = harness.LEAST_REPEATS
    assert calls == ["-", "a", "-", "b"] * (rounds + 1)
    assert len(times["a"]) == len(times["b"]) == rounds

    # The machine was ten times slower in the second round; both suffered.
    times = {"a": [2.0, 20.0, 2.0], "b": [1.0, 10.0, 1.0]}
    assert harness.ratio(times, "a", "b") == 2.0
    assert harness.medians(times) == {"a": 2.0, "b": 1.0}


@pytest.mark.today_only
def test_kernels_are_measured(measured, monkeypatch):
    from benchmarks import kernels

    monkeypatch.setattr(kernels, "SIZES", [(8, 37, 5)])
    monkeypatch.setattr(kernels, "can_compile", lambda: False)  # half a minute of C++
    result = measured("kernels", "--seconds", "0", "--threads", "1")
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


def test_the_ways_agree():
    from benchmarks import kernels

    problem = kernels.Problem(8, 37, 5, "cpu")
    expected = kernels.Problem.fused(problem, problem.embeddings)
    for name in ("eager", "published"):
        loss = getattr(problem, name)(problem.embeddings)
        assert torch.allclose(loss, expected, rtol=1e-4, atol=1e-5)


@pytest.fixture
def attention(monkeypatch):
    """The benchmark of attention, on tiny inputs."""
    from benchmarks import attention

    tiny = {"BATCH": 8, "MAP": (64, 4, 2), "VIT_TOKENS": 9, "WIDTHS": (16,), "IMAGE_SIZE": [32, 32]}
    for name, value in tiny.items():
        monkeypatch.setattr(attention, name, value)
    return attention


def test_attention_is_measured(attention, measured, monkeypatch):
    steps = {"SE, head": attention.STEPS["SE, head"]}
    monkeypatch.setattr(attention, "STEPS", steps)
    results = measured("attention", "--seconds", "0", "--pairs", "2")["attention"]
    for place, base in (("map", "SelfAttention"), ("block", "block")):
        assert results[place][base]["ratio"] == 1
        for result in results[place].values():
            assert min(result["milliseconds"].values()) > 0 and result["ratio"] > 0
    (pairs,) = results["steps_without_and_with"].values()
    assert [len(pair) for pair in pairs] == [2, 2] and min(map(min, pairs)) > 0

    channels, width = 64, 16
    parameters = {name: result["parameters"] for name, result in results["map"].items()}
    assert parameters["DCS"] == 2 * (channels**2 + channels)
    reduced = 2 * channels * width + channels
    assert parameters["DCS, width 16"] == reduced + width**2 + width
    assert parameters["Multihead"] == 4 * (channels**2 + channels)
    # At least the result and the gradients of the input and of the parameters.
    numbers = 2 * 8 * channels * 4 * 2
    for result in results["map"].values():
        assert result["peak bytes"] >= 4 * (numbers + result["parameters"])


def test_a_supernet_is_measured(measured, monkeypatch, capsys):
    from benchmarks import search

    name = "the paper's, DEPTH 0.25x"
    monkeypatch.setattr(search, "BACKBONES", {name: search.BACKBONES[name]})
    monkeypatch.setattr(search, "BATCH", 8)
    (rounds,) = measured("search", "--pairs", "2")["search"]["rounds"].values()
    assert len(rounds) == 2 and all(min(times.values()) > 0 for times in rounds)
    assert all(set(times) == {"widest", "supernet", "half"} for times in rounds)
    assert "step of supernet / widest" in capsys.readouterr().out
