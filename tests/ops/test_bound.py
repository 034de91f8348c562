import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastreid_rib.ops import bound as bound_and_gradient
from fastreid_rib.ops import rib_loss_reference
from fastreid_rib.ops.assignment import assignment_logits, log_soft_assignment, soft_assignment

# Squared distances 0 and 2 from (1, 0): at this beta the soft assignment is (3/4, 1/4).
AXES = torch.eye(2, dtype=torch.float64)
BETA = math.log(3) / 2


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


def test_gradient_by_hand():
    # s = (0, 1), loss 1/4: d loss / d logits = (3/4 * -1/4, 1/4 * 3/4), times 2 beta = ln 3.
    embedding = torch.tensor([[1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    log_q = torch.tensor([[0.0, -1.0]], dtype=torch.float64)
    bound(embedding, AXES, log_q, torch.tensor([0]), BETA, 0.0).sum().backward()
    assert embedding.grad.tolist() == [pytest.approx([-0.2059898, 0.2059898], abs=1e-7)]


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (7, 5, 3, 4), (3, 2, 11, 1), (4, 13, 1, 2)])
def test_gradcheck(shape, gamma):
    embeddings, centroids, log_q, labels = problem(*shape)
    embeddings.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda e: bound(e, centroids, log_q, labels, 2.0, gamma), embeddings
    )


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 9),
    dim=st.integers(1, 17),
    clusters=st.integers(1, 23),
    classes=st.integers(1, 5),
    beta=st.sampled_from([0.5, 10.0, 60.0]),
    gamma=st.sampled_from([0.0, 0.25, 1.0]),
    seed=st.integers(0, 1000),
)
def test_value_and_gradient_equal_the_reference(n, dim, clusters, classes, beta, gamma, seed):
    embeddings, centroids, log_q, labels = problem(n, dim, clusters, classes, seed)
    embeddings = (embeddings / embeddings.norm(dim=1, keepdim=True)).requires_grad_()
    weights = torch.linspace(0.5, 1.5, n, dtype=torch.float64)
    ours = bound(embeddings, centroids, log_q, labels, beta, gamma)
    (gradient,) = torch.autograd.grad((weights * ours).sum(), embeddings)
    theirs = rib_loss_reference(
        embeddings, labels, centroids, log_q, beta=beta, gamma=gamma, reduction="none"
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
