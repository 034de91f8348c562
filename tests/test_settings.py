"""A setting is declared once, and is then found everywhere."""

import dataclasses
from pathlib import Path

import pytest

from fastreid_rib import RIBLoss, RIBSettings
from fastreid_rib.integration import config
from fastreid_rib.settings import AttentionSettings, SettingError
from fastreid_rib.settings.declaration import above, declared, setting
from fastreid_rib.settings.rib import RIBKeys

ROOT = Path(__file__).parent.parent


@dataclasses.dataclass(frozen=True)
class _More(RIBKeys):
    warmth: float = setting(0.25, above(0, "0.25, for example"), "How warm it is.")


def test_a_new_key_is_one_declaration(monkeypatch):
    from types import SimpleNamespace

    from fastreid.config import get_cfg

    monkeypatch.setitem(config.NODES, "MODEL.LOSSES.RIB", _More)
    stock = get_cfg()
    stock.MODEL.pop("ATTENTION")
    stock.MODEL.LOSSES.pop("RIB")
    stock.__dict__[stock.RENAMED_KEYS].clear()
    stock.__dict__[stock.DEPRECATED_KEYS].clear()
    config.add_keys(SimpleNamespace(_C=stock))
    assert stock.MODEL.LOSSES.RIB.WARMTH == 0.25

    stock.MODEL.LOSSES.NAME = ("CrossEntropyLoss", "RIBLoss")
    config.check(stock)
    assert config.rib_settings(stock).warmth == 0.25
    assert RIBLoss(3, config.rib_settings(stock)).settings.warmth == 0.25
    stock.MODEL.LOSSES.RIB.WARMTH = -1.0
    expected = r"MODEL.LOSSES.RIB.WARMTH must be > 0 \(0.25, for example\), but is -1.0."
    with pytest.raises(ValueError, match=expected):
        config.check(stock)
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import write_lists

    entry = "- **`MODEL.LOSSES.RIB.WARMTH`**, default `0.25`, > 0 (0.25, for example). How warm it"
    assert entry in write_lists.list_of_keys()


@pytest.mark.parametrize("settings", [*config.NODES.values(), RIBSettings, AttentionSettings])
def test_every_declaration_is_complete(settings):
    settings()  # its defaults are in their ranges
    for name, of in declared(settings).items():
        assert of.range.holds(of.default)
        assert of.range.text and not of.range.text.endswith(".")
        assert of.meaning.endswith("."), name


def test_of_two_that_do_not_go_together_each_side_is_named_its_way():
    with pytest.raises(SettingError) as error:
        RIBSettings(relevance="paper", gamma=2.0)
    assert str(error.value).endswith("where relevance is 'paper', got 2.0")
    told = error.value.of_keys("MODEL.LOSSES.RIB")
    assert told.startswith("MODEL.LOSSES.RIB.GAMMA must be between 0 and 1")
    assert told.endswith("where RELEVANCE is 'paper', but is 2.0.")


def test_rib_takes_settings_and_changes_to_them():
    settings = RIBSettings(beta=3.0, num_clusters=7)
    rib = RIBLoss(5, settings, gamma=0.5)
    assert (rib.beta, rib.gamma, rib.num_clusters) == (3.0, 0.5, 7)
    assert RIBLoss(5).num_clusters == 5
    with pytest.raises(TypeError, match="no setting 'betta'. Did you mean 'beta'"):
        RIBLoss(5, betta=1.0)
    with pytest.raises(AttributeError):
        rib.beta = 4.0
    rib.settings = dataclasses.replace(rib.settings, beta=4.0)
    assert rib.beta == 4.0
