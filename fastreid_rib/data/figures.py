"""Pedestrians made up by code: what stays with an identity, and how it looks in a pose.

A figure is 1000 units tall, from the crown (y = 0) to the soles (y = 1000), with x = 0 in its
middle; `Place` maps it onto the canvas.
"""

from typing import NamedTuple, Optional, Sequence, TypeVar

import numpy as np

from fastreid_rib.data.canvas import PATTERNS, Canvas, Cloth, Colour, Paint, Point

T = TypeVar("T")

# most people wear black, grey, white or blue, which is what makes them hard to tell apart
_CLOTHES = (
    *((38, 38, 42), (92, 94, 98), (150, 152, 154), (214, 212, 206)),
    *((36, 46, 84), (62, 98, 158), (140, 36, 40), (58, 92, 64), (124, 92, 60)),
    *((196, 168, 124), (196, 178, 70), (190, 96, 130)),
    *((104, 70, 124), (186, 104, 44), (60, 132, 132)),
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


class Pedestrian:
    """What stays with a person; lengths in units of a figure. All is drawn in a fixed order."""

    def __init__(self, rng: np.random.RandomState) -> None:
        main, second = _shade(rng, _CLOTHES, 16), _shade(rng, _CLOTHES, 16)
        self.upper = Cloth(main, second, draw_one(rng, PATTERNS), draw_int(rng, 26, 52))
        self.lower = Cloth(
            _shade(rng, _TROUSERS, 14),
            _shade(rng, _TROUSERS, 14),
            draw_one(rng, ("plain", "plain", "plain", "pinstripes", "checks")),
            draw_int(rng, 26, 40),
        )
        cloths = (self.upper, self.upper, Cloth(main, main), Cloth(second, second))
        self.sleeves = draw_one(rng, cloths)
        self.skin = draw_one(rng, _SKIN)
        self.hair = _shade(rng, _HAIR, 8)
        self.hair_style = draw_one(rng, ("short", "short", "short", "long", "bun", "bald", "hat"))
        self.hat = _shade(rng, _CLOTHES, 10)
        self.long_sleeves = draw_int(rng, 0, 2) > 0
        self.hem = draw_one(rng, (500, 500, 540, 660))
        self.lower_style = draw_one(rng, ("trousers", "trousers", "trousers", "shorts", "skirt"))
        self.shoes = _shade(rng, _SHOES, 8)
        self.scarf = draw_int(rng, 0, 4) == 0
        self.bag = draw_one(rng, ("none", "none", "backpack", "shoulder", "handbag"))
        self.bag_side = draw_one(rng, (-1, 1))
        self.bag_colour = _shade(rng, _CLOTHES, 10)
        self.girth = draw_int(rng, 860, 1160)
        self.stature = draw_int(rng, 930, 1040)
        self.stride = draw_int(rng, 50, 130)
        self.arm_swing = draw_int(rng, 20, 110)
        self.stance = draw_int(rng, 34, 60)


class Pose(NamedTuple):
    """How a person is seen in one picture."""

    view: str
    """"front", "back", "left" or "right" (walking towards that side of the picture)."""
    phase: int
    """Moment of the step, -100 to 100; at 0 the legs are together."""


class Place(NamedTuple):
    """Where a figure stands: x of its middle, y of its crown, height from there to the soles.

    In canvas units, for a person of average stature.
    """

    centre: int
    top: int
    height: int


class _Pen:
    """Paints in figure units."""

    def __init__(self, canvas: Canvas, place: Place, who: Pedestrian, flip: int) -> None:
        self.canvas = canvas
        self.flip = flip
        self.tall = place.height * who.stature // 1000
        self.wide = place.height * who.girth // 1000
        # soles stay on the ground whatever the stature
        self.origin = (place.centre, place.top + place.height - self.tall)

    def point(self, x: int, y: int) -> Point:
        return (
            self.origin[0] + self.flip * (x * self.wide // 1000),
            self.origin[1] + y * self.tall // 1000,
        )

    def shape(self, points: Sequence[Point], paint: Paint, shadow: int = 0) -> None:
        corners = [self.point(x, y) for x, y in points]
        self.canvas.polygon(corners, paint, shadow, self.point(0, 150))

    def limb(
        self, a: Point, wide_a: int, b: Point, wide_b: int, paint: Paint, shadow: int = 0
    ) -> None:
        """A tube from a to b; limbs hang, so their width is measured along x."""
        (ax, ay), (bx, by) = a, b
        corners = ((ax - wide_a, ay), (ax + wide_a, ay), (bx + wide_b, by), (bx - wide_b, by))
        self.shape(corners, paint, shadow)

    def oval(self, x: int, y: int, rx: int, ry: int, paint: Paint, shadow: int = 0) -> None:
        rx, ry = rx * self.wide // 1000, ry * self.tall // 1000
        self.canvas.ellipse(self.point(x, y), rx, ry, paint, shadow)


def paint_pedestrian(canvas: Canvas, who: Pedestrian, pose: Pose, place: Place) -> None:
    """Paints a person onto the canvas, over what is there."""
    # a figure is drawn walking to the right, or from the front: its left hand at positive x
    flip = -1 if pose.view in ("left", "back") else 1
    paint = _from_the_side if pose.view in ("left", "right") else _from_front_or_back
    paint(_Pen(canvas, place, who, flip), who, pose)


def _leg(pen: _Pen, who: Pedestrian, hip: int, foot: Point, toes: int, shadow: int) -> None:
    foot_x, foot_y = foot
    knee = ((hip + foot_x) // 2 + toes // 6, 490 + (foot_y - 490) // 2)
    ankle = (foot_x, foot_y - 25)
    clothed = who.lower_style == "trousers"
    upper = who.skin if who.lower_style == "skirt" else who.lower
    pen.limb((hip, 490), 52, knee, 42, upper, shadow)
    pen.limb(knee, 42, ankle, 30, who.lower if clothed else who.skin, shadow)
    heel, tip = foot_x - 30, foot_x + 30
    sole = ((tip + 2 + toes, foot_y), (heel, foot_y))
    pen.shape(((heel, foot_y - 35), (tip, foot_y - 35), *sole), who.shoes, shadow)


def _arm(pen: _Pen, who: Pedestrian, shoulder: int, hand: int, shadow: int) -> None:
    elbow = ((shoulder + hand) // 2, 350)
    pen.limb((shoulder, 180), 34, elbow, 30, who.sleeves, shadow)
    pen.limb(elbow, 30, (hand, 510), 22, who.sleeves if who.long_sleeves else who.skin, shadow)
    pen.oval(hand, 522, 24, 26, who.skin, shadow)


def _torso(pen: _Pen, who: Pedestrian, shoulder: int, waist: int) -> None:
    if who.lower_style == "skirt":
        pen.limb((0, 470), waist + 6, (0, 720), waist + 48, who.lower)
    else:
        pen.limb((0, 470), waist, (0, 560), waist, who.lower)
    pen.limb((0, 125), 34, (0, 175), 40, who.skin)
    corners = ((-shoulder + 40, 150), (shoulder - 40, 150), (shoulder, 190), (waist, 500))
    pen.shape((*corners, (-waist, 500), (-shoulder, 190)), who.upper)
    if who.hem > 500:
        pen.limb((0, 490), waist, (0, who.hem), waist + 14, who.upper)
    if who.scarf:
        pen.limb((0, 140), 58, (0, 190), 66, who.hat)


def _head(pen: _Pen, who: Pedestrian, face: Optional[int]) -> None:
    """Paints the head; face is the x of the face's middle, None when it looks away."""
    hair = who.skin if who.hair_style == "bald" else who.hair
    if who.hair_style == "bun":
        pen.oval(-(face or 0), 4, 32, 28, hair)
    pen.oval(0, 74, 62, 74, hair)
    if face is not None:
        pen.oval(face, 90, 50, 56, who.skin)
    if who.hair_style == "hat":
        pen.limb((0, -8), 50, (0, 46), 68, who.hat)
        if face:  # from the side the brim sticks out
            pen.limb((60, 34), 44, (64, 52), 48, who.hat)


def _from_front_or_back(pen: _Pen, who: Pedestrian, pose: Pose) -> None:
    back = pose.view == "back"
    lift, swing = pose.phase * who.stride // 400, pose.phase * who.arm_swing // 500
    side = who.bag_side
    if who.hair_style == "long" and not back:
        pen.limb((0, 60), 66, (0, 240), 78, who.hair)
    if who.bag == "backpack" and not back:
        pen.limb((0, 190), 132, (0, 420), 138, who.bag_colour, 20)
    for leg in (-1, 1):
        _leg(pen, who, leg * 50, (leg * who.stance, 985 - abs(lift) + leg * lift), leg * 14, 10)
        _arm(pen, who, leg * 128, leg * (150 + swing), 12)
    _torso(pen, who, 140, 104)
    if who.bag == "backpack":
        if back:
            pen.limb((0, 180), 92, (0, 440), 104, who.bag_colour)
            pen.limb((0, 330), 70, (0, 410), 74, who.bag_colour, 30)
        else:
            for strap in (-80, 80):
                pen.limb((strap, 152), 15, (strap, 400), 13, who.bag_colour)
    if who.bag == "shoulder":
        pen.limb((-side * 90, 155), 13, (side * 100, 450), 13, who.bag_colour, 25)
        pen.limb((side * 126, 430), 62, (side * 126, 560), 70, who.bag_colour)
    if who.bag == "handbag":
        pen.limb((side * 160, 530), 14, (side * 160, 580), 40, who.bag_colour, 30)
        pen.limb((side * 160, 575), 64, (side * 160, 690), 72, who.bag_colour)
    _head(pen, who, None if back else 0)
    if who.hair_style == "long" and back:
        pen.limb((0, 70), 62, (0, 250), 70, who.hair)


def _from_the_side(pen: _Pen, who: Pedestrian, pose: Pose) -> None:
    step, swing = pose.phase * who.stride // 100, pose.phase * who.arm_swing // 100
    # walking to the right shows the right arm (bag_side -1), walking to the left the left one
    near_bag = who.bag_side == -pen.flip
    _arm(pen, who, 6, 20 + swing, 30)
    _leg(pen, who, 0, (-step, 980), 52, 28)
    if who.bag == "backpack":
        pen.shape(((-150, 190), (-60, 170), (-60, 440), (-165, 430)), who.bag_colour)
    if who.bag in ("shoulder", "handbag") and not near_bag:
        low = 0 if who.bag == "shoulder" else 140
        pen.limb((30, 440 + low), 66, (30, 550 + low), 74, who.bag_colour, 30)
    _leg(pen, who, 0, (step, 985), 52, 0)
    _torso(pen, who, 92, 82)
    if who.bag == "backpack":
        pen.limb((20, 152), 16, (-20, 330), 14, who.bag_colour)
    _arm(pen, who, -4, 14 - swing, 12)
    if who.bag == "shoulder" and near_bag:
        pen.limb((20, 152), 14, (-20, 450), 14, who.bag_colour, 25)
        pen.limb((-20, 430), 78, (-20, 560), 86, who.bag_colour)
    if who.bag == "handbag" and near_bag:
        pen.limb((14 - swing, 530), 14, (14 - swing, 580), 40, who.bag_colour, 30)
        pen.limb((14 - swing, 575), 74, (14 - swing, 690), 82, who.bag_colour)
    _head(pen, who, 20)
    if who.hair_style == "long":
        pen.limb((-30, 60), 40, (-52, 240), 34, who.hair)
