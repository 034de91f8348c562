"""Losses that RIB is compared with in studies; no part of the package.

- ``class-means``: cross-entropy against the means of the identities, frozen for an epoch, in the
  centred space of RIB (mean of the normalised embeddings taken off, normalised again), with logits
  ``-BETA |F - m_y|^2``. What RIB would be without clusters, table and bound.
- ``center``: center loss (Wen et al. 2016), half the squared distance to a learnt centre of each
  identity, which moves by half of what its images in the batch say.
"""

import torch
from fastreid.utils.events import get_event_storage
from torch import nn
from torch.nn import functional as F

FIRST_EPOCH = 2


def add(model, name, scale, classes, beta):
    """Adds a rival to the losses of a meta-architecture, under the key ``loss_rival``.

    Args:
        model: whose ``losses(outputs, labels)`` gives a dict; ``outputs["features"]`` is (n, D).
        name: "class-means" or "center".
        scale: weight.
        classes: number of identities.
        beta: sharpness of "class-means", > 0.
    """
    rival = {"class-means": ClassMeans(classes, beta), "center": Center(classes)}[name]
    stock = model.losses

    def losses(outputs, labels):
        found = stock(outputs, labels)
        if torch.is_grad_enabled():
            found["loss_rival"] = scale * rival(outputs["features"], labels)
        return found

    model.losses = losses


class ClassMeans(nn.Module):
    """Cross-entropy against frozen class means.

    Args:
        classes: number of identities.
        beta: sharpness, > 0.
    """

    def __init__(self, classes, beta):
        super().__init__()
        self.beta = beta
        self.classes, self.epoch, self.means = classes, 0, None
        self.rows, self.labels = [], []

    def forward(self, features, labels):
        """Scalar, nats; 0 before the first means. features (n, D), labels (n,)."""
        epoch = get_event_storage().epoch
        if epoch != self.epoch:
            if self.rows and epoch >= FIRST_EPOCH:
                self._refresh()
            self.epoch, self.rows, self.labels = epoch, [], []
        rows = F.normalize(features.float(), dim=1)
        self.rows.append(rows.detach())
        self.labels.append(labels)
        if self.means is None:
            return features.sum() * 0
        centred = F.normalize(rows - self.mean, dim=1)
        logits = 2 * centred @ self.means.t() - self.means.square().sum(dim=1)
        return F.cross_entropy(self.beta * logits, labels)

    def _refresh(self):
        rows, labels = torch.cat(self.rows), torch.cat(self.labels)
        self.mean = rows.mean(dim=0)
        centred = F.normalize(rows - self.mean, dim=1)
        counts = torch.bincount(labels, minlength=self.classes)
        sums = centred.new_zeros(self.classes, rows.shape[1]).index_add_(0, labels, centred)
        means = sums / counts.clamp(min=1)[:, None]
        if self.means is not None:
            means = torch.where(counts[:, None] > 0, means, self.means)
        self.means = means


class Center(nn.Module):
    """Center loss on L2-normalised embeddings.

    Args:
        classes: number of identities.
    """

    def __init__(self, classes):
        super().__init__()
        self.classes, self.centers = classes, None

    def forward(self, features, labels):
        """Scalar. features (n, D), labels (n,)."""
        rows = F.normalize(features.float(), dim=1)
        if self.centers is None:
            self.centers = rows.new_zeros(self.classes, rows.shape[1])
        differences = rows - self.centers[labels]
        loss = differences.square().sum(dim=1).mean() / 2
        counts = torch.bincount(labels, minlength=self.classes).float()
        moves = torch.zeros_like(self.centers).index_add_(0, labels, differences.detach())
        self.centers = self.centers + 0.5 * moves / (1 + counts)[:, None]
        return loss
