import os
import pickle
import warnings

import numpy as np
import pytest
import torch
from cases import group_of_one, picture_loader
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


@pytest.fixture
def strict():
    """What torch 2 deprecates is an error."""
    with warnings.catch_warnings():
        if loading.typed_storage_warns():
            warnings.simplefilter("error")
        yield


def test_images_become_tensors(strict):
    from fastreid.data.transforms.functional import to_tensor

    for mode, (image, values, dtype) in EXPECTED.items():
        tensor = to_tensor(image)
        assert image.mode == mode and tensor.dtype is dtype and tensor.is_contiguous()
        expected = values.astype(tensor.numpy().dtype)
        np.testing.assert_array_equal(tensor.permute(1, 2, 0).numpy(), expected, mode)
    array = to_tensor(PIXELS)  # arrays (AugMix) take FastReID's own way
    np.testing.assert_array_equal(array.permute(1, 2, 0).numpy(), PIXELS.astype(np.float32))


def test_objects_sent_between_processes_survive(strict):
    from fastreid.utils import comm

    with group_of_one() as group:
        tensor = comm._serialize_to_tensor({"mAP": 71.5}, group)
    assert tensor.dtype is torch.uint8
    assert pickle.loads(tensor.numpy().tobytes()) == {"mAP": 71.5}


def test_workers_of_the_test_loader(monkeypatch):
    from fastreid.config import get_cfg
    from fastreid.data import build_reid_test_loader

    cfg = get_cfg()
    for workers, cores, expected in ((0, 8, 0), (8, 2, 2), (8, 64, 4), (1, 64, 1)):
        monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
        cfg.DATALOADER.NUM_WORKERS = workers
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch counts the real cores
            loader, num_query = build_reid_test_loader(cfg, test_set=[0, 1], num_query=1)
        assert (loader.num_workers, num_query) == (expected, 1)
    explicit, _ = build_reid_test_loader([0, 1], 128, 1, num_workers=1)
    assert explicit.num_workers == 1


def test_other_transforms_of_the_build_are_torchvisions():
    import torchvision.transforms as transforms
    from fastreid.data.transforms import build

    assert build.T.RandomErasing is transforms.RandomErasing
    assert transforms.RandomAffine.__module__ == "torchvision.transforms.transforms"


@pytest.mark.skipif(torch.cuda.is_available(), reason="the loader would use the GPU")
def test_an_unreadable_image_ends_the_training_with_its_error():
    for workers in (0, 1):
        with pytest.raises(OSError, match="image 6 is truncated"):
            batches = iter(picture_loader(broken=(6,), workers=workers))
            for _ in range(3):
                next(batches)
