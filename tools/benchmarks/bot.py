"""A training step of BoT (ResNet-50) on random images, for what is measured as a share of one."""

import fastreid_rib  # noqa: F401  before FastReID, also where the .pth file is not installed

# isort: split
import torch
from benchmarks.harness import REPOSITORY
from fastreid.config import get_cfg
from fastreid.modeling import build_model
from fastreid.solver import build_optimizer
from fastreid.utils.events import EventStorage


def make_step(batch, identities, changes, image_size=None):
    """Builds BoT on the CPU, without RIB unless the changes name it.

    Args:
        batch: images in a step, four of each identity.
        identities: classes of the head.
        changes: keys of the config and their values.
        image_size: rows and columns, if not the config's.

    Returns:
        A function that makes one training step of an epoch.
    """
    cfg = get_cfg()
    cfg.merge_from_file(str(REPOSITORY / "configs" / "Market1501" / "rib_bot_R50.yml"))
    keys = {
        "MODEL.DEVICE": "cpu",
        "MODEL.BACKBONE.PRETRAIN": False,
        "MODEL.HEADS.NUM_CLASSES": identities,
        "MODEL.LOSSES.NAME": ("CrossEntropy", "Triplet"),
        **changes,
    }
    cfg.merge_from_list([part for key in keys.items() for part in key])
    model = build_model(cfg).train()
    optimizer, _ = build_optimizer(cfg, model)
    images = torch.rand(batch, 3, *(image_size or cfg.INPUT.SIZE_TRAIN)) * 255
    labels = torch.arange(batch) // 4

    def step(epoch=0):
        with EventStorage() as storage:
            storage.epoch = epoch
            losses = model({"images": images.clone(), "targets": labels})
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()

    return step
