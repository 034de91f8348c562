"""Networks to compare a derived one with: they cost what it may, and start where it does."""

import sys
from ast import literal_eval

import pytest
import torch

pytestmark = pytest.mark.all_only


@pytest.fixture
def controls(tools):
    import search_controls

    return search_controls


@pytest.fixture
def config(tools):
    return str(tools.parent / "configs" / "search" / "synthetic.yml")


@pytest.mark.parametrize("target", [0.5, 0.7])
def test_controls_cost_at_most_as_much_as_the_target(controls, config, target):
    cost = controls.supernet(config, []).search.cost
    limit = target * cost.widest
    uniform, drawn = controls.uniform(cost, limit), controls.random(cost, limit, 5)
    assert all(0.93 * limit < cost.of(widths) <= limit for widths in (uniform, *drawn))
    assert len({tuple(widths.values()) for widths in drawn}) == 5
    assert drawn == controls.random(cost, limit, 5) != controls.random(cost, limit, 5, seed=1)
    shares = [width / cost.space.groups[group][0] for group, width in uniform.items()]
    assert max(shares) - min(shares) < 0.2


def test_controls_start_from_slices_of_the_supernet(
    controls, config, monkeypatch, tmp_path, capsys
):
    changes = ["MODEL.HEADS.NUM_CLASSES", 7]
    torch.manual_seed(0)
    one = controls.supernet(config, changes)
    path = tmp_path / "model_final.pth"
    torch.save({"model": one.state_dict(), "epoch": 3}, path)
    command = ["controls", "--config-file", config, "--random", "1", "--supernet", str(path)]
    monkeypatch.setattr(sys, "argv", command)
    controls.main()
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "uniform" in line)
    widths = literal_eval(line.split("  ")[-1])
    cut = torch.load(tmp_path / "uniform.pth", weights_only=True)["model"]
    whole = one.state_dict()
    name = "backbone.stage2.1.conv.6.weight"
    rows, columns = widths[1], 6 * widths[1]
    assert torch.equal(cut[name], whole[name][:rows, :columns]) and rows < len(whole[name])
    assert torch.equal(cut["heads.weight"], whole["heads.weight"])
    assert (tmp_path / "random_0.pth").is_file()


def test_a_checkpoint_of_another_network_is_not_cut_from_random_weights(controls, config, tmp_path):
    weights = controls.supernet(config, ["MODEL.HEADS.NUM_CLASSES", 7]).state_dict()
    path = tmp_path / "model_final.pth"
    del weights["backbone.stage2.1.conv.6.weight"]
    torch.save({"model": weights}, path)
    with pytest.raises(SystemExit, match="lacks backbone.stage2.1.conv.6.weight. Give the"):
        controls.supernet(config, [], str(path))
