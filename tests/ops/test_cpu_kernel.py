"""The CPU library, compiled for each instruction set, against definitions in float64."""

import ctypes
import math
import platform
import subprocess
import threading

import pytest
import torch
from hypothesis import given, note, settings
from hypothesis import strategies as st

from fastreid_rib.ops import build, native
from fastreid_rib.ops.rows import DTYPES, Clusters, Objective, bound_rows_
from fastreid_rib.settings.rib import FORMS

EPS = torch.finfo(torch.float32).eps
PADDING = 7.0
GOMP_PARALLEL = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint
)
each_form = pytest.mark.parametrize("form", FORMS)


@pytest.fixture(scope="module", autouse=True, params=["as built", "AVX2 at most", "portable"])
def library(request, tmp_path_factory):
    """The CPU library that is in use."""
    flags = {"as built": [], "AVX2 at most": ["-DRIB_MAX_ISA=1"], "portable": ["-DRIB_MAX_ISA=0"]}
    try:
        command = build.build_command("cpu")
    except build.NoCompilerError as error:
        pytest.skip(str(error))
    path = tmp_path_factory.mktemp("kernels") / build.library_name("cpu")
    subprocess.run([*command, *flags[request.param], "-o", str(path)], check=True)
    path.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "_loaded", {"cpu": native.Library(path)})
        yield native.load("cpu")


class Problem:
    """Input of the kernels, fuzzed; the matrices that go in lie in wider ones."""

    def __init__(self, n, clusters, classes, *, seed=0, beta=1.5, gamma=0.0, form="clusters",
                 marginal=False, dtype=torch.float32, pad=0):  # fmt: skip
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(shape, generator=generator)

        self.n, self.classes, self.pad = n, classes, pad
        self.objective = Objective(beta, gamma, form)
        self.products = normal(n, clusters)
        self.half_norms = normal(clusters).square() / 2
        self.labels = torch.randint(-2, classes + 2, (n,), generator=generator)
        self.log_q = self.wide(normal(classes, clusters).mul(3).log_softmax(1), dtype)
        self.log_p = normal(clusters).mul(2).log_softmax(0) if marginal else None

    def wide(self, matrix, dtype=torch.float32):
        rows, columns = matrix.shape
        storage = torch.full((rows, columns + self.pad), PADDING).to(dtype)
        storage[:, :columns] = matrix
        return storage[:, :columns]

    def assert_nothing_beyond(self, matrix):
        size = len(matrix), self.pad
        beyond = torch.as_strided(matrix, size, (matrix.shape[1] + self.pad, 1), matrix.shape[1])
        assert (beyond == PADDING).all()

    @property
    def known(self):
        return (self.labels >= 0) & (self.labels < self.classes)

    def bound(self):
        """Loss and gradient of the kernel."""
        products = self.wide(self.products)
        clusters = Clusters(self.products, self.log_q, self.log_p, self.half_norms)
        loss = bound_rows_("cpu", products, self.labels, clusters, self.objective)
        self.assert_nothing_beyond(products)
        return loss, products

    def logits(self):
        return 2 * self.objective.beta * (self.products.double() - self.half_norms.double())


def definition(problem, logits):
    """In float64: the loss, log phi, the scores; and log(phi Q / P) if that is in the loss."""
    log_phi = logits.log_softmax(1)
    log_p = torch.zeros_like(problem.half_norms) if problem.log_p is None else problem.log_p
    rows = problem.log_q[problem.labels.clamp(0, problem.classes - 1)].double()
    log_ratio = rows - log_p.double()
    score = problem.objective.gamma * (log_phi - log_p.double())
    if problem.objective.form == "clusters":
        score = score - log_ratio
        return (log_phi.exp() * score).sum(1), log_phi, score, None
    joint = log_phi + log_ratio
    return (log_phi.exp() * score).sum(1) - joint.logsumexp(1), log_phi, score, joint


def check_against_definition(problem):
    """The error allowed is that of float32 logits, and of sums over a chunk."""
    loss, gradient = problem.bound()
    gamma = problem.objective.gamma
    logits = problem.logits().requires_grad_()
    expected_loss, log_phi, score, joint = definition(problem, logits)
    (expected,) = torch.autograd.grad(expected_loss.sum(), logits)
    with torch.no_grad():
        phi, largest = log_phi.exp(), logits.abs().amax(1)
        relative = EPS * (4 * largest + 16)
        size = score.abs() + gamma * largest[:, None] + 1e-6  # of the terms of a score
        if problem.log_p is not None:
            size += gamma * problem.log_p.abs()
        mean_size = (phi * size).sum(1)
        error_of_loss = relative * mean_size
        flushed = 2 * torch.finfo(torch.float32).tiny
        error = (phi * relative[:, None] + flushed) * (size + mean_size[:, None])
        error += flushed  # what comes out may be
        if joint is not None:
            # Of the posterior, which the logarithm of the ratio is rounded in besides the logit.
            posterior, ratio = joint.softmax(1), (joint - log_phi).abs()
            mean_ratio = (posterior * ratio).sum(1)
            error_of_loss += relative + EPS * mean_ratio
            rounding = 2 * relative[:, None] + EPS * (ratio + mean_ratio[:, None])
            error += (phi + posterior) * rounding
            # Weights that are flushed, or flushed times a small ratio, before u divides them.
            log_u = joint.logsumexp(1, keepdim=True)
            error += flushed * (1 + (joint - log_phi - log_u).exp())
            error += flushed * (log_phi.amax(1, keepdim=True) - log_u).exp()
        known = problem.known
        assert ((loss - expected_loss).abs() <= error_of_loss)[known].all()
        assert ((gradient - expected).abs() <= error)[known].all()
        assert (loss[problem.labels < 0] == 0).all()
        assert loss[problem.labels >= problem.classes].isnan().all()
        assert (gradient[~known] == 0).all()


@st.composite
def problems(draw):
    what = {
        "n": draw(st.integers(0, 9)),
        "clusters": draw(st.one_of(st.integers(1, 40), st.integers(1, 5000))),
        "classes": draw(st.integers(1, 6)),
        "seed": draw(st.integers(0, 2**31)),
        "beta": draw(st.floats(0.01, 30)),
        "gamma": draw(st.one_of(st.just(0.0), st.just(1.0), st.floats(0, 2))),
        "form": draw(st.sampled_from(FORMS)),
        "marginal": draw(st.booleans()),
        "dtype": draw(st.sampled_from(sorted(DTYPES, key=str))),
        "pad": draw(st.integers(0, 20)),
    }
    note(f"Problem(**{what})")
    return Problem(**what)


@settings(max_examples=60, deadline=None)
@given(problem=problems())
def test_bound_agrees_with_its_definition(problem):
    check_against_definition(problem)


@pytest.mark.parametrize(("log_ratio", "loss"), [(79.5, -79.5), (-79.5, 79.5), (95, -math.inf)])
def test_ratios_at_the_ends_of_their_range(log_ratio, loss):
    problem = Problem(1, 64, 1, form="embedding", marginal=True)
    problem.products, problem.half_norms = torch.zeros(1, 64), torch.zeros(64)
    problem.labels = torch.tensor([0])
    problem.log_q = (problem.log_p + log_ratio)[None]
    assert problem.bound()[0].item() == pytest.approx(loss, rel=1e-6)


@each_form
def test_sums_over_100_000_columns_keep_their_digits(form):
    problem = Problem(3, 100_000, 2, beta=5e-4, gamma=0.5, form=form)
    problem.labels = torch.tensor([0, 1, 1])
    expected = definition(problem, problem.logits())[0]
    torch.testing.assert_close(problem.bound()[0].double(), expected, rtol=4e-7, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_16_bit_number_is_read_right(dtype):
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    values = bits.view(dtype)
    # With 32 equal columns the loss is -log Q, without rounding as long as 32 log Q is finite.
    problem = Problem(2**16, 32, 2**16, dtype=dtype)
    problem.products, problem.half_norms = torch.zeros(2**16, 32), torch.zeros(32)
    problem.labels = torch.arange(2**16)
    problem.log_q = values[:, None].repeat(1, 32)
    loss, _ = problem.bound()
    number = values.float()
    number = torch.where(number.abs() < 2.0**-126, torch.zeros(()), number)  # denormals flush
    checked = number.isnan() | number.isinf() | (number.abs() < 1e36)
    assert checked.sum() > 60_000
    finite = checked & number.isfinite()
    assert torch.equal(-loss[finite], number[finite])
    assert (~loss[checked & ~finite].isfinite()).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@each_form
def test_logits_that_are_no_numbers_stay_in_their_row(bad, form):
    problem = Problem(3, 1030, 2, gamma=1.0, form=form)
    problem.labels = torch.tensor([0, 1, 0])
    healthy, _ = problem.bound()
    problem.products[1, 1027] = bad
    loss, gradient = problem.bound()
    assert loss[[0, 2]].tolist() == healthy[[0, 2]].tolist() and loss[1].isnan()
    assert gradient[[0, 2]].isfinite().all()


@each_form
def test_threads_change_nothing(form, monkeypatch):
    # Long enough for threads to meet, if they share what they should not.
    problem = Problem(150, 8009, 5, gamma=0.3, form=form, marginal=True, pad=7)
    results = []
    for threads in (1, 2, 3, 4):
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)  # noqa: B023
        results.append(problem.bound())
    for other in results[1:]:
        for mine, theirs in zip(results[0], other):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True)


@pytest.fixture
def asked(monkeypatch):
    """An OpenMP runtime that starts ``asked.start(threads)`` threads; a list of what was asked."""

    class Asked(list):
        start = staticmethod(lambda threads: threads)

    calls = Asked()

    @GOMP_PARALLEL
    def parallel(function, data, threads, flags):
        calls.append(threads)
        body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(function)
        team = [threading.Thread(target=body, args=(data,)) for _ in range(calls.start(threads))]
        for thread in team:
            thread.start()
        for thread in team:
            thread.join()

    address = ctypes.cast(parallel, ctypes.c_void_p).value
    monkeypatch.setattr(native, "gomp_parallel", lambda: address)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    yield calls
    assert parallel


def test_a_runtime_may_start_fewer_threads_than_asked(asked):
    problem = Problem(40, 1041, 5)
    every = problem.bound()[1]
    asked.start = lambda threads: 1
    assert torch.equal(problem.bound()[1], every)
    assert asked == [3] * 2


def test_threads_are_started_only_for_work_that_is_worth_it(asked):
    Problem(4, 100, 5).bound()
    Problem(0, 1041, 5).bound()
    assert asked == []
    Problem(2, 20_000, 5).bound()
    assert asked == [2]  # one for each row


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors handle denormals fast")
def test_denormal_gradients_are_zero_and_the_mode_is_restored():
    problem = Problem(1, 64, 1, beta=0.5)
    problem.products = torch.linspace(0, -95, 64)[None].contiguous()  # e^-88 is denormal
    problem.half_norms.zero_()
    problem.labels.zero_()
    smallest = torch.finfo(torch.float32).tiny
    magnitude = problem.bound()[1].abs().double()
    assert ((magnitude == 0) | (magnitude >= smallest)).all()
    assert (magnitude == 0).any() and (magnitude > 0).sum() > 50
    assert (torch.tensor([smallest]) / 2).item() != 0


def test_arguments_that_are_not_allowed_are_refused(library, monkeypatch):
    problem, kept = Problem(2, 40, 3), []
    call = library.bound
    monkeypatch.setattr(library, "bound", lambda of: kept.append(of) or call(of))
    result = problem.bound()
    before = [part.clone() for part in result]
    (arguments,) = kept
    pointers = ("products", "half_norms", "log_q", "labels", "loss")
    for name, value in [
        *(("n", -1), ("K", 0), ("C", 0), ("products_pitch", 39), ("log_q_pitch", 39)),
        *(("log_q_dtype", 3), ("log_q_dtype", -1), ("form", 2), ("form", -1)),
        *((pointer, None) for pointer in pointers),
    ]:
        changed = native.BoundArgs.from_buffer_copy(arguments)
        setattr(changed, name, value)
        with pytest.raises(native.Unavailable, match="an argument is not allowed"):
            call(changed)
    for mine, then in zip(result, before):
        torch.testing.assert_close(mine, then, rtol=0, atol=0, equal_nan=True)
