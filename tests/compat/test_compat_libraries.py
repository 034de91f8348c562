"""What Python, torch, torchvision and NumPy took away."""

import collections
import pickle
import sys
import warnings
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image
from small_uses import group_of_one

from fastreid_rib.compat import libraries

pytestmark = pytest.mark.published


def lent(repair):
    return contextmanager(repair)()


def test_names_are_lent_and_taken_back():
    found = sys.modules.get("torch._six")
    with lent(libraries.lost_names):
        from torch._six import container_abcs, string_classes

        assert isinstance({}, collections.Mapping) and isinstance("", string_classes)
        assert isinstance({}, container_abcs.Mapping)
    assert sys.modules.get("torch._six") is found
    assert "Mapping" not in vars(collections)


def test_a_missing_dependency_says_what_to_install():
    for name, told in (("faiss", "python -m pip install faiss-cpu"), ("mine", "^No module named")):
        with pytest.raises(ModuleNotFoundError, match=told), lent(libraries.dependencies):
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)


PIXELS = np.random.RandomState(0).randint(0, 256, (6, 4, 3)).astype(np.uint8)
GREY = PIXELS[..., :1].astype(np.int64)
IMAGES = {
    # mode: (image, values as (height, width, channels), dtype)
    "RGB": (Image.fromarray(PIXELS), PIXELS, torch.float32),
    "L": (Image.fromarray(PIXELS[..., 0]), GREY, torch.float32),
    "1": (
        Image.fromarray(PIXELS[..., 0]).point(lambda v: 255 * (v > 99), "1"),
        255 * (GREY > 99),
        torch.float32,
    ),
    "I": (Image.fromarray(PIXELS[..., 0].astype(np.int32) * 1000), GREY * 1000, torch.int32),
    "I;16": (Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 100), GREY * 100, torch.int16),
    "F": (Image.fromarray(PIXELS[..., 0].astype(np.float32) / 8), GREY / 8, torch.float32),
}


@pytest.fixture
def strict():
    """What torch 2 deprecates is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_images_become_tensors(strict):
    from fastreid.data.transforms.functional import to_tensor

    for mode, (image, values, dtype) in IMAGES.items():
        tensor = to_tensor(image)
        assert image.mode == mode and tensor.dtype is dtype and tensor.is_contiguous()
        np.testing.assert_array_equal(tensor.permute(1, 2, 0).numpy(), values, mode)
    array = to_tensor(PIXELS)  # arrays (AugMix) take FastReID's own way
    np.testing.assert_array_equal(array.permute(1, 2, 0).numpy(), PIXELS)


def test_objects_sent_between_processes_survive(strict):
    from fastreid.utils import comm

    with group_of_one() as group:
        tensor = comm._serialize_to_tensor({"mAP": 71.5}, group)
    assert pickle.loads(tensor.numpy().tobytes()) == {"mAP": 71.5}


def test_affine_and_the_other_transforms():
    import torchvision.transforms as transforms
    from fastreid.config import get_cfg
    from fastreid.data.transforms import build, build_transforms

    cfg = get_cfg()
    cfg.INPUT.AFFINE.ENABLED, cfg.INPUT.SIZE_TRAIN = True, [32, 16]
    assert build_transforms(cfg, is_train=True)(Image.new("RGB", (16, 32))).shape == (3, 32, 16)
    assert build.T.RandomErasing is transforms.RandomErasing
    assert transforms.RandomAffine.__module__ == "torchvision.transforms.transforms"


def test_cuhk03_protocol():
    """Three queries, gallery of three identities seen by the other camera: everything is found."""
    from fastreid.evaluation.rank import evaluate_rank

    pids, distances = np.arange(3), 1.0 - np.eye(3, dtype=np.float32)
    cameras = np.zeros(3, int), np.ones(3, int)
    found = evaluate_rank(distances, pids, pids, *cameras, use_metric_cuhk03=True, use_cython=False)
    assert found[0].tolist() == [1.0] * 50 and found[1] == 1.0


def test_a_retired_key_warns_and_is_ignored(caplog):
    from fastreid.config import get_cfg

    cfg = get_cfg()
    cfg.merge_from_list(["SOLVER.FREEZE_FC_ITERS", 5, "SOLVER.MAX_EPOCH", 3])
    assert cfg.SOLVER.MAX_EPOCH == 3 and "FREEZE_FC_ITERS" not in cfg.SOLVER
    assert "SOLVER.FREEZE_FC_ITERS" in caplog.text
    with pytest.raises((KeyError, AssertionError), match="Non-existent"):
        cfg.merge_from_list(["SOLVER.FREEZE_FC_ITER", 5])
