"""Draws the plots of docs/results and writes the table of README and summary, from results.yml.

    python tools/research/draw_results.py

``gains.svg`` is what each row gains over the baseline. Results of one's own are plotted by
``plot_study.py``.
"""

import re
from pathlib import Path

import matplotlib
import yaml
from matplotlib.figure import Figure
from study import differences, mean_and_error

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results"
PAGES = (ROOT / "README.md", RESULTS / "summary.md")
TABLE = re.compile(r"(?<=<!-- results -->\n).*?(?=<!-- end of results -->)", re.S)


def read():
    """What results.yml holds: the settings of ``gains``, and the panels of ``plots``."""
    return yaml.safe_load((RESULTS / "results.yml").read_text(encoding="utf-8"))


def gains(setting):
    """What the rows of a setting gain over its first one.

    Args:
        setting: one of :func:`read`.

    Returns:
        {row: ({seed: difference}, mean, standard error or None for one seed)}, without the first.
    """
    rows = {name: dict(zip(setting["seeds"], values)) for name, values in setting["rows"].items()}
    first, *others = rows
    found = {}
    for row in others:
        by_seed = differences(rows[row], rows[first])
        found[row] = (by_seed, *mean_and_error(by_seed))
    return found


def told(mean, error):
    """A difference as the documentation writes it, with its standard error in brackets.

    Args:
        mean: of the differences.
        error: standard error; None: one seed.
    """
    return f"{mean:+.1f}" if error is None else f"{mean:+.1f} ({error:.1f})"


def table(setting):
    """The rows of a setting as Markdown: mAP, its gain over the first row, and mINP.

    Args:
        setting: one of the ``gains`` of :func:`read`, with ``mINP``.
    """
    lines = [f"| {setting['setting']} | mAP | gain (standard error) | mINP |", "|" + " --- |" * 4]
    for row, values in setting["rows"].items():
        gain = told(*gains(setting)[row][1:]) if row in gains(setting) else ""
        sharp = setting["mINP"][row]
        cells = (row, f"{sum(values) / len(values):.1f}", gain, f"{sum(sharp) / len(sharp):.1f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines).replace("|  |", "| |")


def written(page, settings):
    """The text of a page with its table made anew.

    Args:
        page: a path, one of ``PAGES``.
        settings: the ``gains`` of :func:`read`.
    """
    return TABLE.sub(lambda _: f"\n{table(settings[0])}\n\n", page.read_text("utf-8"))


def draw_panels(panels):
    """A plot of lines, or of points where a line has one, for each panel.

    Args:
        panels: one of the ``plots`` of :func:`read`.

    Returns:
        A ``matplotlib.figure.Figure``.
    """
    figure = Figure(figsize=(3.8 * len(panels), 3.6), constrained_layout=True)
    for axes, panel in zip(figure.subplots(1, len(panels)), panels):
        for name, points in panel["lines"].items():
            axes.plot(list(points), list(points.values()), "o-", label=name)
        if panel.get("log"):
            axes.set_xscale("log")
            axes.minorticks_off()
        ticks = sorted({x for points in panel["lines"].values() for x in points})
        axes.set_xticks(ticks, [f"{x:g}" for x in ticks], rotation=45)
        axes.set(title=panel["title"], xlabel=panel["x"], ylabel=panel["y"])
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    return figure


def draw(settings):
    """A dot for each mean, with its standard error, and a faint one for each seed.

    Args:
        settings: the ``gains`` of :func:`read`.

    Returns:
        A ``matplotlib.figure.Figure``.
    """
    lines = sum(1 + len(gains(setting)) for setting in settings)
    figure = Figure(figsize=(8.5, 0.26 * lines + 0.8), constrained_layout=True)
    axes = figure.add_subplot()
    line, labels = 0, []
    for setting in settings:
        seeds = setting["seeds"]
        # Beside the axis, in its own units downwards: at its left end, and right of it.
        beside = axes.get_yaxis_transform()
        labels.append(setting["setting"])
        axes.text(1.02, line, f"SEED {seeds[0]} to {seeds[-1]}", transform=beside, va="center")
        for row, (by_seed, mean, error) in gains(setting).items():
            line += 1
            labels.append(row)
            axes.plot(list(by_seed.values()), [line] * len(by_seed), ".", color="C0", alpha=0.4)
            axes.errorbar(mean, line, xerr=error, fmt="o", color="C0", capsize=3)
            axes.text(1.02, line, told(mean, error), transform=beside, va="center")
        line += 1
    axes.set_yticks(range(lines), labels)
    headings = {setting["setting"] for setting in settings}
    for label in axes.get_yticklabels():
        label.set_fontweight("bold" if label.get_text() in headings else "normal")
    axes.set_ylim(lines - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.axvline(0, color="grey", linewidth=1)
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("points of mAP over the baseline")
    return figure


def main():
    """Writes the plots, whose text can be searched, and the tables."""
    held = read()
    figures = {name: draw_panels(panels) for name, panels in held["plots"].items()}
    with matplotlib.rc_context({"svg.hashsalt": "results", "svg.fonttype": "none"}):
        for name, figure in {"gains": draw(held["gains"]), **figures}.items():
            figure.savefig(RESULTS / f"{name}.svg", format="svg", metadata={"Date": None})
    for page in PAGES:
        page.write_text(written(page, held["gains"]), "utf-8")


if __name__ == "__main__":
    main()
