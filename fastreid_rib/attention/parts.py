"""Attention to the parts of a map, fitted to a trained network and not trained itself.

Legend: B images of a batch, N of a training set, C channels, K parts, d numbers of each vector.
"""

import random
from typing import Any, Dict, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastreid_rib.base import ranks
from fastreid_rib.losses.clustering import kmeans, spread_seeds
from fastreid_rib.losses.gaussian import gaussian_bottleneck
from fastreid_rib.ops.assignment import soft_assignment
from fastreid_rib.ops.modes import full_precision

_STATE = ("mean", "centroids", "means", "projections")
_POSITIONS = 20_000  # at most, that the parts are found in
_ITERATIONS = 20


def has_parts(maps: Tensor) -> bool:
    """Whether this is (B, C, H, W) with two positions or more."""
    return maps.dim() == 4 and maps.shape[2] * maps.shape[3] > 1


class PartAttention(nn.Module):
    """What a map tells of the identity, as a whole and part by part.

    Each position is assigned softly to one of K parts, as RIB assigns an embedding to clusters.
    A part's vector is the mean of the positions, weighted by that; what of it tells identities
    apart is found in closed form, by ``gaussian_bottleneck``. So the attention has no weights that
    a loss trains. With a map F and its positions p, in plain PyTorch::

        z = normalize(F[p] - mean)
        phi = softmax_k(-beta * |z - centroids[k]| ** 2)
        vector[k] = (phi[p, k] * F[p]).sum(p) / phi[p, k].sum(p)        # vector[0]: the whole map's
        out[k] = sqrt(phi[p, k].mean(p)) * normalize((vector[k] - means[k]) @ projections[k])

    The cosine of two outputs is the mean of the parts' cosines, each weighted by how much of both
    images it takes; a part that is hidden counts little. The composition is ours. Parts that are
    clusters of positions are known from ISP (Zhu et al. 2020), which trains with them.

    ::

        attention = PartAttention()
        attention.find_parts(maps_of_some_images)
        vectors = torch.cat([attention.pool(maps) for maps in maps_of_all])
        attention.fit(vectors, labels)
        embeddings = attention(maps)

    Args:
        parts: K, >= 1.
        beta: sharpness of the assignment, > 0.

    Raises:
        ValueError: an argument is out of its range.
    """

    mean: Optional[Tensor]
    centroids: Optional[Tensor]
    means: Optional[Tensor]
    projections: Optional[Tensor]
    _here: Tensor

    def __init__(self, parts: int = 4, beta: float = 5.0) -> None:
        super().__init__()
        if parts < 1 or not beta > 0:
            raise ValueError(f"parts must be >= 1 and beta > 0, got {parts} and {beta}")
        self.parts, self.beta = parts, beta
        for name in _STATE:  # made by a fit, or by loading one; their sizes are known only then
            self.register_buffer(name, None)
        self.register_buffer("_here", torch.empty(0), persistent=False)

    @property
    def fitted(self) -> bool:
        """Whether it gives embeddings: after :meth:`fit`, or with what a checkpoint has of one."""
        return self.projections is not None

    @torch.no_grad()
    def find_parts(self, maps: Tensor) -> None:
        """Finds the parts: clusters of the positions, by K-means. The same for the same maps.

        With several ranks of ``torch.distributed`` it calls collectives, and all have the same
        maps.

        Args:
            maps: (B, C, H, W), floating point: of some hundred images of all identities.

        Raises:
            ValueError: the maps have one position.
        """
        if not has_parts(maps):
            raise ValueError(
                f"maps must be (B, C, H, W) with two positions or more, got {tuple(maps.shape)}: "
                "one position has no parts"
            )
        rows = maps.float().flatten(2).transpose(1, 2).flatten(0, 1)
        mean = rows.mean(dim=0)
        draw = random.Random(0)
        if len(rows) > _POSITIONS:
            drawn = sorted(draw.sample(range(len(rows)), _POSITIONS))
            rows = rows[torch.tensor(drawn, device=rows.device)]
        rows = F.normalize(rows - mean, dim=1)
        start = spread_seeds(rows, self.parts, draw)
        self.mean, self.centroids = mean, kmeans(rows, start, _ITERATIONS)
        self.means = self.projections = None

    def forget(self) -> None:
        """Makes it as it was before any fit."""
        if self.mean is not None:
            self.mean = self.centroids = self.means = self.projections = None

    def pool(self, maps: Tensor, whole: Optional[Tensor] = None) -> Tensor:
        """The vectors of maps and of their parts, as :meth:`fit` takes them.

        Args:
            maps: (B, C, H, W), floating point.
            whole: (B, C): of the whole maps, as a network pools them; None: their means.

        Returns:
            (B, 1 + K, C), float32.

        Raises:
            ValueError: :meth:`find_parts` was not called, or ``whole`` has another shape.
        """
        return self._pool(maps, whole)[0]

    @torch.no_grad()
    def fit(self, vectors: Tensor, labels: Tensor) -> None:
        """Finds what of each vector tells identities apart: d numbers, as many as it needs.

        That is C, or of 200 identities and more at most one less than there are.

        Args:
            vectors: (N, 1 + K, C) of a training set, from :meth:`pool`, in evaluation mode.
            labels: (N,), int64, >= 0.

        Raises:
            ValueError: there is one identity only, or its vectors are all equal.
        """
        fits = [gaussian_bottleneck(vectors[:, part], labels) for part in range(vectors.shape[1])]
        means, projections = (torch.stack(of) for of in zip(*fits))
        self.means = ranks.copy_from_first(means)
        self.projections = ranks.copy_from_first(projections)

    def forward(self, maps: Tensor, whole: Optional[Tensor] = None) -> Tensor:
        """The embeddings of maps: (B, (1 + K) d), float32.

        Args:
            maps: (B, C, H, W), floating point.
            whole: (B, C), as in :meth:`pool`.

        Raises:
            ValueError: it is not fitted.
        """
        vectors, shares = self._pool(maps, whole)
        if self.means is None or self.projections is None:
            raise ValueError("call fit first, with what pool gives of a training set")
        with full_precision(vectors.device):
            vectors = vectors - self.means.float()
            told = torch.einsum("bkc,kcd->bkd", vectors, self.projections.float())
        return (shares.sqrt()[..., None] * F.normalize(told, dim=2)).flatten(1)

    def _pool(self, maps: Tensor, whole: Optional[Tensor]) -> Tuple[Tensor, Tensor]:
        if self.mean is None or self.centroids is None:
            raise ValueError("call find_parts first, with maps of some images")
        rows = maps.float().flatten(2).transpose(1, 2)
        z = F.normalize(rows - self.mean.float(), dim=2)
        phi = soft_assignment(z.flatten(0, 1), self.centroids.float(), self.beta)
        phi = phi.view(*z.shape[:2], len(self.centroids))
        shares = phi.mean(dim=1)
        weights = phi / phi.sum(dim=1, keepdim=True).clamp(min=torch.finfo(phi.dtype).tiny)
        with full_precision(rows.device):
            of_parts = torch.einsum("bpk,bpc->bkc", weights, rows)
        first = rows.mean(dim=1) if whole is None else whole.float()
        if first.shape != rows[:, 0].shape:
            expected, found = tuple(rows[:, 0].shape), tuple(first.shape)
            raise ValueError(f"whole must be (B, C), here {expected}, got {found}: pool it")
        vectors = torch.cat([first[:, None], of_parts], dim=1)
        return vectors, torch.cat([torch.ones_like(shares[:, :1]), shares], dim=1)

    def extra_repr(self) -> str:
        """What it is, as ``print`` shows it."""
        return f"parts={self.parts}, beta={self.beta}, fitted={self.fitted}"

    def _load_from_state_dict(self, state_dict: Dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in _STATE:  # of any size: that of the training set's identities
            value = state_dict.get(prefix + name)
            made = None if value is None else torch.empty_like(value, device=self._here.device)
            setattr(self, name, made)
        super()._load_from_state_dict(state_dict, prefix, *rest)
