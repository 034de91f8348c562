import pytest
from cases import annealed_after_a_long_warm_up, nan_of_a_rank

pytestmark = pytest.mark.published


def test_a_nan_names_its_term_and_its_rank(stock):
    assert stock["nan"].startswith("FloatingPointError") and "rank" not in stock["nan"]
    with pytest.raises(FloatingPointError, match="^loss_cls is nan on rank 1, at iteration 7"):
        nan_of_a_rank()


def test_a_cosine_after_a_warm_up_as_long_as_the_training(stock):
    assert stock["cosine"].startswith("ZeroDivisionError")
    assert 0 < annealed_after_a_long_warm_up() < 1e-3
