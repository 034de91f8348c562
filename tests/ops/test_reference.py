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


@pytest.mark.parametrize(
    ("form", "gamma", "expected"),
    [
        # phi = (3/4, 1/4), Q = (1, 1/e), P = (1/4, 3/4): the assignment costs
        # 3/4 ln 3 + 1/4 ln 1/3 = 0.5493061 nats, and log Q is -1/4 on average.
        ("clusters", 0.0, 0.25 - 0.75 * math.log(4) - 0.25 * math.log(4 / 3)),
        ("clusters", 1.0, 0.5493061 + 0.25 - 0.75 * math.log(4) - 0.25 * math.log(4 / 3)),
        ("embedding", 0.0, -math.log(3 + 1 / (3 * math.e))),
        ("embedding", 2.0, 2 * 0.5493061 - math.log(3 + 1 / (3 * math.e))),
    ],
)
def test_forms_and_marginal_by_hand(form, gamma, expected):
    log_p = torch.tensor([0.25, 0.75], dtype=torch.float64).log()
    value = loss([[5.0, 0.0]], [0], gamma=gamma, form=form, log_p=log_p)
    assert value.item() == pytest.approx(expected, abs=1e-7)


def test_embedding_form_without_marginal_by_hand():
    assert loss([[5.0, 0.0]], [0], form="embedding").item() == pytest.approx(
        -math.log(0.75 + 0.25 / math.e)
    )


def test_nothing_to_average():
    assert loss([[5.0, 0.0]], [-1]).item() == 0


def test_what_is_not_known_is_refused():
    for name, value in (("reduction", "avg"), ("form", "both")):
        with pytest.raises(ValueError, match=f"{name} must be .* got '{value}'"):
            loss([[5.0, 0.0]], [0], **{name: value})
