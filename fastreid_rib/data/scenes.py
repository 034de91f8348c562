"""Pictures of pedestrians as surveillance cameras would take them.

A camera brings its background, colours and sharpness; each picture its own light, place, pose,
noise and, where asked for, something that stands before the person.
"""

import numpy as np

from fastreid_rib.data.canvas import TALL, WIDE, Canvas, Cloth
from fastreid_rib.data.figures import (
    Pedestrian,
    Place,
    Pose,
    draw_int,
    draw_one,
    paint_pedestrian,
)

_WALLS = ((150, 140, 128), (176, 176, 172), (112, 120, 128), (136, 104, 88), (124, 138, 112))
_GROUNDS = ((124, 122, 118), (150, 146, 138), (98, 100, 104), (112, 122, 92), (160, 148, 130))
_THINGS = ((60, 62, 66), (96, 78, 60), (70, 96, 70), (130, 130, 132), (120, 52, 46), (52, 70, 104))


class Camera:
    """One camera and what it looks at, drawn in a fixed order; lengths in units of the canvas."""

    def __init__(self, rng: np.random.RandomState) -> None:
        wall = draw_one(rng, _WALLS)
        seam = (wall[0] - 24, wall[1] - 24, wall[2] - 24)
        self.things = []  # boxes in the background
        for _ in range(draw_int(rng, 2, 4)):
            x, y = draw_int(rng, -60, WIDE), draw_int(rng, 60, 520)
            size = (draw_int(rng, 60, 200), draw_int(rng, 100, 400))
            self.things.append((x, y, x + size[0], y + size[1], draw_one(rng, _THINGS)))
        straight = draw_one(rng, (("front", "back"), ("front",), ("back",)))
        views = draw_one(rng, (straight * 3, (*straight, "left", "right"), ("left", "right") * 2))
        # what it sees of people, as often as it stands here
        self.views = (*views, "front", "back", "left", "right")
        self.horizon = draw_int(rng, 380, 640)  # where wall and ground meet
        pattern = draw_one(rng, ("plain", "hoops", "pinstripes", "checks"))
        self.wall = Cloth(wall, seam, pattern, 70)
        self.ground = draw_one(rng, _GROUNDS)
        # of each channel, 256 leaves it
        self.gain = (draw_int(rng, 232, 282), draw_int(rng, 240, 272), draw_int(rng, 232, 282))
        self.grey = draw_int(rng, 0, 40)  # how far colours fade, to 256
        self.lift = draw_int(rng, -8, 16)  # added to every value
        self.blur = draw_int(rng, 0, 2) // 2  # passes of a 3 x 3 blur at a height of 64 pixels
        self.noise = draw_int(rng, 2, 6)  # largest error of a value to either side


def photograph(
    rng: np.random.RandomState, camera: Camera, who: Pedestrian, occluded: bool, height: int
) -> np.ndarray:
    """Takes a picture of a person, a part of whom something covers if it is `occluded`.

    `rng` decides everything about this one picture. The noise comes last, so that one state gives
    the same scene at every height, which is one of `canvas.HEIGHTS`, in pixels.

    Returns:
        (height, height // 2, 3), uint8, RGB.
    """
    canvas = Canvas(height)
    _paint_background(rng, canvas, camera)
    place = Place(WIDE // 2 + draw_int(rng, -32, 32), draw_int(rng, 0, 60), draw_int(rng, 860, 980))
    pose = Pose(draw_one(rng, camera.views), draw_int(rng, -100, 100))
    feet = (place.centre, place.top + place.height - 6)
    dark = (camera.ground[0] * 3 // 5, camera.ground[1] * 3 // 5, camera.ground[2] * 3 // 5)
    canvas.ellipse(feet, 150, 24, dark)
    paint_pedestrian(canvas, who, pose, place)
    # of random numbers of its own: all else is the same with an occluder and without
    chance = np.random.RandomState(draw_int(rng, 0, 2**31 - 1))
    if occluded:
        _paint_occluder(chance, canvas, place)
    return _expose(rng, canvas.pixels(), camera)


def _paint_background(rng: np.random.RandomState, canvas: Canvas, camera: Camera) -> None:
    # people walk about: the box around them shows another part of the same background each time
    shift, horizon = draw_int(rng, -150, 150), camera.horizon + draw_int(rng, -60, 60)
    canvas.box(0, 0, WIDE, TALL, camera.ground)
    canvas.box(shift - WIDE, horizon - 2 * TALL, 2 * WIDE, horizon, camera.wall)
    for x0, y0, x1, y1, colour in camera.things:
        canvas.box(x0 + shift, y0, x1 + shift, y1, colour)
    if draw_int(rng, 0, 7) == 0:
        x = draw_one(rng, (draw_int(rng, 0, 110), draw_int(rng, 400, WIDE)))
        tall = draw_int(rng, 400, 620)
        pose = Pose(draw_one(rng, ("front", "back", "left", "right")), draw_int(rng, -100, 100))
        paint_pedestrian(canvas, Pedestrian(rng), pose, Place(x, 760 - tall, tall))


def _paint_occluder(rng: np.random.RandomState, canvas: Canvas, place: Place) -> None:
    kind = draw_one(rng, ("pole", "wall", "side", "bag", "bush", "person", "person"))
    colour = draw_one(rng, _THINGS)
    light = (colour[0] + 28, colour[1] + 28, colour[2] + 28)
    if kind == "pole":
        x, half = place.centre + draw_int(rng, -90, 90), draw_int(rng, 30, 56)
        canvas.box(x - half, 0, x + half, TALL, colour)
        canvas.box(x - half // 2, 0, x - half // 4, TALL, light)
    elif kind == "wall":
        top = draw_int(rng, 530, 700)
        canvas.box(0, top, WIDE, TALL, Cloth(colour, light, "checks", draw_int(rng, 40, 80)))
        canvas.box(0, top - 24, WIDE, top, light)
    elif kind == "side":
        edge = draw_int(rng, 130, 200)
        left, right = draw_one(rng, ((0, edge), (WIDE - edge, WIDE)))
        canvas.box(left, 0, right, TALL, Cloth(colour, light, "hoops", draw_int(rng, 40, 90)))
    elif kind == "bag":
        x, top = place.centre + draw_int(rng, -90, 90), draw_int(rng, 540, 700)
        half = draw_int(rng, 100, 170)
        canvas.ellipse((x, top), half // 2, 60, light)
        canvas.box(x - half, top, x + half, TALL, colour)
        canvas.box(x - half, top + 130, x + half, top + 160, light)
    elif kind == "bush":
        for _ in range(9):
            spot = (place.centre + draw_int(rng, -200, 200), draw_int(rng, 580, 960))
            leaf = (60 + draw_int(rng, 0, 40), 90 + draw_int(rng, 0, 50), 50 + draw_int(rng, 0, 20))
            canvas.ellipse(spot, draw_int(rng, 70, 130), draw_int(rng, 70, 130), leaf)
    else:
        x = place.centre + draw_one(rng, (-1, 1)) * draw_int(rng, 130, 200)
        pose = Pose(draw_one(rng, ("front", "back", "left", "right")), draw_int(rng, -100, 100))
        top = place.top + draw_int(rng, 20, 140)
        paint_pedestrian(canvas, Pedestrian(rng), pose, Place(x, top, place.height))


def _expose(rng: np.random.RandomState, scene: np.ndarray, camera: Camera) -> np.ndarray:
    """Turns what is there, int64 0 to 255, into what the camera saves, uint8."""
    height, width, _ = scene.shape
    light, slant = draw_int(rng, 216, 278), draw_int(rng, -32, 32)
    blur = (camera.blur + draw_int(rng, 0, 3) // 3) * max(height // 64, 1)
    across = light + slant * (2 * np.arange(width, dtype=np.int64) - width) // width
    grey = scene.sum(axis=2, keepdims=True) // 3
    seen = (scene * (256 - camera.grey) + grey * camera.grey) >> 8
    seen = (seen * np.array(camera.gain, dtype=np.int64)) >> 8
    seen = ((seen * across[None, :, None]) >> 8) + camera.lift
    for _ in range(blur):
        seen = _blur_once(seen)
    # the sum of two uniform draws is close enough to the bell curve of a sensor
    size = (2, height, width, 3)
    noise = rng.randint(-camera.noise, camera.noise + 1, size=size, dtype=np.int64).sum(axis=0)
    return np.clip(seen + noise, 0, 255).astype(np.uint8)


def _blur_once(picture: np.ndarray) -> np.ndarray:
    """Weights 1 2 1 along y, then x, edges repeated."""
    padded = np.concatenate((picture[:1], picture, picture[-1:]))
    picture = (padded[:-2] + 2 * padded[1:-1] + padded[2:] + 2) >> 2
    padded = np.concatenate((picture[:, :1], picture, picture[:, -1:]), axis=1)
    return (padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:] + 2) >> 2
