"""The plugin's keys, their ranges, the names of losses, and dumps that load without the plugin."""

import pytest
import yaml

from fastreid_rib.integration import config
from fastreid_rib.settings import AttentionSettings, RIBSettings

RIB = {"MODEL.LOSSES.NAME": ("CrossEntropy", "RIB")}
DCS = {"MODEL.ATTENTION.NAME": "DCS"}
INF, NAN = float("inf"), float("nan")


def test_a_value_out_of_range_names_the_key(make_cfg):
    for node, key, value, expected in (
        ("LOSSES.RIB", "SCALE", 0.0, "take it out of MODEL.LOSSES.NAME"),
        ("LOSSES.RIB", "BETA", INF, "> 0"),
        ("LOSSES.RIB", "RELEVANCE", "half", "one of full, paper"),
        ("LOSSES.RIB", "SMOOTHING", 1.0, ">= 0 and < 1"),
        ("LOSSES.RIB", "NUM_CLUSTERS", -1, "0: as many as identities"),
        ("LOSSES.RIB", "BACKEND", "gpu", "one of auto, cuda, cpu, torch"),
        ("ATTENTION", "NAME", "dcs", "one of DCS, SelfAttention, SE, ECA, CBAM"),
        ("ATTENTION", "PLACEMENT", (), 'such as ("layer3", "head")'),
        ("ATTENTION", "PLACEMENT", ("head", "head"), "without repetitions"),
        ("ATTENTION", "PLACEMENT", (3,), "a tuple of places"),
        ("ATTENTION", "WIDTH", -1, "0: all channels"),
        ("ATTENTION", "FINAL_TEMPERATURE", NAN, "> 0"),
        ("ATTENTION", "MASK_BIAS", 30.0, "between -20 and 20"),
        ("ATTENTION", "KERNEL_SIZE", 4, "odd"),
    ):
        with pytest.raises(ValueError) as error:
            config.check(make_cfg({**RIB, **DCS, f"MODEL.{node}.{key}": value}))
        message = str(error.value)
        assert message.startswith(f"MODEL.{node}.{key} must be"), message
        assert expected in message and repr(value) in message


def test_seed_out_of_range(make_cfg):
    for seed in (-2, 2**32):
        with pytest.raises(ValueError, match="SEED must be"):
            config.check(make_cfg({"SEED": seed}))


def test_what_is_gone_is_refused_with_what_to_write(make_cfg, tmp_path):
    file = tmp_path / "config.yml"
    for node, settings in (("LOSSES.RIB", RIBSettings), ("ATTENTION", AttentionSettings)):
        for name, instead in settings.gone.items():
            key = f"MODEL.{node}.{name.upper()}"
            said = f"^.The key {key} is gone. {instead.split('`')[0]}"
            with pytest.raises(KeyError, match=said):
                make_cfg({key: 0})
            nested = {name.upper(): 0}
            for part in reversed(f"MODEL.{node}".split(".")):
                nested = {part: nested}
            file.write_text(yaml.safe_dump(nested))
            with pytest.raises(KeyError, match=said):
                make_cfg().merge_from_file(str(file))
    for changes in (
        {"MODEL.ATTENTION.NAME": "CAM"},
        {"MODEL.HEADS.NAME": "ChannelAttentionHead", "MODEL.ATTENTION.CHANNEL": "CAM"},
    ):
        with pytest.raises(ValueError, match="but is 'CAM'. CAM is gone: write SE, ECA or CBAM"):
            config.check(make_cfg(changes))


def test_keys_of_rib_are_not_checked_where_rib_is_not_named(make_cfg):
    config.check(make_cfg({"MODEL.LOSSES.RIB.SCALE": -1.0}))


def test_short_names_stand_for_fastreid_s(make_cfg):
    cfg = make_cfg({"MODEL.LOSSES.NAME": ("CrossEntropy", "Triplet", "Circle", "Cosface", "RIB")})
    assert config.loss_names(cfg) == (
        "CrossEntropyLoss",
        "TripletLoss",
        "CircleLoss",
        "Cosface",
        "RIBLoss",
    )
    twice = make_cfg({"MODEL.LOSSES.NAME": ("CrossEntropyLoss", "CrossEntropy", "RIBLoss")})
    assert config.loss_names(twice) == ("CrossEntropyLoss", "RIBLoss")
    assert not config.names_rib(make_cfg())


def test_an_unknown_loss_stops_with_a_guess(make_cfg):
    for written, meant in (
        ("CrossEntropyLos", "CrossEntropyLoss"),
        ("rib", "RIB"),
        ("triplet", "Triplet"),
    ):
        with pytest.raises(KeyError) as error:
            config.loss_names(make_cfg({"MODEL.LOSSES.NAME": ("CrossEntropy", written)}))
        assert f"'{written}'" in str(error.value)
        assert f"Did you mean '{meant}'?" in str(error.value)
        assert "TripletLoss" in str(error.value)
    circle = {"MODEL.LOSSES.NAME": ("Circle",), "MODEL.META_ARCHITECTURE": "MGN"}
    with pytest.raises(KeyError, match="MGN does not know"):
        config.loss_names(make_cfg(circle))


def test_other_projects_keep_their_names(make_cfg):
    changes = {
        "MODEL.LOSSES.NAME": ("BinaryCrossEntropyLoss", "Triplet", "RIB"),
        "MODEL.META_ARCHITECTURE": "AttrBaseline",
    }
    assert config.loss_names(make_cfg(changes)) == ("BinaryCrossEntropyLoss", "Triplet", "RIBLoss")


def test_dumps_hold_plugin_keys_only_where_they_differ(make_cfg):
    plain = yaml.safe_load(make_cfg(base={}).dump())
    assert "SEED" not in plain and "OCCLUDED" not in plain["TEST"]
    assert "RIB" not in plain["MODEL"]["LOSSES"] and "ATTENTION" not in plain["MODEL"]
    changes = {"SEED": 3, "MODEL.LOSSES.RIB.BETA": 7.0, **DCS, "MODEL.ATTENTION.WIDTH": 64}
    cfg = make_cfg(changes, base={})
    cfg.freeze()
    changed = yaml.safe_load(cfg.dump())
    assert changed["SEED"] == 3
    assert changed["MODEL"]["LOSSES"]["RIB"] == {"BETA": 7.0}
    assert changed["MODEL"]["ATTENTION"] == {"NAME": "DCS", "WIDTH": 64}
    assert cfg.SEED == 3 and set(cfg.TEST) >= {"OCCLUDED"}, "dump changed the config"


def test_a_dump_loads_without_the_plugin_and_back(make_cfg, run_script, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(make_cfg({**RIB, "SEED": -1}).dump())
    code = (
        "from fastreid.config import get_cfg\n"
        f"cfg = get_cfg(); cfg.merge_from_file({str(path)!r})\n"
        "assert 'SEED' not in cfg and 'RIB' not in cfg.MODEL.LOSSES\n"
        "print(cfg.MODEL.LOSSES.NAME)"
    )
    result = run_script("-c", code, env={"FASTREID_RIB_DISABLE": "1"})
    assert "('CrossEntropy', 'RIB')" in result.stdout
    again = make_cfg(base={})
    again.merge_from_file(str(path))
    assert config.names_rib(again)


def test_the_attention_that_a_config_asks_for(make_cfg):
    asked = config.asked_attention(make_cfg({**DCS, "MODEL.ATTENTION.WIDTH": 64}))
    assert (asked.name, asked.placement, asked.width) == ("DCS", ("head",), 64)
    assert config.asked_attention(make_cfg({"MODEL.HEADS.NAME": "DCSHead"})).name == "DCS"
    changes = {"MODEL.HEADS.NAME": "ChannelAttentionHead", "MODEL.ATTENTION.CHANNEL": "CBAM"}
    assert config.asked_attention(make_cfg(changes)).name == "CBAM"


def test_what_asks_for_the_plugin(make_cfg):
    asks = ({"MODEL.LOSSES.NAME": ("RIB",)}, DCS, {"MODEL.HEADS.NAME": "PartHead"})
    assert all(config.asks_for_plugin(make_cfg(changes)) for changes in asks)
    assert not config.asks_for_plugin(make_cfg({"MODEL.HEADS.NAME": "EmbeddingHead"}))


def test_heads_that_hold_an_attention(make_cfg):
    for changes, message in (
        ({"MODEL.ATTENTION.CHANNEL": "DCS"}, "MODEL.ATTENTION.CHANNEL must be one of SE, ECA"),
        (DCS, "ChannelAttentionHead.*MODEL.ATTENTION.NAME.*Write one"),
    ):
        with pytest.raises(ValueError, match=message):
            config.check(make_cfg({"MODEL.HEADS.NAME": "ChannelAttentionHead", **changes}))
