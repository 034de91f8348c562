import pickle

import pytest
import torch
from cases import load_scalars, regnet, small_model
from fastreid.utils.checkpoint import Checkpointer

from fastreid_rib.compat.checkpoint import loads_weights_only


def test_numpy_numbers_load(stock):
    if loads_weights_only():
        assert stock["scalars"].startswith("UnpicklingError")
    else:
        assert stock["scalars"] == [71.5, 3]
    assert load_scalars() == [71.5, 3]


class Stranger:
    """Something that a checkpoint has no business to hold."""


@pytest.mark.skipif(not loads_weights_only(), reason="this torch loads everything")
def test_a_file_with_code_in_it_stays_refused(tmp_path):
    path = str(tmp_path / "odd.pth")
    torch.save({"model": small_model().state_dict(), "odd": Stranger()}, path)
    with pytest.raises(pickle.UnpicklingError, match="If you trust its origin"):
        Checkpointer(small_model()).load(path)


def test_settings_of_regnet_and_effnet_are_found(stock):
    assert stock["regnet"].startswith("FileNotFoundError")
    assert regnet() == [[1, 368, 4, 2], [1, 1280, 4, 2]]
