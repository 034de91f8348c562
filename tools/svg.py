"""Drawings of boxes, arrows and text as SVG: the same bytes on every machine.

They are written as text, without a plotting library, whose output changes from version to version:
tests compare the drawings in ``docs/`` with what the scripts draw.
"""

from xml.sax.saxutils import escape

BLUE, ORANGE, GREEN, GREY, WHITE = "#dce9f7", "#fbe3cd", "#dff0dc", "#eeeeee", "#ffffff"
"""Fills of boxes."""

DARK, FAINT = "#222222", "#888888"
"""Colours of lines and text."""


class Drawing:
    """A white sheet; all positions and sizes are in pixels, from the upper left corner.

    Args:
        width: > 0.
        height: > 0.
        title: what the picture shows, for those who cannot see it.
    """

    def __init__(self, width, height, title):
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" font-family="Helvetica, Arial, sans-serif" '
            f'font-size="13" role="img">',
            f"<title>{escape(title)}</title>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" '
            'markerHeight="8" orient="auto"><path d="M0,0 L8,4 L0,8 z" '
            f'fill="{DARK}"/></marker></defs>',
            f'<rect width="{width}" height="{height}" fill="{WHITE}"/>',
        ]

    def box(self, x, y, width, height, lines, fill=WHITE):
        """A box with lines of text in its middle.

        Args:
            x: left edge.
            y: upper edge.
            width: > 0.
            height: > 0.
            lines: of text; the first is bold.
            fill: a colour.
        """
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="5" '
            f'fill="{fill}" stroke="{DARK}"/>'
        )
        first = y + height / 2 + 5 - 8 * (len(lines) - 1)
        for number, line in enumerate(lines):
            self.text(x + width / 2, first + 16 * number, line, anchor="middle", bold=number == 0)

    def text(self, x, y, text, anchor="start", bold=False, colour=DARK, size=None):
        """A line of text.

        Args:
            x: of its ``anchor``.
            y: of its base line.
            text: what it says.
            anchor: "start", "middle" or "end".
            bold: whether it is.
            colour: of the letters.
            size: of the letters; None: 13.
        """
        more = ' font-weight="bold"' if bold else ""
        more += f' font-size="{size}"' if size else ""
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="{colour}"{more}>'
            f"{escape(text)}</text>"
        )

    def line(self, *points, tip=False, dashed=False, colour=DARK):
        """A line from point to point.

        Args:
            points: (x, y) each.
            tip: whether the last one has an arrowhead.
            dashed: whether it is.
            colour: of the line.
        """
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        more = ' marker-end="url(#tip)"' if tip else ""
        more += ' stroke-dasharray="5,4"' if dashed else ""
        self.parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}"{more}/>')

    def dot(self, x, y, radius, fill=DARK):
        """A filled circle.

        Args:
            x: of its centre.
            y: of its centre.
            radius: > 0.
            fill: a colour.
        """
        self.parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="{radius:g}" fill="{fill}"/>')

    def __str__(self):
        """The SVG document."""
        return "\n".join([*self.parts, "</svg>"]) + "\n"
