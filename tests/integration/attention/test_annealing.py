"""The temperature of DCS's mask falls as the epochs go by."""

import pytest
import torch
from fastreid.modeling import build_model
from fastreid.utils.events import EventStorage
from placed import attend, attentions, batch, embed, train


def test_the_temperature_follows_the_epochs(make_cfg):
    # RIB is not in the loss: the attention needs no more than FastReID's trainer.
    changes = attend("layer3", "head", TEMPERATURE=4.0, FINAL_TEMPERATURE=1.0)
    model = build_model(make_cfg({**changes, "SOLVER.MAX_EPOCH": 3}))
    masks = [module.mask for module in attentions(model).values()]
    seen = []
    for _ in train(model, epochs=4):
        seen.append([mask.temperature for mask in masks])
    # Geometrically from the first epoch to the last; a trainer that goes on stays there.
    expected = [[4.0, 4.0], [2.0, 2.0], [1.0, 1.0], [1.0, 1.0]]
    assert torch.allclose(torch.tensor(seen), torch.tensor(expected))
    embed(model)  # needs no event storage
    with EventStorage():  # as PreciseBN's, which knows no epoch
        model.train()(batch())
    assert masks[0].temperature == pytest.approx(1.0)
