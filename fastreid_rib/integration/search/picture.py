"""A search as a picture: how its cost fell, and what became of each choice."""

from typing import Any, Dict, List

from fastreid_rib.search import Cost


def draw(progress: List[Dict[str, Any]], cost: Cost, target: float, path: str) -> None:
    """Writes a picture.

    Args:
        progress: for each epoch "epoch", "cost" (of the widest) and "probabilities" of each group.
        cost: of the space.
        target: multiply-adds that were aimed at.
        path: of the file; matplotlib knows its format by the ending.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = cost.space.groups
    figure = Figure(figsize=(7, 2 + 1.1 * len(groups)), constrained_layout=True)
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(groups) + 1, 1, sharex=True)
    epochs = [line["epoch"] for line in progress]
    axes[0].plot(epochs, [line["cost"] for line in progress], marker="o", markersize=3)
    axes[0].axhline(target / cost.widest, linestyle="--", color="gray")
    axes[0].set_ylabel("cost of\nthe widest")
    axes[0].set_ylim(0, 1.05)
    for axis, (group, widths) in zip(axes[1:], groups.items()):
        rows = [[line["probabilities"][group][i] for line in progress] for i in range(len(widths))]
        extent = (min(epochs) - 0.5, max(epochs) + 0.5, len(widths) - 0.5, -0.5)
        axis.imshow(rows, aspect="auto", vmin=0, vmax=1, cmap="Blues", extent=extent)
        axis.set_yticks(range(len(widths)))
        axis.set_yticklabels([str(width) for width in widths], fontsize=6)
        axis.set_ylabel(group)
    axes[-1].set_xlabel("epoch")
    figure.suptitle("Probability of each width")
    figure.savefig(path, dpi=100)
