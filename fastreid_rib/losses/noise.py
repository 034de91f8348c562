"""Camera noise: embeddings as other cameras might have given them, for the classifier.

Legend: N rows in the reservoir, D dimensions, S differences, n images of a batch.
"""

import random
from typing import Optional

import torch
from torch import Tensor

from fastreid_rib.losses.table import Pairs, Rows

_DIFFERENCES = 4096  # at most: 17 MB for 2048 dimensions


def between_cameras(rows: Rows, seen: Optional[Pairs], draw: random.Random) -> Optional[Tensor]:
    """Differences of two rows of one identity that two cameras saw, drawn at random.

    Each row is as likely to be the first, and each of another camera that shows its identity as
    likely to be the second.

    Args:
        rows: L2-normalised, not centred.
        seen: their pairs of identity and camera.
        draw: source of all chance.

    Returns:
        (S, D), in the rows' dtype; None: no identity was seen by two cameras.
    """
    if seen is None:
        return None
    owners = torch.div(seen.codes, len(seen.cameras), rounding_mode="floor")
    order = seen.of_rows.sort(stable=True).indices  # by identity, and in it by camera
    sizes = torch.bincount(seen.of_rows)
    of_identity = torch.bincount(rows.labels)
    others = (of_identity[owners] - sizes)[seen.of_rows]
    first = (others > 0).nonzero().squeeze(1)
    if not len(first):
        return None
    number = min(len(rows.labels), _DIFFERENCES)
    drawn = [(draw.random(), draw.random()) for _ in range(number)]
    chance = torch.tensor(drawn, dtype=torch.float64, device="cpu").to(first.device)
    first = first[(chance[:, 0] * len(first)).long()]
    pair = seen.of_rows[first]
    begin = (sizes.cumsum(0) - sizes)[pair]
    place = (of_identity.cumsum(0) - of_identity)[owners[pair]]
    place = place + (chance[:, 1] * others[first]).long()
    place = place + torch.where(place >= begin, sizes[pair], torch.zeros_like(place))
    return rows.embeddings[first] - rows.embeddings[order[place]]


def add_noise(embeddings: Tensor, differences: Tensor, share: float) -> Tensor:
    """Embeddings, (n, D), plus differences drawn at random: ``share`` times their own length.

    torch's generator of the device draws, as in dropout.
    """
    drawn = torch.randint(len(differences), embeddings.shape[:1], device=embeddings.device)
    lengths = embeddings.detach().float().norm(dim=1, keepdim=True)
    noise = share * lengths * differences[drawn].float()
    return embeddings + noise.to(embeddings.dtype)
