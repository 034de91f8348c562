"""What tests of several of FastReID's architectures share."""

import pytest
import torch
from fastreid.modeling import build_model


@pytest.fixture
def distill(make_cfg, tmp_path):
    """Writes an untrained teacher; returns the changes that make a config its Distiller's."""

    def write(teacher):
        cfg = make_cfg(teacher)
        torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "teacher.pth")
        (tmp_path / "teacher.yml").write_text(cfg.dump())
        return {
            "MODEL.META_ARCHITECTURE": "Distiller",
            "KD.MODEL_CONFIG": [str(tmp_path / "teacher.yml")],
            "KD.MODEL_WEIGHTS": [str(tmp_path / "teacher.pth")],
            "KD.EMA.ENABLED": True,
        }

    return write
