"""A picture that shapes are painted on, in integer arithmetic only.

Integers make every pixel the same on every platform and NumPy version: nothing is rounded, so
neither the mathematics library nor the order of a sum can show.

Lengths are in units of 1/1024 of the picture's height; a picture is half as wide as it is high.
x runs to the right, y downwards.
"""

from typing import NamedTuple, Sequence, Tuple, Union

import numpy as np

TALL, WIDE = 1024, 512
HEIGHTS = (32, 64, 128, 256, 512)

Colour = Tuple[int, int, int]
Point = Tuple[int, int]


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


PATTERNS = ("plain", "hoops", "pinstripes", "checks", "dots", "diagonal", "band")

Paint = Union[Colour, Cloth]


class Canvas:
    """RGB picture with 2 x 2 samples a pixel; later shapes cover earlier ones.

    Args:
        height: pixels of the finished picture, one of `HEIGHTS`; the width is half of it.
    """

    def __init__(self, height: int) -> None:
        """Starts with a black picture."""
        self.step = TALL // (2 * height)
        self.first = self.step // 2  # a sample lies in the middle of its square
        self.y = np.arange(2 * height, dtype=np.int64) * self.step + self.first
        self.x = self.y[:height]
        self.samples = np.zeros((2 * height, height, 3), dtype=np.int64)

    def polygon(self, points: Sequence[Point], paint: Paint, origin: Point = (0, 0)) -> None:
        """Paints a convex polygon.

        Args:
            points: its corners in order, either way round.
            paint: a colour, or a cloth.
            origin: where the pattern of the cloth starts.
        """
        xs, ys = [p[0] for p in points], [p[1] for p in points]
        rows, columns, x, y = self._window(min(xs), min(ys), max(xs), max(ys))
        left = np.ones((y.size, x.size), dtype=bool)
        right = left.copy()
        for (x0, y0), (x1, y1) in zip(points, list(points[1:]) + [points[0]]):
            side = (x1 - x0) * (y - y0) - (y1 - y0) * (x - x0)
            left &= side >= 0
            right &= side <= 0
        self._fill(rows, columns, left | right, paint, x - origin[0], y - origin[1])

    def box(self, x0: int, y0: int, x1: int, y1: int, paint: Paint) -> None:
        """Paints an upright rectangle; a cloth's pattern starts at its corner (x0, y0)."""
        rows, columns, x, y = self._window(x0, y0, x1, y1)
        self._fill(rows, columns, np.ones((y.size, x.size), dtype=bool), paint, x - x0, y - y0)

    def ellipse(self, centre: Point, rx: int, ry: int, paint: Paint) -> None:
        """Paints an upright ellipse with half axes rx and ry."""
        (cx, cy), rx, ry = centre, max(rx, 1), max(ry, 1)
        rows, columns, x, y = self._window(cx - rx, cy - ry, cx + rx, cy + ry)
        inside = ((x - cx) * ry) ** 2 + ((y - cy) * rx) ** 2 <= (rx * ry) ** 2
        self._fill(rows, columns, inside, paint, x - cx, y - cy)

    def pixels(self) -> np.ndarray:
        """The picture so far: (height, width, 3), int64, 0 to 255."""
        s = self.samples
        return (s[::2, ::2] + s[1::2, ::2] + s[::2, 1::2] + s[1::2, 1::2] + 2) >> 2

    def _window(
        self, x0: int, y0: int, x1: int, y1: int
    ) -> Tuple[slice, slice, np.ndarray, np.ndarray]:
        # only the samples near a shape are looked at: most shapes are small
        rows, columns = self._between(y0, y1, self.y.size), self._between(x0, x1, self.x.size)
        return rows, columns, self.x[None, columns], self.y[rows, None]

    def _between(self, low: int, high: int, count: int) -> slice:
        """The samples at low <= position <= high; np.searchsorted would take most of the time."""
        start, stop = -((self.first - low) // self.step), (high - self.first) // self.step + 1
        return slice(min(max(start, 0), count), min(max(stop, 0), count))

    def _fill(
        self,
        rows: slice,
        columns: slice,
        inside: np.ndarray,
        paint: Paint,
        u: np.ndarray,
        v: np.ndarray,
    ) -> None:
        window = self.samples[rows, columns]
        if not isinstance(paint, Cloth):
            window[inside] = paint
            return
        window[inside] = paint.colour
        if paint.pattern != "plain":
            window[inside & _patterned(paint, u, v)] = paint.second


def _patterned(cloth: Cloth, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Where the second colour shows; u is (1, width), v is (height, 1)."""
    p = cloth.period
    if cloth.pattern == "hoops":
        return (v // p) % 2 == 1
    if cloth.pattern == "pinstripes":
        return (u // p) % 2 == 1
    if cloth.pattern == "checks":
        return (u // p + v // p) % 2 == 1
    if cloth.pattern == "dots":
        return (u % (2 * p) - p) ** 2 + (v % (2 * p) - p) ** 2 < (2 * p // 3) ** 2
    if cloth.pattern == "diagonal":
        return ((u + v) // p) % 2 == 1
    if cloth.pattern == "band":
        return (v >= 2 * p) & (v < 4 * p)
    raise ValueError(f"expected a pattern out of {PATTERNS}, got {cloth.pattern!r}")
