"""Pedestrians made up by code: what stays with an identity from one picture to the next."""

from typing import NamedTuple, Sequence, TypeVar

import numpy as np

from fastreid_rib.data.canvas import Cloth, Colour

T = TypeVar("T")

# most people wear black, grey, white or blue, which is what makes them hard to tell apart
_CLOTHES = (
    *((38, 38, 42), (92, 94, 98), (150, 152, 154), (214, 212, 206)),
    *((36, 46, 84), (62, 98, 158), (140, 36, 40), (58, 92, 64), (124, 92, 60)),
    *(
        (196, 168, 124),
        (196, 178, 70),
        (190, 96, 130),
        (104, 70, 124),
        (186, 104, 44),
        (60, 132, 132),
    ),
)
_TROUSERS = (
    *((36, 36, 40), (36, 36, 40), (48, 58, 88), (48, 58, 88), (78, 104, 146), (96, 96, 98)),
    *((168, 150, 120), (102, 78, 58), (72, 82, 62)),
)
_HAIR = ((24, 20, 20), (24, 20, 20), (60, 40, 28), (104, 72, 44), (176, 144, 88), (150, 148, 146))
_SKIN = ((236, 196, 168), (224, 178, 146), (190, 138, 104), (140, 94, 66), (96, 64, 48))
_SHOES = ((30, 28, 28), (30, 28, 28), (92, 66, 46), (208, 206, 202), (150, 46, 44))


def draw_int(rng: np.random.RandomState, low: int, high: int) -> int:
    """One integer from low to high, both included."""
    # the dtype is named because its default differs between platforms
    return int(rng.randint(low, high + 1, dtype=np.int64))


def draw_one(rng: np.random.RandomState, choices: Sequence[T]) -> T:
    """One of the choices, each as likely."""
    return choices[draw_int(rng, 0, len(choices) - 1)]


def _shade(rng: np.random.RandomState, colours: Sequence[Colour], spread: int) -> Colour:
    r, g, b = draw_one(rng, colours)
    r, g, b = (min(max(c + draw_int(rng, -spread, spread), 0), 255) for c in (r, g, b))
    return r, g, b


class Pedestrian(NamedTuple):
    """What stays with a person from one picture to the next; lengths in units of ``figures``."""

    skin: Colour
    hair: Colour
    hair_style: str
    hat: Colour
    upper: Cloth
    sleeves: Cloth
    long_sleeves: bool
    hem: int
    lower: Cloth
    lower_style: str
    shoes: Colour
    scarf: bool
    bag: str
    bag_side: int
    bag_colour: Colour
    girth: int
    stature: int
    stride: int
    arm_swing: int
    stance: int

    @classmethod
    def random(cls, rng: np.random.RandomState) -> "Pedestrian":
        """Makes up a person."""
        main, second = _shade(rng, _CLOTHES, 16), _shade(rng, _CLOTHES, 16)
        pattern = draw_one(
            rng, ("plain", "hoops", "pinstripes", "checks", "dots", "diagonal", "band")
        )
        upper = Cloth(main, second, pattern, draw_int(rng, 26, 52))
        lower = Cloth(
            _shade(rng, _TROUSERS, 14),
            _shade(rng, _TROUSERS, 14),
            draw_one(rng, ("plain", "plain", "plain", "pinstripes", "checks")),
            draw_int(rng, 26, 40),
        )
        sleeves = draw_one(rng, (upper, upper, Cloth(main, main), Cloth(second, second)))
        return cls(
            skin=draw_one(rng, _SKIN),
            hair=_shade(rng, _HAIR, 8),
            hair_style=draw_one(rng, ("short", "short", "short", "long", "bun", "bald", "hat")),
            hat=_shade(rng, _CLOTHES, 10),
            upper=upper,
            sleeves=sleeves,
            long_sleeves=draw_int(rng, 0, 2) > 0,
            hem=draw_one(rng, (500, 500, 540, 660)),
            lower=lower,
            lower_style=draw_one(rng, ("trousers", "trousers", "trousers", "shorts", "skirt")),
            shoes=_shade(rng, _SHOES, 8),
            scarf=draw_int(rng, 0, 4) == 0,
            bag=draw_one(rng, ("none", "none", "backpack", "shoulder", "handbag")),
            bag_side=draw_one(rng, (-1, 1)),
            bag_colour=_shade(rng, _CLOTHES, 10),
            girth=draw_int(rng, 860, 1160),
            stature=draw_int(rng, 930, 1040),
            stride=draw_int(rng, 50, 130),
            arm_swing=draw_int(rng, 20, 110),
            stance=draw_int(rng, 34, 60),
        )
