"""Plots what ``study.py`` has kept in logs/study: mAP of each row, with standard errors.

A row of panels for each test set: all queries and, where it is known, the occluded and the free
ones. Each is the mean over the seeds; with --against of the differences from that row seed by seed,
which say more, since seeds differ by more than settings do::

    python tools/research/plot_study.py FILE --seeds 0 1 2 --output study.svg
    python tools/research/plot_study.py FILE --seeds 0 1 2 --against "a row" --output study.svg

It trains nothing; runs that are not there are said, and left out.
"""

import argparse
import sys

import matplotlib
from matplotlib.figure import Figure
from study import PARTS, by_seed, differences, kept, mean_and_error, parse, test_sets


def panels(results, seeds):
    """What there is to plot: for each test set a list of it and those of its parts that are known.

    Args:
        results: {row: {seed: what ``study.run`` returned}}.
        seeds: what to look at.
    """
    return [
        [
            of
            for of in (data, *[f"{data} {part}" for part in PARTS])
            if any(by_seed(results, row, seeds, of, "mAP") for row in results)
        ]
        for data in test_sets(results)
    ]


def points(results, seeds, of, against=None):
    """What one panel shows: {row: (mean, standard error or None)}, rows without results left out.

    Args:
        results: {row: {seed: what ``study.run`` returned}}.
        seeds: what the means are over.
        of: a test set or a part of one.
        against: a row, to be compared with seed by seed; None: the accuracies themselves.
    """
    shown = {}
    for row in results:
        values = by_seed(results, row, seeds, of, "mAP")
        if against is not None:
            values = differences(values, by_seed(results, against, seeds, of, "mAP"))
        if values:
            shown[row] = mean_and_error(values)
    return shown


def plot(results, seeds, against=None):
    """Draws the panels.

    Args:
        results: {row: {seed: what ``study.run`` returned}}.
        seeds: what the means are over.
        against: see :func:`points`.

    Returns:
        A ``matplotlib.figure.Figure``.
    """
    grid = panels(results, seeds)
    width, rows = max(len(line) for line in grid), list(results)
    figure = Figure(
        figsize=(2 + 3.3 * width, len(grid) * (1 + 0.3 * len(rows))), constrained_layout=True
    )
    for i, line in enumerate(grid):
        for j, of in enumerate(line):
            axes = figure.add_subplot(len(grid), width, i * width + j + 1)
            for row, (mean, error) in points(results, seeds, of, against).items():
                axes.errorbar(mean, rows.index(row), xerr=error, fmt="o", color="C0", capsize=3)
            axes.set_yticks(range(len(rows)))
            axes.set_yticklabels(rows if j == 0 else [])
            axes.set_ylim(len(rows) - 0.5, -0.5)  # the first row on top, as in the table
            axes.grid(axis="x", alpha=0.3)
            axes.set_title(of)
            axes.set_xlabel("mAP, percent" if against is None else f"mAP - {against}")
            if against is not None:
                axes.axvline(0, color="grey", linewidth=1)
    return figure


def main():
    """Reads the runs that the command line names, and writes the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", required=True, metavar="FILE.svg")
    args = parse(parser)
    results = {
        row: {seed: kept(args.study, row, seed, args.script) for seed in args.seeds}
        for row in args.rows
    }
    for row, found in results.items():
        missing = [str(seed) for seed, result in found.items() if not result]
        if missing:
            print(f"{row}: no runs of seed {', '.join(missing)}; study.py makes them")
    if not test_sets(results):
        sys.exit("plot_study: nothing to plot")
    # The same results give the same bytes, and text that can be searched.
    settings = {"svg.hashsalt": "study", "svg.fonttype": "none"}
    with matplotlib.rc_context(settings):
        plot(results, args.seeds, args.against).savefig(
            args.output, format="svg", metadata={"Date": None}
        )


if __name__ == "__main__":
    main()
