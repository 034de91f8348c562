"""The figures in docs/ are what the scripts draw, and the README has the numbers they draw."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


@pytest.fixture
def tools(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))


@pytest.fixture
def draw_results(tools):
    import draw_results

    return draw_results


def test_figures_of_the_method_are_what_the_script_draws(tools):
    import draw_method

    drawn = draw_method.drawings()
    assert {path for path in DOCS.rglob("*.svg") if path.name != "results.svg"} == set(drawn)
    for path, text in drawn.items():
        assert path.read_text("utf-8") == text, f"{path.name}: run python tools/draw_method.py"
        ElementTree.fromstring(text)


def test_the_plot_is_what_the_script_draws(draw_results):
    text = str(draw_results.results(draw_results.read()))
    assert (DOCS / "results.svg").read_text("utf-8") == text, "run python tools/draw_results.py"
    ElementTree.fromstring(text)


def test_gains_are_paired_seed_by_seed(draw_results):
    setting = {"seeds": [3, 5], "rows": {"baseline": [10.0, 20.0], "RIB": [12.0, 26.0]}}
    by_seed, mean, error = draw_results.gains(setting)["RIB"]
    assert by_seed == {3: 2.0, 5: 6.0}
    assert (mean, error) == (4.0, pytest.approx(2.0))
    assert draw_results.told(mean, error) == "+4.0 (2.0)"
    assert draw_results.told(-0.4, None) == "-0.4"


def test_the_readme_has_the_means_and_gains_of_the_numbers(draw_results):
    photographs = draw_results.read()[0]
    gains = draw_results.gains(photographs)
    lines = (ROOT / "README.md").read_text("utf-8").splitlines()
    for row, values in photographs["rows"].items():
        (line,) = [line for line in lines if re.match(rf"\| {re.escape(row)}\W", line)]
        cells = [cell.strip(" *") for cell in line.strip("|").split("|")]
        assert cells[1] == f"{sum(values) / len(values):.1f}"
        assert cells[4] == (draw_results.told(*gains[row][1:]) if row in gains else "")


def test_the_numbers_are_those_of_the_report(draw_results):
    report = (DOCS / "reports" / "experiments.md").read_text("utf-8")
    for setting in draw_results.read():
        for values in setting["rows"].values():
            assert ", ".join(map(str, values)) in report
