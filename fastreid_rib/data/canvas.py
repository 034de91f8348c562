"""A picture that shapes are painted on, in integer arithmetic only.

Integers make every pixel the same on every platform and NumPy version: nothing is rounded, so
neither the mathematics library nor the order of a sum can show.

Lengths are in units of 1/1024 of the picture's height; a picture is half as wide as it is high.
x runs to the right, y downwards.
"""

from bisect import bisect_left, bisect_right
from typing import Any, Callable, Dict, NamedTuple, Sequence, Tuple, Union

import numpy as np

TALL, WIDE = 1024, 512
HEIGHTS = (32, 64, 128, 256, 512)

Colour = Tuple[int, int, int]
Point = Tuple[int, int]
Mask = Callable[[np.ndarray, np.ndarray], Any]

# where the second colour shows, at x and y from the start of the pattern; p is the period
_SECOND: Dict[str, Callable[[np.ndarray, np.ndarray, int], np.ndarray]] = {
    "hoops": lambda x, y, p: y // p % 2 == 1,
    "pinstripes": lambda x, y, p: x // p % 2 == 1,
    "checks": lambda x, y, p: (x // p + y // p) % 2 == 1,
    "dots": lambda x, y, p: (x % (2 * p) - p) ** 2 + (y % (2 * p) - p) ** 2 < (2 * p // 3) ** 2,
    "diagonal": lambda x, y, p: (x + y) // p % 2 == 1,
    "band": lambda x, y, p: (y >= 2 * p) & (y < 4 * p),
}
PATTERNS = ("plain", *_SECOND)


class Cloth(NamedTuple):
    """A fabric in two colours.

    Attributes:
        colour: RGB, 0 to 255.
        second: RGB of the pattern.
        pattern: one of `PATTERNS`.
        period: width of a stripe, in canvas units.
    """

    colour: Colour
    second: Colour
    pattern: str = "plain"
    period: int = 40


Paint = Union[Colour, Cloth]


class Canvas:
    """RGB picture with 2 x 2 samples a pixel; later shapes cover earlier ones.

    A shape is painted with a colour or a cloth, in the shade if asked for: a `shadow` of 0 leaves
    the colours, one of 100 makes them black.

    Args:
        height: pixels of the finished picture, one of `HEIGHTS`; the width is half of it.
    """

    def __init__(self, height: int) -> None:
        step = TALL // (2 * height)
        # a sample lies in the middle of its square
        self.y = np.arange(2 * height, dtype=np.int64)[:, None] * step + step // 2
        self.x = self.y[:height].T
        self.places = self.y.ravel().tolist()
        self.samples = np.zeros((2 * height, height, 3), dtype=np.int64)

    def polygon(
        self, points: Sequence[Point], paint: Paint, shadow: int = 0, origin: Point = (0, 0)
    ) -> None:
        """Paints a convex polygon, its corners in order; a cloth's pattern starts at `origin`."""

        def inside(x: np.ndarray, y: np.ndarray) -> Any:
            sides = np.array(
                [
                    (x1 - x0) * (y - y0) - (y1 - y0) * (x - x0)
                    for (x0, y0), (x1, y1) in zip(points, [*points[1:], points[0]])
                ]
            )
            return (sides >= 0).all(axis=0) | (sides <= 0).all(axis=0)

        xs, ys = zip(*points)
        self._paint((min(xs), min(ys), max(xs), max(ys)), inside, paint, shadow, origin)

    def box(self, x0: int, y0: int, x1: int, y1: int, paint: Paint) -> None:
        """Paints an upright rectangle; a cloth's pattern starts at its corner (x0, y0)."""
        self._paint((x0, y0, x1, y1), lambda x, y: np.ones_like(x, dtype=bool), paint, 0, (x0, y0))

    def ellipse(self, centre: Point, rx: int, ry: int, paint: Paint, shadow: int = 0) -> None:
        """Paints an upright ellipse with half axes rx and ry."""
        (cx, cy), rx, ry = centre, max(rx, 1), max(ry, 1)

        def inside(x: np.ndarray, y: np.ndarray) -> Any:
            return ((x - cx) * ry) ** 2 + ((y - cy) * rx) ** 2 <= (rx * ry) ** 2

        self._paint((cx - rx, cy - ry, cx + rx, cy + ry), inside, paint, shadow, centre)

    def pixels(self) -> np.ndarray:
        """The picture so far: (height, width, 3), int64, 0 to 255."""
        s = self.samples
        return (s[::2, ::2] + s[1::2, ::2] + s[::2, 1::2] + s[1::2, 1::2] + 2) >> 2

    def _paint(
        self, around: Sequence[int], inside: Mask, paint: Paint, shadow: int, origin: Point
    ) -> None:
        """Paints the samples in a mask, which lies in the box (x0, y0, x1, y1) `around` it."""
        # only the samples near a shape are looked at: most shapes are small
        x0, y0, x1, y1 = around
        columns = slice(bisect_left(self.places, x0), bisect_right(self.places, x1))
        rows = slice(bisect_left(self.places, y0), bisect_right(self.places, y1))
        window, x, y = self.samples[rows, columns], self.x[:, columns], self.y[rows]
        shape = np.broadcast_to(inside(x, y), window.shape[:2])
        cloth = paint if isinstance(paint, Cloth) else Cloth(paint, paint)
        window[shape] = [c * (100 - shadow) // 100 for c in cloth.colour]
        if cloth.pattern != "plain":
            second = _SECOND[cloth.pattern](x - origin[0], y - origin[1], cloth.period)
            window[shape & second] = [c * (100 - shadow) // 100 for c in cloth.second]
