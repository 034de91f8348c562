"""The command that says what a network costs."""

import re

import pytest

pytest.importorskip("fvcore")


def rows(text):
    cells = re.findall(r"^\| ([a-z ]+?) +\| +([\d,]+) \| +([\d,.]+) \|$", text, re.MULTILINE)
    return {name: (int(a.replace(",", "")), float(b.replace(",", ""))) for name, a, b in cells}


def test_parts_add_up(command, config):
    plain = rows(command("cost", *config())[1])
    attended = rows(command("cost", *config(), "MODEL.ATTENTION.NAME", "DCS")[1])
    for table in (plain, attended):
        parts = [table[name] for name in ("backbone", "attention", "head")]
        assert tuple(map(sum, zip(*parts))) == table["in all"]
    # ResNet-18 without its classifier; a 64 x 32 image.
    assert plain["backbone"] == (11_176_512, 124_354_560) and plain["attention"] == (0, 0)
    assert attended["backbone"] == plain["backbone"] and attended["attention"][0] > 500_000
    assert plain["head"][0] == 2 * 512 + 8 * 512


def test_a_search_has_ends(command, config):
    found = rows(command("cost", *config({"MODEL.SEARCH.ENABLED": True}))[1])
    assert found["narrowest"][0] < found["aimed at"][0] < found["widest"][0]
    assert found["widest"][1] == 1 and found["aimed at"][1] == 0.5


def test_a_config_that_cannot_be_built(command, config):
    status, said = command("cost", *config({"MODEL.SEARCH.WIDTHS": (64, 128, 256, 200)}))
    assert status == 1
    assert "MODEL.SEARCH.WIDTHS (64, 128, 256, 200): group 'layer4' can have 512" in said
