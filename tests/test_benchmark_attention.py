"""The attention benchmark measures what its tables say; how fast it is, is no matter here."""

import json
import sys
from pathlib import Path

import pytest
import torch

TOOLS = Path(__file__).resolve().parent.parent / "tools"


@pytest.fixture
def attention(monkeypatch):
    """The benchmark, on tiny inputs."""
    monkeypatch.syspath_prepend(str(TOOLS))
    from benchmarks import attention

    tiny = {
        "BATCH": 8,
        "MAP": (64, 4, 2),
        "VIT_TOKENS": 9,
        "WIDTHS": (16,),
        "IMAGE_SIZE": [32, 32],
    }
    for name, value in tiny.items():
        monkeypatch.setattr(attention, name, value)
    return attention


def test_everything_is_measured(attention, monkeypatch, tmp_path, capsys):
    import benchmark

    steps = {"SE, head": attention.STEPS["SE, head"]}
    monkeypatch.setattr(attention, "STEPS", steps)
    path = tmp_path / "numbers.json"
    command = ["benchmark.py", "attention", "--seconds", "0", "--pairs", "2", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", command)
    benchmark.main()
    results = json.loads(path.read_text())["attention"]
    printed = capsys.readouterr().out
    for place, base in (("map", "SelfAttention"), ("block", "block")):
        assert results[place][base]["ratio"] == 1
        for name, result in results[place].items():
            assert min(result["milliseconds"].values()) > 0 and result["ratio"] > 0
            assert f"  {name} " in printed
    pairs = results["steps_without_and_with"]
    assert pairs.keys() == steps.keys()
    assert all(len(pair) == 2 and min(pair) > 0 for both in pairs.values() for pair in both)
    assert [len(both) for both in pairs.values()] == [2]

    channels, width = 64, 16
    parameters = {name: result["parameters"] for name, result in results["map"].items()}
    assert parameters["SelfAttention"] == channels**2 + channels
    assert parameters["DCS"] == 2 * (channels**2 + channels)
    reduced = 2 * channels * width + channels
    assert parameters["SelfAttention, width 16"] == reduced
    assert parameters["DCS, width 16"] == reduced + width**2 + width
    assert parameters["Multihead"] == 4 * (channels**2 + channels)
    block = results["block"]
    masks = block["block with DCS"]["parameters"] - block["block"]["parameters"]
    assert masks == 768**2 + 768
    # At least the result and the gradients of the input and of the parameters.
    numbers = 2 * 8 * channels * 4 * 2
    for result in results["map"].values():
        assert result["peak bytes"] >= 4 * (numbers + result["parameters"])


def test_the_steps_differ_in_the_attention_alone(attention, monkeypatch):
    from benchmarks import bot

    built, stock = [], bot.build_model
    monkeypatch.setattr(bot, "build_model", lambda cfg: built.append(stock(cfg)) or built[-1])
    monkeypatch.setattr(attention, "seconds", lambda step: 0)
    monkeypatch.setattr(attention, "STEPS", {"DCS": attention.STEPS["DCS, width 256, head"]})
    attention.measure_steps(1)
    plain, attending = built
    added = attending.state_dict().keys() - plain.state_dict().keys()
    assert added and all(name.startswith("heads.attention.") for name in added)
    assert attending.heads.attention.width == 256


def test_multihead_is_torch_s_on_the_positions_of_a_map(attention):
    module, x = attention.Multihead(8, 2), torch.randn(3, 8, 4, 2)
    tokens = x.flatten(2).transpose(1, 2)
    expected = module(tokens).transpose(1, 2).reshape(x.shape)
    assert torch.allclose(module(x), expected) and not torch.allclose(module(x), x)
