"""Draws docs/results.svg from docs/reports/results.yml: what each row gains over the baseline.

    python tools/draw_results.py

A test compares the drawing in ``docs/`` with what this draws. Results of one's own are plotted by
``tools/plot_study.py``.
"""

from pathlib import Path

import yaml
from study import differences, mean_and_error
from svg import DARK, FAINT, Drawing

DOCS = Path(__file__).resolve().parent.parent / "docs"
LEFT, RIGHT = -3, 6
"""Ends of the axis, in points of mAP."""

POINT = "#1f5fa8"


def read():
    """The settings of docs/reports/results.yml, each with ``setting``, ``seeds`` and ``rows``."""
    return yaml.safe_load((DOCS / "reports" / "results.yml").read_text(encoding="utf-8"))


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


def results(settings):
    """A dot for each mean, with its standard error, and a faint one for each seed.

    Args:
        settings: what :func:`read` gives.
    """
    lines = sum(1 + len(gains(setting)) for setting in settings)
    width, height, begin, end = 820, 22 * lines + 100, 330, 700
    drawing = Drawing(width, height, "What RIB and a rival gain over baselines, in points of mAP")

    def place(value):
        return begin + (end - begin) * (value - LEFT) / (RIGHT - LEFT)

    bottom = height - 52
    for tick in range(LEFT, RIGHT + 1):
        drawing.line(
            (place(tick), 20), (place(tick), bottom), colour=DARK if tick == 0 else "#dddddd"
        )
        drawing.text(place(tick), bottom + 18, f"{tick:+d}" if tick else "0", anchor="middle")
    drawing.text((begin + end) / 2, bottom + 40, "points of mAP over the baseline", anchor="middle")
    y = 38
    for setting in settings:
        seeds = setting["seeds"]
        which = f"SEED {seeds[0]}" + (f" to {seeds[-1]}" if len(seeds) > 1 else "")
        drawing.text(20, y, setting["setting"], bold=True)
        drawing.text(end + 20, y, which, colour=FAINT)
        y += 22
        for row, (by_seed, mean, error) in gains(setting).items():
            drawing.text(40, y, row)
            for value in by_seed.values():
                drawing.dot(place(value), y - 4, 2.5, "#9fbfe0")
            if error is not None:
                low, high = place(mean - error), place(mean + error)
                drawing.line((low, y - 4), (high, y - 4), colour=POINT)
                for edge in (low, high):
                    drawing.line((edge, y - 8), (edge, y), colour=POINT)
            drawing.dot(place(mean), y - 4, 4, POINT)
            drawing.text(end + 20, y, told(mean, error))
            y += 22
    return drawing


def told(mean, error):
    """A difference as the documentation writes it, with its standard error in brackets.

    Args:
        mean: of the differences.
        error: standard error; None: one seed.
    """
    return f"{mean:+.1f}" if error is None else f"{mean:+.1f} ({error:.1f})"


def main():
    """Writes the drawing."""
    (DOCS / "results.svg").write_text(str(results(read())), encoding="utf-8")


if __name__ == "__main__":
    main()
