"""The information bottleneck of Gaussian embeddings, which has a solution in closed form.

Legend: N embeddings, D dimensions, d of them kept, C identities.
"""

import sys
from typing import Tuple

import torch
from torch import Tensor

from fastreid_rib.losses.functional import check_batch
from fastreid_rib.ops.sums import group_sum

_FEW = 200  # identities: fewer do not span the directions in which others differ
_ALIKE = 10  # as if so many more were known, who differ alike in all directions


def gaussian_bottleneck(embeddings: Tensor, labels: Tensor, dim: int = 0) -> Tuple[Tensor, Tensor]:
    """What of embeddings tells identities apart: a mean to subtract, and a projection.

    The cosine of two ``(x - mean) @ projection`` says how alike two images are. With S the
    covariance of the embeddings about their identities' means, T that about the mean of all, and a
    ridge on both, the mean variance in S::

        values, vectors = torch.linalg.eigh(torch.inverse(S) - torch.inverse(T))
        projection = vectors * values.clamp(min=0).sqrt()      # and of these the last dim

    It is the projection that the Gaussian information bottleneck (Chechik et al. 2005) approaches
    as the compression counts less and less, and its metric is KISSME's (Koestinger et al. 2012).
    The ridge is ours: images of people who were not trained on vary more than S tells. So is what
    becomes of fewer than 200 identities, with ``dim`` 0: T gets another ridge, 10 / C times the
    mean variance in T - S, and all D columns stay.

    Args:
        embeddings: (N, D), floating point: of a trained network, in evaluation mode.
        labels: (N,), int64, >= 0.
        dim: d, at most D and C - 1 of the C identities here: all other columns would be zero. 0: as
            many as that, or D where C is less than 200.

    Returns:
        The mean, (D,), and the projection, (D, d), its columns by how much they tell, both float32.

    Raises:
        TypeError: an argument is no tensor.
        ValueError: ``dim`` is out of its range, no identity has two different embeddings, or a
            shape, dtype, label or number is none of these.
    """
    check_batch(embeddings, labels, sys.maxsize)
    if bool((labels < 0).any()):
        raise ValueError(f"labels must be >= 0, got {int(labels.min())}; leave these images out")
    broken = ~embeddings.isfinite().all(dim=1)
    if bool(broken.any()):
        raise ValueError(f"{int(broken.sum())} embeddings hold NaN or infinity; leave them out")
    counts = torch.bincount(labels)
    identities, size = int((counts > 0).sum()), embeddings.shape[1]
    most = min(size, identities - 1)
    if identities < 2:
        raise ValueError(f"embeddings must be of two identities or more, got {identities}")
    if not 0 <= dim <= most:
        raise ValueError(
            f"dim must be in 0..{most}, as {identities} identities differ in at most "
            f"{identities - 1} of the {size} directions, got {dim}"
        )
    rows = embeddings.double()
    mean = rows.mean(dim=0)
    rows = rows - mean
    means = group_sum(rows, labels, len(counts)) / counts.clamp(min=1)[:, None]
    own = rows - means[labels]
    within, total = own.t() @ own / len(rows), rows.t() @ rows / len(rows)
    noise = within.diagonal().mean()
    if not noise > 0:
        raise ValueError("embeddings must differ within an identity, but in each they are equal")
    ridge = noise * torch.eye(len(within), dtype=within.dtype, device=within.device)
    within, total = within + ridge, total + ridge
    if dim == 0 and identities < _FEW:
        most, alike = size, (total - within).diagonal().mean() / noise
        total = total + _ALIKE / identities * alike * ridge
    values, vectors = torch.linalg.eigh(torch.inverse(within) - torch.inverse(total))
    projection = (vectors * values.clamp(min=0).sqrt()).flip(1)[:, : dim or most]
    return mean.float(), projection.float()
