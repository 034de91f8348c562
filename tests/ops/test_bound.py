"""The bound and its gradient against the reference, by PyTorch and by the CPU library."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from fastreid_rib.losses import rib_loss
from fastreid_rib.ops import Clusters, Objective, rib_loss_reference
from fastreid_rib.ops import bound as bound_of
from fastreid_rib.settings.rib import FORMS

pytestmark = pytest.mark.published
each_backend = pytest.mark.parametrize("backend", ["cpu", "torch"])


def bound_and_gradient(
    embeddings, centroids, log_q, labels, beta, gamma=0.0, *, log_p=None, half_norms=None, **options
):
    clusters = Clusters(centroids, log_q, log_p, half_norms)
    return bound_of(embeddings, labels, clusters, Objective(beta, gamma, **options))


def bound(*args, **kwargs):
    return bound_and_gradient(*args, **kwargs)[0]


def problem(n, dim, clusters, classes, seed=0, dtype=torch.float32):
    """L2-normalised embeddings, centroids, log Q and labels, some negative from n = 3 on."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(n, dim, generator=generator, dtype=dtype)
    embeddings = embeddings / embeddings.norm(dim=1, keepdim=True).clamp(min=1e-6)
    centroids = torch.randn(clusters, dim, generator=generator, dtype=dtype) / dim**0.5
    log_q = torch.randn(classes, clusters, generator=generator, dtype=dtype).log_softmax(1)
    labels = torch.randint(0, classes, (n,), generator=generator)
    labels[2::5] = -1
    return embeddings, centroids, log_q, labels


def marginal(clusters, seed=0, dtype=torch.float32):
    """Logarithms of the clusters' marginal, from about -8 to 0."""
    generator = torch.Generator().manual_seed(seed + 1)
    return (2 * torch.randn(clusters, generator=generator, dtype=dtype)).log_softmax(0)


problems = given(
    n=st.integers(0, 9),
    dim=st.integers(1, 17),
    clusters=st.integers(1, 70),
    classes=st.integers(1, 5),
    beta=st.sampled_from([0.5, 10.0, 60.0]),
    gamma=st.sampled_from([0.0, 0.25, 1.0, 2.0]),
    form=st.sampled_from(FORMS),
    with_marginal=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    seed=st.integers(0, 1000),
)


@settings(max_examples=25, deadline=None)
@problems
def test_value_and_gradient_equal_the_reference(
    n, dim, clusters, classes, beta, gamma, form, with_marginal, dtype, seed
):
    sizes = n + 1, dim, clusters, classes
    embeddings, centroids, log_q, labels = problem(*sizes, seed, torch.float64)
    embeddings.requires_grad_()
    weights = torch.linspace(0.5, 1.5, n + 1, dtype=torch.float64)
    options = {"form": form, "log_p": marginal(clusters, seed).double() if with_marginal else None}
    ours = bound(embeddings, centroids, log_q, labels, beta, gamma, **options)
    (gradient,) = torch.autograd.grad((weights * ours).sum(), embeddings)
    theirs = rib_loss_reference(
        embeddings, labels, centroids, log_q, beta=beta, gamma=gamma, reduction="none", **options
    )
    (reference,) = torch.autograd.grad((weights * theirs).sum(), embeddings)
    # The reference normalises, so its gradient is the tangential part of ours.
    tangential = gradient - (gradient * embeddings).sum(1, keepdim=True) * embeddings
    assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-11)
    assert torch.allclose(tangential, reference, rtol=1e-8, atol=1e-9)


@each_backend
@settings(max_examples=40, deadline=None)
@problems
def test_every_backend_equals_float64(
    backend, n, dim, clusters, classes, beta, gamma, form, with_marginal, dtype, seed
):
    embeddings, centroids, log_q, labels = problem(n, dim, clusters, classes, seed)
    log_q = log_q.to(dtype)
    options = {"form": form, "log_p": marginal(clusters, seed) if with_marginal else None}
    exact_loss, exact_gradient = bound_and_gradient(
        embeddings.double(), centroids.double(), log_q, labels, beta, gamma, **options
    )
    half = embeddings.to(dtype).requires_grad_()
    loss, gradient = bound_and_gradient(
        embeddings, centroids, log_q, labels, beta, gamma, backend=backend, **options
    )
    assert loss.dtype == gradient.dtype == torch.float32
    # Logits of up to 4 beta carry float32's rounding, which the logarithms of Q multiply, and so
    # does gamma times the negentropy: its terms are as large as log K and nearly cancel.
    tolerance = 2e-6 * (1 + beta + gamma)
    assert torch.allclose(loss.double(), exact_loss, rtol=tolerance, atol=tolerance)
    assert torch.allclose(gradient.double(), exact_gradient, rtol=0, atol=10 * tolerance)
    # Embeddings of half precision are computed in float32, and get their gradient in their own.
    loss, gradient = bound_and_gradient(
        half, centroids, log_q, labels, beta, gamma, backend=backend, **options
    )
    assert loss.dtype == torch.float32
    loss.sum().backward()
    assert half.grad.dtype == dtype and half.grad.isfinite().all()
    assert gradient.requires_grad is False


@each_backend
def test_labels_of_no_identity(backend):
    """Negative: no loss and no gradient, even if NaN; beyond the table: NaN, and no gradient."""
    embeddings, centroids, log_q, _ = problem(5, 3, 5, 2)
    embeddings[1], embeddings[2] = float("nan"), float("inf")
    embeddings.requires_grad_()
    labels = torch.tensor([0, -1, -9, 1, 2])
    loss = bound(embeddings, centroids, log_q, labels, 5.0, 0.5, backend=backend)
    loss.sum().backward()
    assert loss[[1, 2]].tolist() == [0, 0] and loss[4].isnan()
    assert loss[[0, 3]].abs().min() > 0
    assert embeddings.grad[[1, 2, 4]].abs().max() == 0
    assert embeddings.grad[[0, 3]].isfinite().all() and embeddings.grad[0].abs().max() > 0


@each_backend
@pytest.mark.parametrize("form", FORMS)
def test_where_the_operands_lie_in_memory_changes_nothing(backend, form):
    embeddings, centroids, log_q, labels = problem(6, 4, 5, 3)
    log_q, log_p = log_q[:1].repeat(3, 1), marginal(5)
    options = {"form": form, "backend": backend}
    expected = bound(embeddings, centroids, log_q, labels, 5.0, 0.5, log_p=log_p, **options)
    turned = [t.t().contiguous().t() for t in (embeddings, centroids)]
    assert not turned[0].is_contiguous()
    for table in (log_q.t().contiguous().t(), log_q[:1].expand(3, 5), log_q.repeat(2, 1)[::2]):
        strided = [t.repeat_interleave(2)[::2] for t in (labels, log_p)]
        half_norms = centroids.square().sum(1) / 2
        found = bound(
            *turned, table, strided[0], 5.0, 0.5, log_p=strided[1], half_norms=half_norms, **options
        )
        assert torch.allclose(found, expected, atol=1e-6)


def test_second_derivative_is_refused_and_not_silently_zero():
    embeddings, centroids, log_q, labels = problem(3, 4, 5, 3)
    embeddings.requires_grad_()
    loss = bound(embeddings, centroids, log_q, labels, 5.0).sum()
    (gradient,) = torch.autograd.grad(loss, embeddings, create_graph=True)
    penalty = gradient.square().sum() + embeddings.square().sum()
    with pytest.raises(RuntimeError, match="differentiable once"):
        penalty.backward()


def test_backward_under_autocast_stays_in_float32():
    embeddings, centroids, log_q, labels = problem(8, 16, 11, 4)
    embeddings.requires_grad_()
    loss = bound(embeddings, centroids, log_q, labels, 30.0)
    (expected,) = torch.autograd.grad(loss.sum(), embeddings)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = bound(embeddings, centroids, log_q, labels, 30.0)
        (gradient,) = torch.autograd.grad(loss.sum(), embeddings)
    assert torch.equal(gradient, expected)


class CountsBytes(TorchDispatchMode):
    """Counts the operations, and the bytes of every result that is no view."""

    def __init__(self):
        super().__init__()
        self.operations, self.bytes = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.operations.append(function.__name__)
        if function.__name__ in ("new_empty.default", "new_empty_strided.default", "addmm.default"):
            self.bytes += result.element_size() * result.numel()
        return result


@pytest.mark.parametrize("clusters", [16, 751, 1024])
def test_one_buffer_of_aligned_rows_and_few_launches(clusters):
    n, dim = 8, 16
    embeddings, centroids, log_q, labels = problem(n, dim, clusters, 4)
    half_norms = centroids.square().sum(1) / 2
    embeddings.requires_grad_()
    weights = torch.ones(n)
    counts = CountsBytes()
    with counts:
        loss, gradient = bound_and_gradient(
            embeddings, centroids, log_q, labels, 30.0, half_norms=half_norms, backend="cpu"
        )
        loss.backward(weights)
    no_work = ("detach", "t.", "slice", "alias", "unsqueeze", "new_empty", "is_same_size")
    launches = [name for name in counts.operations if not name.startswith(no_work)]
    # And the row kernel, which is no torch operation: four in all.
    assert launches == ["mm.out", "addmm.default", "mul_.Tensor"]
    # 64-byte lines, an odd number of them (at a power of two rows compete for places in the
    # cache), and at most two more than the numbers need.
    pitch = gradient.stride(0)
    assert pitch % 32 == 16 and clusters <= pitch < clusters + 32
    assert counts.bytes <= 4 * (n * pitch + n + n * dim)


@pytest.mark.skipif(not hasattr(torch, "compiler"), reason="needs torch.compile")
def test_torch_compile_calls_it_as_it_is():
    embeddings, centroids, log_q, labels = problem(6, 4, 19, 3)

    def loss(embeddings):
        return 2 * rib_loss(embeddings.sin(), labels, centroids, log_q, beta=5.0, gamma=0.5)

    found = []
    for function in (loss, torch.compile(loss, backend="aot_eager")):
        leaf = embeddings.clone().requires_grad_()
        value = function(leaf)
        value.backward()
        found.append((value.detach(), leaf.grad))
    assert torch.allclose(found[0][0], found[1][0]) and torch.allclose(found[0][1], found[1][1])
