"""Draws docs/results/gains.svg from docs/results/results.yml: what each row gains over the baseline.

    python tools/research/draw_results.py

Results of one's own are plotted by ``plot_study.py``.
"""

from pathlib import Path

import matplotlib
import yaml
from matplotlib.figure import Figure
from study import differences, mean_and_error

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"


def read():
    """The settings of docs/results/results.yml, each with ``setting``, ``seeds`` and ``rows``."""
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


def draw(settings):
    """A dot for each mean, with its standard error, and a faint one for each seed.

    Args:
        settings: what :func:`read` gives.

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
    """Writes the drawing; its text can be searched."""
    with matplotlib.rc_context({"svg.hashsalt": "results", "svg.fonttype": "none"}):
        draw(read()).savefig(RESULTS / "gains.svg", format="svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
