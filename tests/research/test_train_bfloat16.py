"""The study's trainer: what it makes faster stays what it was."""

import pytest
import torch
from torch.nn import functional as F
from trees import write_picture

pytestmark = pytest.mark.all_only


@pytest.fixture
def trainer(tools):
    import train_bfloat16

    return train_bfloat16


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_of_depthwise_convolutions(trainer, stride):
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(8, 8, 3, stride, 1, groups=8, bias=False)
    images = torch.randn(4, 8, 6, 5)
    ours, theirs = images.clone().requires_grad_(), images.clone().requires_grad_()
    output = trainer.depthwise(conv, ours)
    assert output.dtype == torch.bfloat16
    push = torch.randn(output.shape)
    found = torch.autograd.grad((output.float() * push).sum(), [ours, conv.weight])
    plain = F.conv2d(theirs, conv.weight, None, stride, 1, 1, 8)
    expected = torch.autograd.grad((plain * push).sum(), [theirs, conv.weight])
    for mine, other in zip(found, expected):
        assert (mine - other).norm() < 0.01 * other.norm()


@pytest.mark.today_only  # torch 1.13 has no torch.backends.cpu, and no fused Adam on a CPU either
@pytest.mark.parametrize("capability, lower", [("AVX512", True), ("AVX2", False)])
def test_bfloat16_only_where_the_cpu_computes_in_it(trainer, monkeypatch, capability, lower):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    torch.manual_seed(0)
    backbone = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, bias=False), torch.nn.Conv2d(8, 8, 3, groups=8, bias=False)
    )
    images = torch.randn(2, 3, 8, 6)
    plain, keys = backbone(images), list(backbone.state_dict())
    trainer.speed_up(backbone)
    output = backbone.forward(images)
    assert output.dtype == torch.float32 and list(backbone.state_dict()) == keys
    assert torch.allclose(output, plain, atol=1e-5) is not lower
    assert (output - plain).norm() < 0.02 * plain.norm()


def test_a_mobilenet_of_last_stride_1_has_twice_the_map(trainer):
    from fastreid.modeling.backbones.mobilenet import MobileNetV2

    backbone, image = MobileNetV2("BN", 0.1).eval(), torch.zeros(1, 3, 96, 64)
    assert backbone(image).shape[2:] == (3, 2)
    trainer.last_strided(backbone.features).stride = (1, 1)
    assert backbone(image).shape[2:] == (6, 4)


def test_a_picture_is_decoded_once_and_is_the_same(trainer, make_cfg, tmp_path, monkeypatch):
    from fastreid.data import common
    from fastreid.data.transforms import build_transforms

    decoded, stock = [], common.read_image
    monkeypatch.setattr(common, "read_image", lambda path: decoded.append(path) or stock(path))
    path, cfg = str(tmp_path / "one.png"), make_cfg()
    write_picture(path, size=(40, 90))
    data = common.CommDataset([(path, 0, 0)] * 2, build_transforms(cfg, is_train=False))
    plain = data[0]["images"]
    trainer.keep_pictures(cfg)
    for _ in range(2):  # epochs
        assert all(torch.equal(data[i]["images"], plain) for i in range(2))
    assert decoded == [path, path]
