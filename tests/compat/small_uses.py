"""Small uses of FastReID that several tests share."""

import tempfile
from contextlib import contextmanager

import torch
from fastreid.config import get_cfg
from fastreid.data import build_reid_train_loader
from fastreid.data.build import samplers


def solver_cfg(**solver):
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    for key, value in dict({"OPT": "SGD", "BASE_LR": 0.1}, **solver).items():
        setattr(cfg.SOLVER, key, value)
    return cfg


def small_model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))


def small_batch():
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(16, 4, generator=generator),
        torch.randint(0, 3, (16,), generator=generator),
    )


def steps(model, optimizer, count=5):
    """Trains; returns the losses."""
    images, labels = small_batch()
    losses = []
    for _ in range(count):
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


class Pictures(torch.utils.data.Dataset):
    """Eight pictures, each of one value; those of `broken` cannot be read."""

    def __init__(self, broken=(), size=2):
        self.broken, self.size = broken, size

    def __len__(self):
        return 8

    def __getitem__(self, index):
        if index in self.broken:
            raise OSError(f"image {index} is truncated")
        images = torch.full((3, self.size, self.size), float(index))
        return {"images": images, "targets": int(index)}


def picture_loader(workers=0, **how):
    return build_reid_train_loader(
        Pictures(**how),
        sampler=samplers.TrainingSampler(8, shuffle=False, seed=0),
        total_batch_size=4,
        num_workers=workers,
    )


@contextmanager
def group_of_one():
    with tempfile.TemporaryDirectory() as folder:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/meet", rank=0, world_size=1
        )
        try:
            yield torch.distributed.group.WORLD
        finally:
            torch.distributed.destroy_process_group()
