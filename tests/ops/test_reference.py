import math

import pytest
import torch

from fastreid_rib.ops import rib_loss_reference


def loss(embeddings, labels, **kwargs):
    log_q = torch.tensor([[0.0, -1.0], [-1.0, 0.0]])
    arguments = {"beta": math.log(3) / 2, **kwargs}
    return rib_loss_reference(
        torch.tensor(embeddings), torch.tensor(labels), torch.eye(2), log_q, **arguments
    )


def test_by_hand():
    # (5, 0) is normalised to (1, 0), assigned (3/4, 1/4); (0, 2) the other way round.
    per_image = loss([[5.0, 0.0], [0.0, 2.0], [1.0, 1.0]], [0, 0, -1], reduction="none")
    assert per_image.tolist() == pytest.approx([0.25, 0.75, 0.0])
    assert loss([[5.0, 0.0], [0.0, 2.0], [1.0, 1.0]], [0, 0, -1]).item() == pytest.approx(0.5)
    assert loss([[5.0, 0.0], [0.0, 2.0]], [0, 1], reduction="sum").item() == pytest.approx(0.5)


def test_entropy_part_by_hand():
    assert loss([[5.0, 0.0]], [0], gamma=1.0).item() == pytest.approx(0.25 - 0.5623351)


def test_nothing_to_average():
    assert loss([[5.0, 0.0]], [-1]).item() == 0


def test_reduction_is_checked():
    with pytest.raises(ValueError, match="reduction must be"):
        loss([[5.0, 0.0]], [0], reduction="avg")
