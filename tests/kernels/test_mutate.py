"""The command that injects bugs: it finds its places in the source, and the fuzz notices some."""

import shutil

import mutate
import pytest
from emulation import RANDOM


def test_every_bug_still_has_its_place():
    assert len(mutate.MUTANTS) > 45
    for mutant in mutate.MUTANTS:
        assert mutate.mutated(mutant) != mutate.unchanged(), mutant.name


def test_a_bug_without_its_place_is_an_error():
    with pytest.raises(ValueError, match=r"rows\.cuh has this text 0 times"):
        mutate.mutated(mutate.Mutant("gone", "no such line", ""))


@pytest.mark.all_only
@pytest.mark.today_only  # the sources are the same on every stack
@pytest.mark.skipif(not shutil.which("g++"), reason="no g++ on PATH")
@pytest.mark.parametrize(
    "name",
    [
        "gamma: left out of the gradient",
        "the cache of another thread is read",
        "table: images by their place, not by the order",
    ],
)
def test_an_injected_bug_is_noticed(name):
    (mutant,) = [one for one in mutate.MUTANTS if one.name == name]
    (complaint,) = mutate.look_at(mutate.mutated(mutant), [RANDOM])
    assert "wrong" in complaint, complaint
