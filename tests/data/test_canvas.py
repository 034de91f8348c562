import numpy as np
import pytest

from fastreid_rib.data.canvas import PATTERNS, Canvas, Cloth

WHITE = (255, 255, 255)


def painted(canvas):
    """Where the picture is white, as text; a height of 32 makes a pixel 32 units wide."""
    return canvas.pixels()[..., 0] == 255


def test_box_covers_the_pixels_between_its_corners():
    canvas = Canvas(32)
    canvas.box(64, 96, 128, 224, WHITE)
    expected = np.zeros((32, 16), dtype=bool)
    expected[3:7, 2:4] = True
    assert np.array_equal(painted(canvas), expected)


def test_half_covered_pixel_is_half_as_bright():
    canvas = Canvas(32)
    canvas.box(0, 0, 16, 32, WHITE)
    assert canvas.pixels()[0, 0].tolist() == [128, 128, 128]  # 255 / 2, rounded up


def test_polygon_may_go_either_way_round():
    one, other = Canvas(64), Canvas(64)
    corners = ((100, 100), (400, 180), (300, 900))
    one.polygon(corners, WHITE)
    other.polygon(corners[::-1], WHITE)
    assert painted(one).any()
    assert np.array_equal(one.pixels(), other.pixels())


def test_ellipse_has_the_area_of_one():
    canvas = Canvas(512)
    canvas.ellipse((256, 512), 100, 200, WHITE)
    area = canvas.pixels()[..., 0].sum() / 255 * 2 * 2  # a pixel is 2 x 2 units
    assert area == pytest.approx(3.14159 * 100 * 200, rel=0.01)


def test_shapes_outside_of_the_picture_leave_it_alone():
    canvas = Canvas(32)
    canvas.box(-500, -500, -100, -100, WHITE)
    canvas.ellipse((5000, 5000), 50, 50, WHITE)
    canvas.polygon(((600, 0), (700, 0), (700, 90)), WHITE)
    assert not canvas.pixels().any()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_show_both_colours(pattern):
    canvas = Canvas(128)
    canvas.box(0, 0, 512, 1024, Cloth((10, 20, 30), WHITE, pattern, 40))
    colours = {tuple(c) for c in canvas.samples.reshape(-1, 3).tolist()}
    assert colours == ({(10, 20, 30)} if pattern == "plain" else {(10, 20, 30), WHITE})


def test_unknown_pattern_is_named():
    with pytest.raises(ValueError, match="'tartan'"):
        Canvas(32).box(0, 0, 9, 9, Cloth(WHITE, WHITE, "tartan"))
