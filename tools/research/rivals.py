"""Losses that RIB is compared with in studies; no part of the package.

- ``class-means``: cross-entropy against the means of the identities, frozen for an epoch, in the
  centred space of RIB (mean of the normalised embeddings taken off, normalised again), with logits
  ``-BETA |F - m_y|^2``. What RIB would be without clusters, table and bound.
- ``class-means-across``: the same, with what the other cameras saw of each identity in the place of
  its mean; of an identity that they did not see, the mean of all its images.
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
        name: "class-means", "class-means-across" or "center".
        scale: weight.
        classes: number of identities.
        beta: sharpness of class means, > 0.
    """
    rival = {
        "class-means": ClassMeans(classes, beta),
        "class-means-across": ClassMeans(classes, beta),
        "center": Center(classes),
    }[name]
    stock, forward, cameras = model.losses, model.forward, []

    def losses(outputs, labels):
        found = stock(outputs, labels)
        if torch.is_grad_enabled():
            found["loss_rival"] = scale * rival(outputs["features"], labels, *cameras)
        return found

    def remember_cameras(batch):
        cameras[:] = [batch["camids"]]
        return forward(batch)

    model.losses = losses
    if name == "class-means-across":
        model.forward = remember_cameras


class ClassMeans(nn.Module):
    """Cross-entropy against frozen class means; with cameras, against those of other cameras.

    Args:
        classes: number of identities C.
        beta: sharpness, > 0.
    """

    def __init__(self, classes, beta):
        super().__init__()
        self.beta = beta
        self.classes, self.epoch, self.means = classes, 0, None
        self.rows, self.labels, self.cameras = [], [], []

    def forward(self, features, labels, cameras=None):
        """Scalar, nats; 0 before the first means. features (n, D), labels (n,), cameras (n,)."""
        if cameras is None:
            cameras = torch.zeros_like(labels)
        epoch = get_event_storage().epoch
        if epoch != self.epoch:
            if self.rows and epoch >= FIRST_EPOCH:
                self._refresh()
            self.epoch, self.rows, self.labels, self.cameras = epoch, [], [], []
        rows = F.normalize(features.float(), dim=1)
        self.rows.append(rows.detach())
        self.labels.append(labels)
        self.cameras.append(cameras)
        if self.means is None:
            return features.sum() * 0
        centred = F.normalize(rows - self.mean, dim=1)
        losses = []
        # The last means leave nothing out, for a camera that the epoch before did not show.
        for camera in cameras.unique().tolist():
            own = cameras == camera
            means = self.means[min(camera, len(self.means) - 1)]
            logits = 2 * centred[own] @ means.t() - means.square().sum(dim=1)
            losses.append(F.cross_entropy(self.beta * logits, labels[own], reduction="sum"))
        return sum(losses) / len(labels)

    def _refresh(self):
        """Makes (V + 1, C, D) the means of what cameras other than each saw; the last of all."""
        rows, labels, cameras = map(torch.cat, (self.rows, self.labels, self.cameras))
        self.mean = rows.mean(dim=0)
        centred = F.normalize(rows - self.mean, dim=1)
        number = int(cameras.max()) + 2
        pairs = cameras * self.classes + labels
        counts = torch.bincount(pairs, minlength=number * self.classes).view(number, -1, 1)
        sums = centred.new_zeros(number * self.classes, rows.shape[1]).index_add_(0, pairs, centred)
        sums = sums.view(number, self.classes, -1)
        total, images = sums.sum(dim=0), counts.sum(dim=0)
        seen = images > counts  # by other cameras
        means = torch.where(seen, total - sums, total)
        means = means / torch.where(seen, images - counts, images).clamp(min=1)
        if self.means is not None and len(self.means) == number:
            means = torch.where(images > 0, means, self.means)
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
