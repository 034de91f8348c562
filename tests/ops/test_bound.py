import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from fastreid_rib.losses import rib_loss
from fastreid_rib.ops import Clusters, Objective, rib_loss_reference
from fastreid_rib.ops import bound as bound_of
from fastreid_rib.ops.assignment import assignment_logits, log_soft_assignment, soft_assignment
from fastreid_rib.settings.rib import FORMS

pytestmark = pytest.mark.published

# Squared distances 0 and 2 from (1, 0): at this beta the soft assignment is (3/4, 1/4).
AXES = torch.eye(2, dtype=torch.float64)
BETA = math.log(3) / 2


def bound_and_gradient(
    embeddings, centroids, log_q, labels, beta, gamma=0.0, *, log_p=None, half_norms=None, **options
):
    clusters = Clusters(centroids, log_q, log_p, half_norms)
    return bound_of(embeddings, labels, clusters, Objective(beta, gamma, **options))


def bound(*args, **kwargs):
    return bound_and_gradient(*args, **kwargs)[0]


def problem(n, dim, clusters, classes, seed=0, dtype=torch.float64):
    """Embeddings, centroids, log Q and labels, some negative from n = 3 on."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(n, dim, generator=generator, dtype=dtype)
    centroids = torch.randn(clusters, dim, generator=generator, dtype=dtype) / dim**0.5
    log_q = torch.randn(classes, clusters, generator=generator, dtype=dtype).log_softmax(1)
    labels = torch.randint(0, classes, (n,), generator=generator)
    labels[2::5] = -1
    return embeddings, centroids, log_q, labels


def marginal(clusters, seed=0, dtype=torch.float64):
    """Logarithms of the clusters' marginal, from about -8 to 0."""
    generator = torch.Generator().manual_seed(seed + 1)
    return (2 * torch.randn(clusters, generator=generator, dtype=dtype)).log_softmax(0)


def test_soft_assignment_by_hand():
    phi = soft_assignment(torch.tensor([[1.0, 0.0]], dtype=torch.float64), AXES, BETA)
    assert phi.tolist() == [pytest.approx([0.75, 0.25])]


def test_logits_are_distances_up_to_a_constant_of_the_row():
    embeddings, centroids, _, _ = problem(5, 3, 4, 2)
    distances = (embeddings[:, None] - centroids).square().sum(2)
    shift = assignment_logits(embeddings, centroids, 7.0) + 7.0 * distances
    assert torch.allclose(shift, shift[:, :1].expand(5, 4))


def test_log_assignment_stays_finite_where_the_assignment_underflows():
    embeddings = torch.tensor([[1.0, 0.0]])
    log_phi = log_soft_assignment(embeddings, AXES.float(), 100.0)
    assert soft_assignment(embeddings, AXES.float(), 100.0)[0, 1] == 0
    assert log_phi[0, 1].item() == pytest.approx(-200.0)


@pytest.mark.parametrize(
    ("log_q", "gamma", "expected"),
    [
        ([math.log(0.5), math.log(0.5)], 0.0, 0.6931472),  # cross-entropy with a fair coin
        ([math.log(0.5), math.log(0.5)], 1.0, 0.1308120),  # 3/4 ln 3/2 + 1/4 ln 1/2
        ([math.log(0.75), math.log(0.25)], 1.0, 0.0),  # KL of a distribution to itself
        ([0.0, -1.0], 0.0, 0.25),
        ([0.0, -1.0], 0.5, 0.25 - 0.5 * 0.5623351),  # the entropy of (3/4, 1/4) is 0.5623351
    ],
)
def test_by_hand(log_q, gamma, expected):
    embedding = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    table = torch.tensor([log_q], dtype=torch.float64)
    loss = bound(embedding, AXES, table, torch.tensor([0]), BETA, gamma)
    assert loss.tolist() == [pytest.approx(expected, abs=1e-7)]


@pytest.mark.parametrize(
    ("form", "gamma", "expected", "slope"),
    [
        # phi = (3/4, 1/4), Q = (1/2, 1/2), P = (1/4, 3/4): log Q / P is (ln 2, ln 2/3), and
        # log phi / P is (ln 3, -ln 3). The slope is d loss / d of the first logit.
        ("clusters", 0.0, -0.75 * math.log(2) - 0.25 * math.log(2 / 3), -0.1875 * math.log(3)),
        ("clusters", 1.0, 0.5 * math.log(3) - 0.75 * math.log(2) - 0.25 * math.log(2 / 3),
         0.1875 * math.log(3)),
        # phi Q / P is (3/2, 1/6), so u = 5/3 and the posterior is (9/10, 1/10).
        ("embedding", 0.0, -math.log(5 / 3), 0.75 - 0.9),
        ("embedding", 2.0, math.log(3) - math.log(5 / 3), 0.75 * math.log(3) + 0.75 - 0.9),
    ],
)  # fmt: skip
def test_forms_by_hand(form, gamma, expected, slope):
    embedding = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    table = torch.tensor([[0.5, 0.5]], dtype=torch.float64).log()
    log_p = torch.tensor([0.25, 0.75], dtype=torch.float64).log()
    for dtype in (torch.float64, torch.float32):  # PyTorch, and the kernels where they are built
        loss, gradient = bound_and_gradient(
            embedding.to(dtype), AXES.to(dtype), table, torch.tensor([0]), BETA, gamma,
            form=form, log_p=log_p,
        )  # fmt: skip
        assert loss.tolist() == [pytest.approx(expected, abs=1e-6)]
        assert gradient.tolist() == [pytest.approx([slope, -slope], abs=1e-6)]


def test_gradient_by_hand():
    # s = (0, 1), loss 1/4: d loss / d logits = (3/4 * -1/4, 1/4 * 3/4), times 2 beta = ln 3.
    embedding = torch.tensor([[1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    log_q = torch.tensor([[0.0, -1.0]], dtype=torch.float64)
    bound(embedding, AXES, log_q, torch.tensor([0]), BETA, 0.0).sum().backward()
    assert embedding.grad.tolist() == [pytest.approx([-0.2059898, 0.2059898], abs=1e-7)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("with_marginal", [False, True])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_gradcheck(gamma, with_marginal, form):
    embeddings, centroids, log_q, labels = problem(7, 5, 3, 4)
    options = {"form": form, "log_p": marginal(3) if with_marginal else None}
    assert torch.autograd.gradcheck(
        lambda e: bound(e, centroids, log_q, labels, 2.0, gamma, **options),
        embeddings.requires_grad_(),
    )


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 9),
    dim=st.integers(1, 17),
    clusters=st.integers(1, 23),
    classes=st.integers(1, 5),
    beta=st.sampled_from([0.5, 10.0, 60.0]),
    gamma=st.sampled_from([0.0, 0.25, 1.0, 2.0]),
    form=st.sampled_from(FORMS),
    with_marginal=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_value_and_gradient_equal_the_reference(
    n, dim, clusters, classes, beta, gamma, form, with_marginal, seed
):
    embeddings, centroids, log_q, labels = problem(n, dim, clusters, classes, seed)
    embeddings = (embeddings / embeddings.norm(dim=1, keepdim=True)).requires_grad_()
    weights = torch.linspace(0.5, 1.5, n, dtype=torch.float64)
    options = {"form": form, "log_p": marginal(clusters, seed) if with_marginal else None}
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


def test_float32_is_as_close_to_the_reference_as_a_plain_softmax():
    embeddings, centroids, log_q, labels = problem(64, 128, 151, 20)
    embeddings = embeddings / embeddings.norm(dim=1, keepdim=True)
    exact = bound(embeddings, centroids, log_q, labels, 30.0, 0.5)
    e, c, q = embeddings.float(), centroids.float(), log_q.float()
    plain_phi = (-30.0 * (e[:, None] - c).square().sum(2)).softmax(1)
    plain = (plain_phi * (0.5 * plain_phi.log() - q[labels.clamp(min=0)])).sum(1)
    plain = torch.where(labels < 0, torch.zeros(()), plain)
    error = (bound(e, c, q, labels, 30.0, 0.5) - exact).abs().max()
    assert error <= 2 * (plain - exact).abs().max()


def test_ignored_rows_have_no_loss_and_no_gradient_even_if_nan():
    embeddings, centroids, log_q, _ = problem(4, 3, 5, 2)
    embeddings[1], embeddings[2] = float("nan"), float("inf")
    embeddings.requires_grad_()
    loss = bound(embeddings, centroids, log_q, torch.tensor([0, -1, -9, 1]), 5.0, 0.5)
    loss.sum().backward()
    assert loss[[1, 2]].tolist() == [0, 0]
    assert loss[[0, 3]].abs().min() > 0
    assert embeddings.grad[[1, 2]].abs().max() == 0
    assert embeddings.grad[[0, 3]].isfinite().all()
    assert embeddings.grad[[0, 3]].abs().max() > 0


def test_empty_batch():
    _, centroids, log_q, _ = problem(1, 3, 5, 2)
    embeddings = torch.zeros(0, 3, dtype=torch.float64, requires_grad=True)
    loss = bound(embeddings, centroids, log_q, torch.zeros(0, dtype=torch.int64), 5.0)
    loss.sum().backward()
    assert loss.shape == (0,)
    assert embeddings.grad.shape == (0, 3)


def test_non_contiguous_operands():
    embeddings, centroids, log_q, labels = problem(6, 4, 5, 3)
    expected = bound(embeddings, centroids, log_q, labels, 5.0, 0.5)
    strided = [t.t().contiguous().t() for t in (embeddings, centroids, log_q)]
    assert not strided[0].is_contiguous()
    repeated = labels.repeat_interleave(2)[::2]
    assert torch.allclose(bound(*strided, repeated, 5.0, 0.5), expected)


def test_second_derivative_is_refused_and_not_silently_zero():
    embeddings, centroids, log_q, labels = problem(3, 4, 5, 3)
    embeddings.requires_grad_()
    loss = bound(embeddings, centroids, log_q, labels, 5.0).sum()
    (gradient,) = torch.autograd.grad(loss, embeddings, create_graph=True)
    penalty = gradient.square().sum() + embeddings.square().sum()
    with pytest.raises(RuntimeError, match="differentiable once"):
        penalty.backward()


def test_backward_under_autocast_stays_in_float32():
    embeddings, centroids, log_q, labels = problem(8, 16, 11, 4, dtype=torch.float32)
    embeddings.requires_grad_()
    loss = bound(embeddings, centroids, log_q, labels, 30.0)
    (expected,) = torch.autograd.grad(loss.sum(), embeddings)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = bound(embeddings, centroids, log_q, labels, 30.0)
        (gradient,) = torch.autograd.grad(loss.sum(), embeddings)
    assert torch.equal(gradient, expected)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@settings(max_examples=40, deadline=None)
@given(
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
def test_every_backend_equals_float64(
    backend, n, dim, clusters, classes, beta, gamma, form, with_marginal, dtype, seed
):
    embeddings, centroids, log_q, labels = problem(n, dim, clusters, classes, seed, torch.float32)
    embeddings = embeddings / embeddings.norm(dim=1, keepdim=True).clamp(min=1e-6)
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


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_a_label_beyond_the_table_shows_as_nan_and_leaves_the_gradient_alone(backend):
    embeddings, centroids, log_q, _ = problem(3, 4, 5, 2, dtype=torch.float32)
    embeddings.requires_grad_()
    loss = bound(embeddings, centroids, log_q, torch.tensor([0, 2, 1]), 5.0, backend=backend)
    assert loss.isnan().tolist() == [False, True, False]
    loss.sum().backward()
    assert embeddings.grad[1].tolist() == [0, 0, 0, 0]
    assert embeddings.grad.isfinite().all() and embeddings.grad[0].abs().max() > 0


def test_half_norms_at_hand_change_nothing():
    embeddings, centroids, log_q, labels = problem(6, 4, 7, 3, dtype=torch.float32)
    half_norms = centroids.square().sum(1) / 2
    expected = bound(embeddings, centroids, log_q, labels, 5.0)
    assert torch.equal(
        bound(embeddings, centroids, log_q, labels, 5.0, half_norms=half_norms), expected
    )


def test_form_is_checked():
    with pytest.raises(ValueError, match="form must be one of clusters, embedding, got 'cluster'"):
        bound(*problem(3, 4, 5, 3), 5.0, form="cluster")


@pytest.mark.parametrize("shape", [(4,), (6,), (1, 5), ()])
def test_a_marginal_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"log_p must be \(5,\), a number for each centroid, got"):
        bound(*problem(3, 4, 5, 3), 5.0, log_p=torch.zeros(shape))


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_a_marginal_may_be_strided(backend):
    arguments = problem(6, 4, 7, 3, dtype=torch.float32)
    log_p = marginal(7, dtype=torch.float32)
    options = {"form": "embedding", "backend": backend}
    expected = bound(*arguments, 5.0, 0.5, log_p=log_p, **options)
    strided = log_p.repeat_interleave(2)[::2]
    assert torch.equal(bound(*arguments, 5.0, 0.5, log_p=strided, **options), expected)


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


def test_one_buffer_and_few_launches():
    n, dim, clusters = 8, 16, 751
    embeddings, centroids, log_q, labels = problem(n, dim, clusters, 4, dtype=torch.float32)
    half_norms = centroids.square().sum(1) / 2
    embeddings.requires_grad_()
    weights = torch.ones(n)
    counts = CountsBytes()
    with counts:
        loss = bound(
            embeddings, centroids, log_q, labels, 30.0, half_norms=half_norms, backend="cpu"
        )
        loss.backward(weights)
    no_work = ("detach", "t.", "slice", "alias", "unsqueeze", "new_empty", "is_same_size")
    launches = [name for name in counts.operations if not name.startswith(no_work)]
    # And the row kernel, which is no torch operation: four in all.
    assert launches == ["mm.out", "addmm.default", "mul_.Tensor"]
    pitch = 64 * -(-clusters // 16) // 4 + 16  # at most one cache line more than the numbers need
    assert counts.bytes <= 4 * (n * pitch + n + n * dim)


traced = pytest.mark.skipif(
    not hasattr(torch.library, "custom_op"), reason="torch.library.custom_op came with torch 2.4"
)


@traced
@pytest.mark.parametrize(("backend", "form"), [("cpu", "embedding"), ("torch", "clusters")])
def test_the_registration_is_sound(backend, form):
    embeddings, centroids, log_q, labels = problem(6, 4, 19, 3, dtype=torch.float32)
    embeddings.requires_grad_()
    half_norms = centroids.square().sum(1) / 2
    log_p = marginal(19, dtype=torch.float32) if form == "embedding" else None
    clusters, objective = Clusters(centroids, log_q, log_p, half_norms), (5.0, 0.5, form, backend)
    arguments = (embeddings, labels, *clusters, *objective)
    results = torch.library.opcheck(torch.ops.fastreid_rib.bound.default, arguments)
    assert set(results.values()) == {"SUCCESS"} and len(results) >= 4


@traced
@pytest.mark.parametrize("of", ["rib_loss", *FORMS])
def test_torch_compile_takes_the_loss_whole(of):
    embeddings, centroids, log_q, labels = problem(6, 4, 19, 3, dtype=torch.float32)
    log_p = marginal(19, dtype=torch.float32)

    def loss(embeddings):
        if of == "rib_loss":
            return rib_loss(embeddings, labels, centroids, log_q, beta=5.0, gamma=0.5)
        return bound(embeddings, centroids, log_q, labels, 5.0, 0.5, form=of, log_p=log_p).sum()

    gradients = []
    values = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        leaf = embeddings.clone().requires_grad_()
        value = function(leaf)
        value.backward()
        values.append(value.detach())
        gradients.append(leaf.grad)
    assert torch.allclose(values[0], values[1], rtol=1e-6)
    assert torch.allclose(gradients[0], gradients[1], atol=1e-6)
