"""``tools/train_net.py`` for many short runs on a CPU: 1.6 to 2.4 times as fast, other bits.

The backbone computes in bfloat16 and channels last, Adam is torch's fused one, on one thread.
Gradients of depthwise convolutions are computed in float32: in bfloat16 they are so slow that a
step of a MobileNetV2 takes 2.4 times as long. Pictures are decoded and resized once. Heads and
losses stay in float32, and so does the backbone, which the log says, on a CPU that only emulates
bfloat16. Accuracies agree with ``tools/train_net.py`` as two runs of it with other rounding would
(about a point of mAP in the quick start)::

    python tools/research/train_bfloat16.py --config-file configs/quickstart/rib.yml SEED 10

``STUDY.RIVAL`` adds a loss to compare RIB with, see ``rivals.py``; ``STUDY.PICTURES`` and
``STUDY.WRONG_LABELS`` make the training set worse, see ``worse_data.py``. ``STUDY.LAST_STRIDE``
does for a MobileNetV2 what MODEL.BACKBONE.LAST_STRIDE does for a ResNet: FastReID reads it there.
"""

import functools
import logging

import fastreid_rib  # noqa: F401  before FastReID, also where the .pth file is not installed

# isort: split
import rivals
import torch
import worse_data
from fastreid.config import CfgNode, get_cfg
from fastreid.data import common
from fastreid.engine import DefaultTrainer, default_argument_parser, default_setup
from PIL import Image
from torch.nn import functional as F

logger = logging.getLogger("fastreid." + __name__)

STUDY = {
    "RIVAL": "",
    "RIVAL_SCALE": 1.0,
    "RIVAL_BETA": 10.0,
    "PICTURES": 0,
    "WRONG_LABELS": 0.0,
    "LAST_STRIDE": 2,
}
"""The keys of studies, with their defaults."""


class Trainer(DefaultTrainer):
    """FastReID's trainer with a faster model and optimizer; everything else is its own."""

    @classmethod
    def build_model(cls, cfg):
        """FastReID's model, its backbone faster."""
        model = super().build_model(cfg)
        if cfg.STUDY.LAST_STRIDE == 1:
            last_strided(model.backbone.features).stride = (1, 1)
        speed_up(model.backbone)
        if cfg.STUDY.RIVAL:
            rival = cfg.STUDY
            classes = cfg.MODEL.HEADS.NUM_CLASSES
            rivals.add(model, rival.RIVAL, rival.RIVAL_SCALE, classes, rival.RIVAL_BETA)
        return model

    @classmethod
    def build_train_loader(cls, cfg):
        """FastReID's loader, perhaps on a worse training set."""
        if cfg.STUDY.PICTURES or cfg.STUDY.WRONG_LABELS:
            return worse_data.train_loader(cfg, cfg.STUDY.PICTURES, cfg.STUDY.WRONG_LABELS)
        return super().build_train_loader(cfg)

    @classmethod
    def build_optimizer(cls, cfg, model):
        """FastReID's optimizer, one pass over the parameters instead of ten."""
        optimizer, parameters = super().build_optimizer(cfg, model)
        if isinstance(optimizer, torch.optim.Adam):
            for group in optimizer.param_groups:
                group.update(fused=True, foreach=False)
        return optimizer, parameters


def last_strided(layers):
    """The last convolution of some layers that halves the map."""
    convolutions = (m for m in layers.modules() if isinstance(m, torch.nn.Conv2d))
    return [m for m in convolutions if m.stride == (2, 2)][-1]


def speed_up(backbone):
    """Lets a backbone compute channels last, and in bfloat16 where the CPU is fast in it.

    Args:
        backbone: takes (B, 3, H, W), float32, and keeps its modules and keys.
    """
    lower = computes_bfloat16()
    # On the instance: a wrapper module would change the keys of checkpoints.
    backbone.forward = functools.partial(channels_last, backbone.forward, lower)
    if not lower:
        logger.warning("This CPU only emulates bfloat16: the backbone computes in float32.")
        return
    for module in backbone.modules():
        if isinstance(module, torch.nn.Conv2d) and module.groups > 1:
            module.forward = functools.partial(depthwise, module)


def computes_bfloat16():
    """Whether this CPU has instructions for bfloat16. One that emulates it is slower than float32.

    Measured with MobileNetV2 (96x48, batch 64): 5.5 s a step against 0.65 s with AVX2, and 0.69 s
    against 0.44 s with AVX-512 that lacks them.
    """
    return torch.cpu._is_avx512_bf16_supported()


def channels_last(forward, lower, images):
    """What a backbone's forward gives to images in the order channels last.

    Args:
        forward: of the backbone.
        lower: whether autocast computes it in bfloat16.
        images: (B, 3, H, W), float32.

    Returns:
        (B, C, h, w), float32.
    """
    with torch.autocast("cpu", torch.bfloat16, enabled=lower):
        return forward(images.contiguous(memory_format=torch.channels_last)).float()


class _Depthwise(torch.autograd.Function):
    """A grouped convolution in bfloat16, its gradients in float32."""

    @staticmethod
    def forward(ctx, images, weight, stride, padding, groups):
        ctx.save_for_backward(images, weight)
        ctx.settings = (stride, padding, groups)
        return F.conv2d(images, weight, None, stride, padding, 1, groups)

    @staticmethod
    def backward(ctx, grad):
        images, weight = ctx.saved_tensors
        stride, padding, groups = ctx.settings
        of_images, of_weight, _ = torch.ops.aten.convolution_backward(
            grad.float(), images.float(), weight.float(), None,
            stride, padding, (1, 1), False, (0, 0), groups, (True, True, False),
        )  # fmt: skip
        return of_images.to(images.dtype), of_weight.to(weight.dtype), None, None, None


def depthwise(conv, images):
    """What a grouped convolution without bias gives, in bfloat16: see :class:`_Depthwise`."""
    assert conv.bias is None and conv.dilation == (1, 1)
    return _Depthwise.apply(
        images.bfloat16(), conv.weight.bfloat16(), conv.stride, conv.padding, conv.groups
    )


def keep_pictures(cfg):
    """Lets FastReID's data sets decode and resize a picture once; the resize after it is a no-op.

    Args:
        cfg: a FastReID config, whose training and test size must be the same.
    """
    height, width = cfg.INPUT.SIZE_TRAIN
    stock = common.read_image

    @functools.lru_cache(maxsize=None)
    def read_image(path):
        image = stock(path)
        if image.size == (width, height):
            return image
        return image.resize((width, height), Image.BICUBIC)  # as FastReID's own resize

    if list(cfg.INPUT.SIZE_TEST) == [height, width]:
        common.read_image = read_image


def main():
    """Trains what the command line says; MODEL.DEVICE must be cpu."""
    args = default_argument_parser().parse_args()
    torch.set_num_threads(1)
    cfg = get_cfg()
    cfg.STUDY = CfgNode(STUDY)
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    cfg.freeze()
    if cfg.MODEL.DEVICE != "cpu":
        raise SystemExit(f"train_bfloat16: MODEL.DEVICE must be cpu, got {cfg.MODEL.DEVICE}")
    default_setup(cfg, args)
    keep_pictures(cfg)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()


if __name__ == "__main__":
    main()
