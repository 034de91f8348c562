"""What data sets of one's own, the distiller and the demo hand to FastReID."""

import pytest
from cases import (
    drawn_ranks,
    labels_of,
    teacher_of_another_device,
    words_and_numbers,
    words_of_a_test_set,
)


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    """The cases put stand-ins for reading and drawing pictures."""
    from fastreid.data import common
    from fastreid.utils.visualizer import Visualizer

    monkeypatch.setattr(common, "read_image", common.read_image)
    monkeypatch.setattr(Visualizer, "save_rank_result", Visualizer.save_rank_result)


def test_words_in_a_test_set(stock):
    assert "'list' object has no attribute" in stock["words"]
    assert words_of_a_test_set() == ([0, 1, 0], [0, 1, 1])


def test_words_beside_numbers(stock):
    assert "'<' not supported" in stock["mixed"]
    assert words_and_numbers() == ([2, 1, 0], [1, 1, 0])


def test_what_worked_is_left_as_it_is():
    assert labels_of((7, 3), (-1, 2), relabel=False) == ([7, -1], [3, 2])
    assert labels_of(("b", "y"), ("a", "x"), relabel=True) == ([1, 0], [1, 0])


def test_a_teacher_is_where_the_student_is(stock):
    assert stock["teacher"] != "cpu"
    assert teacher_of_another_device() == "cpu"


def test_a_number_of_ranks_from_the_command_line(stock):
    assert stock["ranks"].startswith("TypeError")
    assert drawn_ranks() == 2 * 5
