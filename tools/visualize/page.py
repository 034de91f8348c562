"""A page of pictures: a row an image and model, as PNG and as one HTML file."""

import base64
import html
import io
from itertools import zip_longest
from pathlib import Path
from typing import List, NamedTuple, Optional, Sequence, Tuple

import matplotlib
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

RIGHT, WRONG, UNKNOWN = "#1a7f37", "#d1242f", "#8c959f"
_MARKS = {True: ("right", "\u2713 ", RIGHT), False: ("wrong", "\u2717 ", WRONG)}
_INCHES = 1.15  # width of a picture in the PNG
_DPI = 120
_MOST_PIXELS = 60000  # matplotlib's limit for a side is 65536

_HTML = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 13px sans-serif; margin: 1.5em; }}
td {{ padding: 2px 4px; text-align: center; vertical-align: top; max-width: 11em; }}
th {{ padding: 2px 8px; text-align: left; }}
tr.first td, tr.first th {{ border-top: 1px solid #8c959f; }}
td img {{ height: 176px; display: block; margin: auto; border: 4px solid transparent; }}
td.right img {{ border-color: {right}; }}
td.wrong img {{ border-color: {wrong}; }}
td.unknown img {{ border-color: {unknown}; }}
</style></head><body>
<h1>{title}</h1>
<p>{legend}</p>
<table class="pictures">
{rows}</table>
{notes}</body></html>
"""


class Cell(NamedTuple):
    """A picture of a row.

    Attributes:
        image: (H, W, 3), uint8.
        title: one or two short lines.
        ranked: whether it is one of the ranked gallery, which have a frame.
        right: of these: right, wrong, or None for not known.
    """

    image: np.ndarray
    title: str
    ranked: bool = False
    right: Optional[bool] = None


class Row(NamedTuple):
    """What one model makes of one image.

    Attributes:
        name: the model's.
        cells: its pictures; None leaves a place empty.
        first: whether it is the first row of its image.
    """

    name: str
    cells: List[Optional[Cell]]
    first: bool


def picture(image: Tensor) -> np.ndarray:
    """An image (3, H, W), 0..255, as (H, W, 3), uint8."""
    return image.clamp(0, 255).round().byte().permute(1, 2, 0).cpu().numpy()


def overlay(image: np.ndarray, values: Tensor, share: bool) -> np.ndarray:
    """Lays a map over an image in colours.

    Args:
        image: (H, W, 3), uint8.
        values: (h, w), >= 0; enlarged to the image.
        share: whether the colours span 0..1, or 0 to the map's highest value.

    Returns:
        (H, W, 3), uint8.
    """
    large = F.interpolate(
        values[None, None].float(), image.shape[:2], mode="bilinear", align_corners=False
    )[0, 0]
    if not share:
        # A map of zeros (no channel speaks for the embedding anywhere) stays cold.
        large = large / large.max().clamp(min=torch.finfo(torch.float32).tiny)
    colours = matplotlib.colormaps["viridis" if share else "turbo"](large.clamp(0, 1).numpy())[
        ..., :3
    ]
    return (0.5 * image + 0.5 * 255 * colours).round().astype(np.uint8)


def write_png(path: Path, rows: Sequence[Row]) -> None:
    """Draws all rows on one page.

    Args:
        path: the file; its folder is there.
        rows: at least one.
    """
    columns = max(len(row.cells) for row in rows)
    shapes = [cell.image.shape for row in rows for cell in row.cells if cell is not None]
    tallest = max(height / width for height, width, _ in shapes)
    size = (_INCHES * columns + 0.4, (_INCHES * tallest + 0.35) * len(rows))
    figure = Figure(figsize=size, dpi=min(_DPI, _MOST_PIXELS / max(size)))
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for row, line in zip(rows, axes):
        line[0].set_ylabel(row.name, fontsize=8)
        for axis, cell in zip_longest(line, row.cells):
            axis.set(xticks=[], yticks=[])
            title, colour = _caption(cell) if cell is not None else ("", "")
            axis.set_title(title, fontsize=6, color=colour or "black", pad=2)
            for spine in axis.spines.values():
                spine.set(visible=bool(colour), color=colour or "white", linewidth=2)
            if cell is not None:
                axis.imshow(cell.image)
    figure.tight_layout(pad=0.3)
    figure.savefig(str(path))


def write_html(
    path: Path, title: str, legend: str, rows: Sequence[Row], table: Sequence[Tuple[str, ...]]
) -> None:
    """Writes all rows into one file that refers to nothing outside it.

    Args:
        path: the file; its folder is there.
        title: of the page.
        legend: what is to be seen.
        rows: at least one.
        table: of numbers under the pictures, its heading first; empty for none.
    """
    lines = []
    for row in rows:
        cells = "".join(_html_cell(cell) for cell in row.cells)
        first = ' class="first"' if row.first else ""
        lines.append(f"<tr{first}><th>{html.escape(row.name)}</th>{cells}</tr>\n")
    notes = ""
    if table:
        heading, *numbers = table
        notes = '<table class="numbers">\n' + _html_line("th", heading)
        notes += "".join(_html_line("td", line) for line in numbers) + "</table>\n"
    text = _HTML.format(
        title=html.escape(title),
        legend=html.escape(legend),
        rows="".join(lines),
        notes=notes,
        right=RIGHT,
        wrong=WRONG,
        unknown=UNKNOWN,
    )
    path.write_text(text, encoding="utf-8")


def _caption(cell: Cell) -> Tuple[str, str]:
    """Title with its mark, and colour of the frame ("" for none)."""
    if not cell.ranked:
        return cell.title, ""
    _, sign, colour = _MARKS.get(cell.right, ("", "", UNKNOWN))
    return sign + cell.title, colour


def _html_cell(cell: Optional[Cell]) -> str:
    if cell is None:
        return "<td></td>"
    file = io.BytesIO()
    Image.fromarray(cell.image).save(file, format="PNG")
    source = base64.b64encode(file.getvalue()).decode("ascii")
    kind = _MARKS.get(cell.right, ("unknown",))[0] if cell.ranked else "map"
    text = html.escape(_caption(cell)[0]).replace("\n", "<br>")
    return f'<td class="{kind}"><img src="data:image/png;base64,{source}" alt="{kind}">{text}</td>'


def _html_line(tag: str, line: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in line) + "</tr>\n"
