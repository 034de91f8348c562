"""How well an embedding finds people: mAP and Rank-1 as for Market-1501."""

from typing import NamedTuple, Tuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils.data import DataLoader

from pedestrians import Pictures, Splits


class Accuracy(NamedTuple):
    """Means over the queries, in percent."""

    average_precision: float
    rank1: float

    def __str__(self) -> str:
        """As it is printed."""
        return f"mAP {self.average_precision:.1f}, Rank-1 {self.rank1:.1f}"


def accuracy(model: nn.Module, splits: Splits, height: int) -> Accuracy:
    """Searches for each query among the gallery, by the cosine of the embeddings.

    Args:
        model: in evaluation mode, in which it is left, it makes (n, D) embeddings of
            (n, 3, height, height / 2) pictures.
        splits: the data set.
        height: of the pictures.
    """
    queries, query_identities, query_cameras = _embed_all(model, Pictures(splits.query, height))
    gallery, identities, cameras = _embed_all(model, Pictures(splits.gallery, height))
    precisions, first = [], []
    for query, identity, camera in zip(queries, query_identities, query_cameras):
        # the same person by the same camera is too easy: it counts neither as right nor as wrong
        counts = (identities != identity) | (cameras != camera)
        order = (gallery[counts] @ query).argsort(descending=True)
        right = (identities[counts][order] == identity).double()
        if right.any():
            precision = right.cumsum(0) / torch.arange(1, len(right) + 1)
            precisions.append((precision * right).sum() / right.sum())
            first.append(right[0])
    return Accuracy(*(100 * float(torch.stack(each).mean()) for each in (precisions, first)))


@torch.no_grad()
def _embed_all(model: nn.Module, pictures: Pictures) -> Tuple[Tensor, Tensor, Tensor]:
    model.eval()
    device = next(model.parameters()).device
    loader = DataLoader(pictures, batch_size=64)
    batches = [(model(images.to(device)).cpu(), *about) for images, *about in loader]
    embeddings, identities, cameras = (torch.cat(part) for part in zip(*batches))
    return normalize(embeddings), identities, cameras
