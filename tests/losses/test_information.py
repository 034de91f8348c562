import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sums import image_information, sums_of

from fastreid_rib.losses import information as info
from fastreid_rib.ops import bound

SLACK = 1e-9

problems = st.fixed_dictionaries(
    {
        "n": st.integers(1, 30),
        "k": st.integers(1, 12),
        "k_x": st.integers(1, 12),
        "classes": st.integers(1, 6),
        "sharpness": st.sampled_from([0.1, 1.0, 8.0]),
        "seed": st.integers(0, 10**6),
    }
)


def random_problem(n, k, k_x, classes, sharpness, seed):
    """Log assignments of features and inputs, and labels that have to do with both."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (n,), generator=generator)

    def assignments(clusters):
        by_class = torch.randn(classes, clusters, generator=generator, dtype=torch.float64)
        noise = torch.randn(n, clusters, generator=generator, dtype=torch.float64)
        return (sharpness * (by_class[labels] + noise)).log_softmax(1)

    return assignments(k), assignments(k_x), labels


def class_table(log_f, labels, classes, floor=0.0):
    sums = torch.zeros(classes, log_f.shape[1], dtype=torch.float64)
    sums.index_add_(0, labels, log_f.double().exp())
    return (sums / sums.sum(1, keepdim=True)).nan_to_num(1.0).clamp(min=max(floor, 1e-300)).log()


def test_mutual_information_by_hand():
    assert info.mutual_information(torch.eye(2)).item() == pytest.approx(math.log(2))
    assert info.mutual_information(torch.ones(3, 4)).item() == pytest.approx(0, abs=1e-7)
    # p(a) = p(b) = 1/2, cells 3/8 and 1/8: 3/4 ln 3/2 + 1/4 ln 1/2
    joint = torch.tensor([[3.0, 1.0], [1.0, 3.0]])
    assert info.mutual_information(joint).item() == pytest.approx(0.1308120)


def test_every_measure_by_hand():
    # Two images of two identities; features tell them apart, inputs (3/4, 1/4) and (1/4, 3/4) less.
    log_f = torch.tensor([[0.0, -1e9], [-1e9, 0.0]])
    log_x = torch.tensor([[0.75, 0.25], [0.25, 0.75]]).log()
    log_q = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).log()
    sums = sums_of(log_f, torch.tensor([0, 1]), log_q, log_x)
    assert info.label_information(sums).item() == pytest.approx(math.log(2))
    assert info.input_information(sums).item() == pytest.approx(0.1308120)
    assert info.information_bottleneck(sums).item() == pytest.approx(0.1308120 - math.log(2))
    assert info.relevance_term(sums).item() == pytest.approx(-math.log(0.72) / 2)
    assert info.compression_term(sums).item() == pytest.approx(-0.5623351)
    ibb = -0.5623351 - math.log(0.72) / 2
    assert info.variational_bound(sums).item() == pytest.approx(ibb)
    # mean phi_x is (1/2, 1/2), mean log phi_x is (ln 3/4 + ln 1/4) / 2 in both clusters
    assert info.bound_constant(sums).item() == pytest.approx(math.log(3 / 16) / 2)
    assert info.conditional_bound(sums).item() == pytest.approx(-math.log(0.72) / 2)
    assert image_information(sums).item() == pytest.approx(0, abs=1e-12)


def test_image_information_by_hand():
    # One identity, two images told apart: ln 2 beyond the identity.
    sums = sums_of(
        torch.tensor([[0.0, -1e9], [-1e9, 0.0]]), torch.tensor([0, 0]), torch.zeros(1, 2)
    )
    assert image_information(sums).item() == pytest.approx(math.log(2))


@settings(max_examples=60, deadline=None)
@given(problems)
def test_chain_of_bounds(parameters):
    log_f, log_x, labels = random_problem(**parameters)
    log_q = class_table(log_f, labels, parameters["classes"])
    sums = sums_of(log_f, labels, log_q, log_x)
    ib = info.information_bottleneck(sums).item()
    beyond = image_information(sums).item()
    klb = info.conditional_bound(sums).item()
    papers = (info.variational_bound(sums) - info.bound_constant(sums)).item()
    assert ib <= beyond + SLACK
    assert beyond <= klb + SLACK
    assert klb <= papers + SLACK
    assert ib <= papers + SLACK
    # With Q of the same images KLB is the information itself, not only a bound of it.
    assert klb == pytest.approx(beyond, abs=1e-8)


@settings(max_examples=30, deadline=None)
@given(problems)
def test_bounds_hold_for_any_q(parameters):
    log_f, log_x, labels = random_problem(**parameters)
    torch.manual_seed(parameters["seed"])
    log_q = torch.randn(parameters["classes"], parameters["k"], dtype=torch.float64).log_softmax(1)
    sums = sums_of(log_f, labels, log_q, log_x)
    klb = info.conditional_bound(sums).item()
    papers = (info.variational_bound(sums) - info.bound_constant(sums)).item()
    assert info.information_bottleneck(sums).item() <= klb + SLACK
    assert image_information(sums).item() <= klb + SLACK
    assert klb <= papers + SLACK


def marginal_of(log_q, labels):
    """log P(a) = log sum_y p(y) Q(a|y), with p(y) of the labels."""
    weights = torch.bincount(labels, minlength=len(log_q)).double() / len(labels)
    return (weights @ log_q.exp()).log()


def any_table(parameters):
    """log Q that has nothing to do with the images, its rows sharp or flat."""
    generator = torch.Generator().manual_seed(parameters["seed"] + 1)
    shape = parameters["classes"], parameters["k"]
    rows = torch.randn(shape, generator=generator, dtype=torch.float64)
    return (parameters["sharpness"] * rows).log_softmax(1)


@settings(max_examples=60, deadline=None)
@given(problems, st.floats(0, 3), st.booleans())
def test_the_lagrangian_is_bounded_for_every_gamma(parameters, gamma, plug_in):
    log_f, log_x, labels = random_problem(**parameters)
    log_q = any_table(parameters)
    if plug_in:
        log_q = class_table(log_f, labels, parameters["classes"])
    sums = sums_of(log_f, labels, log_q, log_x)
    log_p = marginal_of(log_q, labels)
    assert torch.allclose((sums.marginal / sums.images).log(), log_p)
    of_image, of_label = info.feature_information(sums), info.label_information(sums)
    of_input = info.input_information(sums)
    bound = info.lagrangian_bound(sums, gamma, log_p).item()
    assert (gamma * of_image - of_label).item() <= bound + SLACK
    assert of_input.item() <= of_image.item() + SLACK
    if plug_in:  # nothing but the plug-in table makes it an equality
        assert bound == pytest.approx((gamma * of_image - of_label).item(), abs=1e-8)
    of_the_paper = info.lagrangian_bound(sums, gamma).item()
    if gamma <= 1:
        assert (gamma * of_input - of_label).item() <= of_the_paper + SLACK
        assert bound <= of_the_paper + SLACK


@settings(max_examples=30, deadline=None)
@given(problems)
def test_at_gamma_one_the_marginal_cancels(parameters):
    log_f, _, labels = random_problem(**parameters)
    log_q = any_table(parameters)
    sums = sums_of(log_f, labels, log_q)
    klb = info.conditional_bound(sums).item()
    for log_p in (marginal_of(log_q, labels), None):
        assert info.lagrangian_bound(sums, 1.0, log_p).item() == pytest.approx(klb, abs=1e-9)


@pytest.mark.parametrize("gamma", [1.01, 2.0])
def test_beyond_gamma_one_nothing_is_bounded_without_the_marginal(gamma):
    """Assignments that tell nothing, I(F~;i) = I(F~;Y) = 0, go below it."""
    labels = torch.arange(6) % 3
    uniform = torch.full((6, 4), -math.log(4), dtype=torch.float64)
    sums = sums_of(uniform, labels, uniform[:3])
    without = info.lagrangian_bound(sums, gamma).item()
    assert without == pytest.approx((1 - gamma) * math.log(4))
    with_it = info.lagrangian_bound(sums, gamma, marginal_of(uniform[:3], labels)).item()
    assert with_it == pytest.approx(0, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(problems)
def test_the_embeddings_form_is_below_that_of_the_clusters(parameters):
    log_f, _, labels = random_problem(**parameters)
    n, k = log_f.shape
    log_q = any_table(parameters)
    log_p = marginal_of(log_q, labels)
    # Embeddings are unit vectors of their own, centroids give them the assignments at beta 1/2.
    clusters = bound(torch.eye(n).double(), log_f.t(), log_q, labels, 0.5, log_p=log_p,
                     half_norms=torch.zeros(k))[0]  # fmt: skip
    embedding = bound(torch.eye(n).double(), log_f.t(), log_q, labels, 0.5, log_p=log_p,
                      form="embedding", half_norms=torch.zeros(k))[0]  # fmt: skip
    by_jensen = -(log_f + (log_q - log_p)[labels]).logsumexp(1)
    assert torch.allclose(embedding, by_jensen)
    assert torch.allclose(clusters.mean(), info.lagrangian_bound(
        sums_of(log_f, labels, log_q), 0.0, log_p))  # fmt: skip
    assert (embedding <= clusters + SLACK).all()


@settings(max_examples=30, deadline=None)
@given(problems)
def test_collapse_is_worst_with_the_marginal_and_best_without(parameters):
    log_f, _, labels = random_problem(**parameters)
    classes = parameters["classes"]
    one_cluster = torch.full_like(log_f, -1e9)
    one_cluster[:, 0] = 0
    full, papers = [], []
    for log_phi in (log_f, one_cluster):
        log_q = class_table(log_phi, labels, classes)
        sums = sums_of(log_phi, labels, log_q)
        full.append(info.lagrangian_bound(sums, 0.0, marginal_of(log_q, labels)).item())
        papers.append(info.lagrangian_bound(sums, 0.0).item())
        information = info.label_information(sums).item()
        assert full[-1] == pytest.approx(-information, abs=1e-8)
    assert full[1] == pytest.approx(0, abs=1e-9) and full[0] <= full[1] + SLACK
    assert papers[1] == pytest.approx(0, abs=1e-9) and papers[0] >= papers[1] - SLACK


def test_identities_that_are_told_apart_are_worth_their_entropy_with_the_marginal():
    labels = torch.arange(15) % 5
    log_f = torch.eye(5, dtype=torch.float64)[labels].clamp(min=1e-300).log()
    log_q = class_table(log_f, labels, 5)
    sums = sums_of(log_f, labels, log_q)
    full = info.lagrangian_bound(sums, 0.0, marginal_of(log_q, labels)).item()
    assert full == pytest.approx(-math.log(5))
    # As published they are worth what collapse is, too.
    assert info.lagrangian_bound(sums, 0.0).item() == pytest.approx(0, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(problems)
def test_a_floor_costs_at_most_its_excess(parameters):
    log_f, _, labels = random_problem(**parameters)
    log_q = class_table(log_f, labels, parameters["classes"], floor=1e-3)
    sums = sums_of(log_f, labels, log_q)
    klb = info.conditional_bound(sums).item()
    assert image_information(sums).item() <= klb + parameters["k"] * 1e-3 + SLACK


@settings(max_examples=30, deadline=None)
@given(problems)
def test_published_compression_term_does_not_depend_on_the_features(parameters):
    log_f, log_x, labels = random_problem(**parameters)
    published = torch.einsum("ia,ib,ib->", log_f.exp(), log_x.exp(), log_x) / len(labels)
    log_q = class_table(log_f, labels, parameters["classes"])
    sums = sums_of(log_f, labels, log_q, log_x)
    others = sums_of(-log_f.log_softmax(1).flip(0), labels, log_q, log_x)
    assert info.compression_term(sums).item() == pytest.approx(published.item(), abs=1e-9)
    assert info.compression_term(sums).item() == info.compression_term(others).item()


@settings(max_examples=20, deadline=None)
@given(problems)
def test_sums_add_up_over_chunks_and_blocks_of_identities(parameters):
    log_f, log_x, labels = random_problem(**parameters)
    classes, half = parameters["classes"], parameters["n"] // 2
    log_q = class_table(log_f, labels, classes)
    whole = sums_of(log_f, labels, log_q, log_x)
    parts = info.empty_sums(log_f.shape[1], log_x.shape[1], log_f.device)
    for chunk in (slice(0, half), slice(half, None)):
        info.add_images_(parts, log_f[chunk], log_x[chunk])
    for identity in range(classes):
        sums = log_f[labels == identity].exp().sum(0, keepdim=True)
        log_likelihood = (sums * log_q[identity]).sum()
        marginal = sums.sum() * log_q[identity].exp()
        info.add_identities_(parts, sums, log_likelihood, marginal)
    for expected, got in zip(whole, parts):
        assert torch.allclose(expected, got)


@settings(max_examples=30, deadline=None)
@given(problems)
def test_label_information_is_that_of_the_joint_table(parameters):
    log_f, _, labels = random_problem(**parameters)
    classes = parameters["classes"]
    joint = torch.stack([log_f[labels == y].exp().sum(0) for y in range(classes)])
    sums = sums_of(log_f, labels, class_table(log_f, labels, classes))
    expected = info.mutual_information(joint).item()
    assert info.label_information(sums).item() == pytest.approx(expected, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(problems)
def test_information_is_within_its_limits(parameters):
    log_f, log_x, labels = random_problem(**parameters)
    log_q = class_table(log_f, labels, parameters["classes"])
    sums = sums_of(log_f, labels, log_q, log_x)
    label_limit = math.log(min(parameters["k"], parameters["classes"])) + SLACK
    assert -SLACK <= info.label_information(sums).item() <= label_limit
    assert info.input_information(sums).item() >= -SLACK
