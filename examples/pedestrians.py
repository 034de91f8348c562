"""What the examples train and test on: a folder in Market-1501's layout, or drawn pedestrians."""

import argparse
import os
from typing import Iterator, List, NamedTuple, Optional, Sequence, Tuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from torchvision import transforms

from fastreid_rib.base.pictures import shots_in
from fastreid_rib.data.synthetic_folder import (
    GALLERY,
    QUERY,
    TRAIN,
    SyntheticSpec,
    folder_name,
    generate,
)

Item = Tuple[str, int, int]
"""Path, identity and camera (from 0) of a picture."""

SMALL = SyntheticSpec(
    num_train_ids=48, train_images=8, num_test_ids=40, query_images=2, gallery_images=4
)
"""Few enough pictures for a training of a minute on one CPU thread."""


def options(about: Optional[str], epochs: int) -> argparse.ArgumentParser:
    """The options of every example.

    Args:
        about: docstring of the example; its first line becomes the help text.
        epochs: how long it trains unless told.
    """
    parser = argparse.ArgumentParser(description=(about or "").partition("\n")[0])
    parser.add_argument(
        "--data", help="a folder in Market-1501's layout; without it, pedestrians are drawn"
    )
    parser.add_argument("--epochs", type=int, default=epochs, help="(default: %(default)s)")
    parser.add_argument(
        "--height", type=int, default=64, help="of a picture, twice its width (%(default)s)"
    )
    return parser


def drawn() -> str:
    """The folder of the drawn pedestrians, below the data root; made if it is not there."""
    root = os.environ.get("FASTREID_DATASETS", "datasets")
    folder = os.path.join(root, folder_name(SMALL))
    generate(folder, SMALL)
    return folder


class Splits(NamedTuple):
    """Pictures of a data set: path, identity and camera (from 0) of each.

    Attributes:
        train: their identities are labels, 0 to the number of identities - 1.
        query: pictures to search for.
        gallery: pictures to search among; none of the people are in the training set.
    """

    train: List[Item]
    query: List[Item]
    gallery: List[Item]

    @property
    def identities(self) -> int:
        """Number of people in the training set."""
        return 1 + max(label for _, label, _ in self.train)


def read(folder: Optional[str]) -> Splits:
    """Lists the pictures of a folder in Market-1501's layout; None: the drawn pedestrians."""
    folder = folder or drawn()
    train, query, gallery = (
        # -1 is Market-1501's mark for parts of people, which count neither as right nor as wrong
        [
            (os.path.join(folder, split, shot.name), shot.identity, shot.camera - 1)
            for shot in shots_in(os.path.join(folder, split), folder)
            if shot.identity >= 0
        ]
        for split in (TRAIN, QUERY, GALLERY)
    )
    labels = {identity: i for i, identity in enumerate(sorted({item[1] for item in train}))}
    train = [(path, labels[identity], camera) for path, identity, camera in train]
    return Splits(train, query, gallery)


class Pictures(Dataset):
    """Pictures as (3, height, height / 2) tensors, with identity and camera.

    Args:
        items: one of `Splits`.
        height: in pixels.
        augment: whether they are flipped, shifted and partly erased, as is usual in training.
    """

    def __init__(self, items: Sequence[Item], height: int, augment: bool = False) -> None:
        size, border = (height, height // 2), height // 25
        before = [transforms.RandomHorizontalFlip(), transforms.RandomCrop(size, padding=border)]
        self.items = items
        self.transform = transforms.Compose(
            [
                transforms.Resize(size),
                *(before if augment else []),
                transforms.ToTensor(),
                transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
                *([transforms.RandomErasing()] if augment else []),
            ]
        )

    def __len__(self) -> int:
        """How many there are."""
        return len(self.items)

    def __getitem__(self, index: int) -> Tuple[Tensor, int, int]:
        """Picture, identity and camera."""
        path, identity, camera = self.items[index]
        return self.transform(Image.open(path).convert("RGB")), identity, camera


class IdentityBatches(Sampler):
    """Batches of a few identities with a few pictures of each, as a triplet loss needs them.

    An epoch has as many batches as would show each picture once.

    Args:
        items: the pictures of the training set.
        identities: in a batch.
        pictures: of each identity; some twice, of an identity that has fewer.
    """

    def __init__(self, items: Sequence[Item], identities: int = 8, pictures: int = 4) -> None:
        self.identities, self.pictures = identities, pictures
        self.length = len(items) // (identities * pictures)
        labels = torch.tensor([label for _, label, _ in items])
        self.of_identity = [torch.where(labels == label)[0] for label in labels.unique()]

    def __len__(self) -> int:
        """How many batches an epoch has."""
        return self.length

    def __iter__(self) -> Iterator[List[int]]:
        """Indices of the pictures of each batch."""
        for _ in range(self.length):
            batch: List[int] = []
            for identity in torch.randperm(len(self.of_identity))[: self.identities]:
                own = self.of_identity[int(identity)]
                order = torch.randperm(len(own)).repeat(-(-self.pictures // len(own)))
                batch += own[order[: self.pictures]].tolist()
            yield batch
