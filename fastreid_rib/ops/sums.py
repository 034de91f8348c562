"""Sums by group, with the same result in every run: of rows, and of their soft assignments."""

import torch
from torch import Tensor

from fastreid_rib.ops import backends, native
from fastreid_rib.ops.assignment import centroid_products, half_squared_norms
from fastreid_rib.ops.layout import pitch
from fastreid_rib.ops.modes import full_precision

# Elements of the one-hot matrix of a chunk of rows: 64 MiB in float32.
_ONE_HOT_ELEMENTS = 2**24


def group_sum(values: Tensor, groups: Tensor, num_groups: int) -> Tensor:
    """Sums of the rows that belong to each group.

    On the CPU ``index_add_`` adds in order. On a GPU it adds with atomics, in another order each
    time, so there the sum is a product with the one-hot matrix of the groups.

    Args:
        values: (n, d), floating point.
        groups: (n,), int64, 0..num_groups-1.
        num_groups: number of groups G.

    Returns:
        (G, d), dtype of ``values``; zero for a group without rows.
    """
    sums = values.new_zeros(num_groups, values.shape[1])
    if values.device.type == "cpu":
        return sums.index_add_(0, groups, values)
    step = max(1, _ONE_HOT_ELEMENTS // max(num_groups, 1))
    for start in range(0, len(values), step):
        part = groups[start : start + step]
        one_hot = torch.arange(num_groups, device=groups.device)[:, None] == part
        with full_precision(values.device):
            sums.addmm_(one_hot.to(values.dtype), values[start : start + step])
    return sums


@torch.no_grad()
def add_soft_assignments_(
    table: Tensor,
    embeddings: Tensor,
    centroids: Tensor,
    labels: Tensor,
    beta: float,
    backend: str = "auto",
) -> Tensor:
    """Adds each image's soft assignment to the row of its identity, in place. Not differentiable.

    The images of an identity are added in their order, so every run gives the same bits. Equivalent
    plain PyTorch::

        log_phi = (-beta * torch.cdist(embeddings, centroids).square()).log_softmax(1)
        table.index_add_(0, labels, log_phi.exp())
        return (log_phi.exp() * log_phi).sum(1)

    Args:
        table: (C, K), float32 (float64 for float64 embeddings); changed in place.
        embeddings: (n, D), floating point, L2-normalised.
        centroids: (K, D), floating point.
        labels: (n,), int64; images with a label outside 0..C-1 are left out.
        beta: sharpness of the soft assignment, > 0.
        backend: "auto", "cuda", "cpu" or "torch", see ``backends.choose``.

    Returns:
        (n,), dtype of ``table``: ``sum_a phi_ia log phi_ia`` in nats, <= 0; 0 for one left out.

    Raises:
        ValueError: the table does not fit, or a backend cannot take these tensors.
        native.Unavailable: a backend that was asked for by name cannot be used.
    """
    dtype = torch.float64 if embeddings.dtype == torch.float64 else torch.float32
    if table.dim() != 2 or table.shape[1] != len(centroids) or table.dtype != dtype:
        raise ValueError(
            f"table must be (C, {len(centroids)}) {dtype}, a column for each centroid, got "
            f"{tuple(table.shape)} {table.dtype}"
        )
    if table.stride(1) != 1:
        raise ValueError("the rows of table must be contiguous; write table.contiguous()")
    kind = backends.choose(backend, embeddings.device, dtype)
    embeddings, centroids = embeddings.to(dtype), centroids.to(dtype)
    products, half_norms = centroid_products(embeddings, centroids), half_squared_norms(centroids)
    return backends.run(
        kind,
        backend == "auto",
        lambda: _native_table(table, products, half_norms, labels, beta, kind),
        lambda: _torch_table(table, products, half_norms, labels, beta),
    )


def _torch_table(
    sums: Tensor, products: Tensor, half_norms: Tensor, labels: Tensor, beta: float
) -> Tensor:
    log_phi = products.sub_(half_norms).mul_(2 * beta).log_softmax(dim=1)
    phi = log_phi.exp()
    left_out = ((labels < 0) | (labels >= len(sums)))[:, None]
    sums += group_sum(phi.masked_fill(left_out, 0), labels.clamp(0, len(sums) - 1), len(sums))
    return (phi * log_phi).masked_fill_(left_out, 0).sum(dim=1)


def _native_table(
    sums: Tensor, products: Tensor, half_norms: Tensor, labels: Tensor, beta: float, kind: str
) -> Tensor:
    labels = labels.contiguous()
    negentropy = products.new_empty(len(products))
    arguments = native.TableArgs(
        products=products.data_ptr(),
        half_norms=half_norms.data_ptr(),
        labels=labels.data_ptr(),
        table=sums.data_ptr(),
        negentropy=negentropy.data_ptr(),
        n=len(products),
        K=products.shape[1],
        C=len(sums),
        products_pitch=pitch(products),
        table_pitch=pitch(sums),
        scale=2 * beta,
    )
    if kind == "cuda":  # the CPU library finds the images of an identity by itself
        by_label = labels.sort(stable=True)
        order = by_label.indices
        identities = torch.arange(len(sums) + 1, device=labels.device)
        starts = torch.searchsorted(by_label.values, identities)
        arguments.order, arguments.starts = order.data_ptr(), starts.data_ptr()
    with backends.placed(arguments, products.device):
        native.load(kind).table(arguments)
    return negentropy
