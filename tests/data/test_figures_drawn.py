import numpy as np
import pytest

from fastreid_rib.data.canvas import Canvas, Cloth
from fastreid_rib.data.figures import Pedestrian, Place, Pose, paint_pedestrian

GREY, RED = (90, 90, 90), (250, 0, 0)
VIEWS = ("front", "back", "left", "right")


def somebody(**changes):
    plain = Cloth(GREY, GREY)
    who = Pedestrian.random(np.random.RandomState(0))._replace(
        upper=plain, sleeves=plain, lower=plain, bag="none", stature=1000, girth=1000
    )
    return who._replace(**changes)


def seen(who, view, phase=60):
    canvas = Canvas(128)
    paint_pedestrian(canvas, who, Pose(view, phase), Place(256, 40, 900))
    return canvas.samples


def red(picture):
    return int((picture == np.array(RED)).all(axis=2).sum())


def test_walking_left_mirrors_walking_right():
    who = somebody()
    assert np.array_equal(seen(who, "left"), seen(who, "right")[:, ::-1])


def test_backpack_shows_fully_only_from_behind():
    who = somebody(bag="backpack", bag_colour=RED)
    size = {view: red(seen(who, view)) for view in VIEWS}
    assert size["back"] > 2 * size["front"] > 0
    assert size["left"] == size["right"] > 0


def test_bag_on_the_left_is_hidden_by_the_body_when_walking_right():
    who = somebody(bag="shoulder", bag_side=1, bag_colour=RED)  # 1 is the left side
    assert red(seen(who, "left")) > red(seen(who, "right"))
    assert red(seen(who._replace(bag_side=-1), "right")) == red(seen(who, "left"))
    columns = np.where((seen(who, "front") == np.array(RED)).all(axis=2))[1]
    assert columns.mean() > 64  # our right, as they face us


@pytest.mark.parametrize("view", VIEWS)
def test_stride_shows_in_every_view(view):
    calm, brisk = somebody(stride=50, arm_swing=20), somebody(stride=130, arm_swing=110)
    assert not np.array_equal(seen(calm, view), seen(brisk, view))
    assert np.array_equal(seen(calm, view, 0), seen(brisk, view, 0))  # legs together


def test_build_shows_in_height_and_width():
    def extent(who):
        rows, columns, _ = np.nonzero(seen(who, "front"))
        return np.ptp(rows), np.ptp(columns)

    height, width = extent(somebody())
    assert extent(somebody(stature=950))[0] < height
    assert extent(somebody(girth=1100))[1] > width


def test_people_differ_and_stay_themselves():
    people = [Pedestrian.random(np.random.RandomState(seed)) for seed in range(50)]
    assert len(set(people)) == 50
    assert people[7] == Pedestrian.random(np.random.RandomState(7))
