import warnings

import numpy as np
import pytest
import torch
from cases import affine, picture_loader
from PIL import Image

from fastreid_rib.compat import loading

pytestmark = pytest.mark.published

PIXELS = np.random.RandomState(0).randint(0, 256, (6, 4, 3)).astype(np.uint8)
EXPECTED = {
    # mode: (image, values as (height, width, channels), dtype)
    "RGB": (Image.fromarray(PIXELS), PIXELS, torch.float32),
    "L": (Image.fromarray(PIXELS[..., 0]), PIXELS[..., :1], torch.float32),
    "LA": (Image.fromarray(PIXELS[..., :2], "LA"), PIXELS[..., :2], torch.float32),
    "1": (
        Image.fromarray(PIXELS[..., 0]).point(lambda v: 255 * (v > 99), "1"),
        255 * (PIXELS[..., :1] > 99),
        torch.float32,
    ),
    "I": (
        Image.fromarray(PIXELS[..., 0].astype(np.int32) * 1000),
        PIXELS[..., :1].astype(np.int64) * 1000,
        torch.int32,
    ),
    "I;16": (
        Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 100),
        PIXELS[..., :1].astype(np.int64) * 100,
        torch.int16,
    ),
    "F": (
        Image.fromarray(PIXELS[..., 0].astype(np.float32) / 7),
        PIXELS[..., :1].astype(np.float32) / 7,
        torch.float32,
    ),
}


@pytest.mark.parametrize("mode", sorted(EXPECTED))
def test_images_become_tensors(mode):
    from fastreid.data.transforms.functional import to_tensor

    image, values, dtype = EXPECTED[mode]
    assert image.mode == mode
    with warnings.catch_warnings():
        if loading.typed_storage_warns():
            warnings.simplefilter("error")
        tensor = to_tensor(image)
    assert tensor.dtype is dtype
    assert tensor.is_contiguous()
    np.testing.assert_array_equal(
        tensor.permute(1, 2, 0).numpy(), values.astype(tensor.numpy().dtype)
    )
    array = to_tensor(PIXELS)  # arrays (AugMix) take FastReID's own way
    np.testing.assert_array_equal(array.permute(1, 2, 0).numpy(), PIXELS.astype(np.float32))


def test_without_the_repair_numpy_2_refuses(stock):
    if stock["numpy"] >= "2":
        assert stock["image_1"].startswith("ValueError")
    else:
        assert stock["image_1"] == "torch.float32"


def test_objects_sent_between_processes_survive(tmp_path):
    from fastreid.utils import comm

    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1
    )
    try:
        with warnings.catch_warnings():
            if loading.typed_storage_warns():
                warnings.simplefilter("error")
            tensor = comm._serialize_to_tensor({"mAP": 71.5}, torch.distributed.group.WORLD)
    finally:
        torch.distributed.destroy_process_group()
    import pickle

    assert tensor.dtype is torch.uint8
    assert pickle.loads(tensor.numpy().tobytes()) == {"mAP": 71.5}


@pytest.mark.parametrize("workers, cores, expected", [(0, 8, 0), (8, 2, 2), (8, 64, 4), (1, 64, 1)])
def test_workers_of_the_test_loader(workers, cores, expected, monkeypatch):
    import os

    from fastreid.config import get_cfg
    from fastreid.data import build_reid_test_loader

    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    cfg = get_cfg()
    cfg.DATALOADER.NUM_WORKERS = workers
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch counts the real cores
        loader, num_query = build_reid_test_loader(cfg, test_set=[0, 1], num_query=1)
    assert (loader.num_workers, num_query) == (expected, 1)
    explicit, _ = build_reid_test_loader([0, 1], 128, 1, num_workers=1)
    assert explicit.num_workers == 1


def test_affine_augmentation(stock):
    assert "resample" in stock["affine"]
    assert affine() == [3, 32, 16]


def test_other_transforms_of_the_build_are_torchvisions():
    import torchvision.transforms as transforms
    from fastreid.data.transforms import build

    assert build.T.RandomErasing is transforms.RandomErasing
    assert transforms.RandomAffine.__module__ == "torchvision.transforms.transforms"


@pytest.mark.skipif(torch.cuda.is_available(), reason="the loader would use the GPU")
@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_ends_the_training_with_its_error(workers):
    with pytest.raises(OSError, match="image 6 is truncated"):
        batches = iter(picture_loader(broken=(6,), workers=workers))
        for _ in range(3):
            next(batches)
