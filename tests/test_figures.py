"""Plots, README, summary and log have the numbers of one file, docs/results/results.yml."""

from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def draw_results(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools" / "research"))
    import draw_results

    return draw_results


def test_gains_are_paired_seed_by_seed(draw_results):
    setting = {"seeds": [3, 5], "rows": {"baseline": [10.0, 20.0], "RIB": [12.0, 26.0]}}
    by_seed, mean, error = draw_results.gains(setting)["RIB"]
    assert by_seed == {3: 2.0, 5: 6.0}
    assert (mean, error) == (4.0, pytest.approx(2.0))
    assert draw_results.told(mean, error) == "+4.0 (2.0)"
    assert draw_results.told(-0.4, None) == "-0.4"


def test_the_plot_says_the_gains(draw_results, tmp_path, monkeypatch):
    held, expected = draw_results.read(), []
    settings = held["gains"]
    for setting in settings:
        expected.append(setting["setting"])
        expected += draw_results.gains(setting)
    gains = [gain[1:] for setting in settings for gain in draw_results.gains(setting).values()]
    expected += [draw_results.told(*gain) for gain in gains]

    def said(folder):
        root = ElementTree.parse(folder / "gains.svg")
        texts = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
        return [text for text in texts if text in expected]

    folder = ROOT / "docs" / "results"
    assert said(folder) == expected, "run python tools/research/draw_results.py"
    monkeypatch.setattr(draw_results, "read", lambda: held)
    monkeypatch.setattr(draw_results, "RESULTS", tmp_path)
    monkeypatch.setattr(draw_results, "PAGES", ())
    draw_results.main()
    assert said(tmp_path) == expected


@pytest.mark.parametrize("page", ["README.md", "docs/results/summary.md"])
def test_a_page_has_the_table_of_the_numbers(draw_results, page):
    (setting, *_), path = draw_results.read()["gains"], ROOT / page
    assert path in draw_results.PAGES
    text = path.read_text("utf-8")
    assert draw_results.written(path, [setting]) == text, (
        "run python tools/research/draw_results.py"
    )
    means = [f"| {sum(values) / len(values):.1f} |" for values in setting["rows"].values()]
    assert len(means) == 4 and all(mean in text for mean in means)
