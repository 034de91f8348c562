"""A search on a real GPU, in mixed precision: `bash tools/run_tests.sh --fast tests/gpu`."""

import pytest
import torch
from fastreid.engine import DefaultTrainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_a_search_in_mixed_precision(make_cfg, tmp_path):
    (tmp_path / "logs").mkdir()
    changes = {
        "MODEL.DEVICE": "cuda",
        "MODEL.BACKBONE.NAME": "build_searched_backbone",
        "MODEL.BACKBONE.DEPTH": "0.25x",
        "MODEL.LOSSES.NAME": ("CrossEntropy", "Triplet", "RIB"),
        "MODEL.SEARCH.ENABLED": True,
        "MODEL.SEARCH.WEIGHTS_SHARE": 0.5,
        "SOLVER.AMP.ENABLED": True,
        "SOLVER.MAX_EPOCH": 4,
    }
    trainer = DefaultTrainer(make_cfg(changes))
    before = [value.detach().clone() for value in trainer.model.search.parameters()]
    results = trainer.train()
    after = list(trainer.model.search.parameters())
    assert all(torch.isfinite(value).all() for value in after)
    assert any(not torch.equal(old, new) for old, new in zip(before, after))
    assert 0 <= results["mAP"] <= 100 and (tmp_path / "logs" / "searched.yml").exists()
