"""The CPU library by itself, through its C interface, against definitions in float64."""

import ctypes
import math
import platform
import subprocess
import threading

import pytest
import torch
from hypothesis import given, note, settings
from hypothesis import strategies as st

from fastreid_rib.ops import build
from fastreid_rib.ops.native import BoundArgs, Library, TableArgs, Unavailable, gomp_parallel

EPS = torch.finfo(torch.float32).eps
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
CLUSTERS, EMBEDDING = 0, 1
FORMS = pytest.mark.parametrize("form", [CLUSTERS, EMBEDDING], ids=["clusters", "embedding"])
PADDING = 7.0
GOMP_PARALLEL = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint
)


@pytest.fixture(scope="module", params=["as built", "AVX2 at most", "portable"])
def library(request, tmp_path_factory):
    try:
        compiler = build.compiler("cpu")
    except build.NoCompilerError as error:
        pytest.skip(str(error))
    path = tmp_path_factory.mktemp("kernels") / build.library_name("cpu")
    if request.param == "as built":
        build.compile_library("cpu", path)
    else:
        isa = "-DRIB_MAX_ISA=1" if request.param == "AVX2 at most" else "-DRIB_MAX_ISA=0"
        source = str(build.SOURCES / "rib_cpu.cpp")
        subprocess.run([compiler, *build._FLAGS["cpu"], isa, source, "-o", str(path)], check=True)
    path.chmod(0o755)
    return Library(path)


class Problem:
    """Input of the kernels, fuzzed; the matrices that go in lie in wider ones."""

    def __init__(
        self,
        n,
        K,  # noqa: N803
        C,  # noqa: N803
        *,
        seed=0,
        scale=3.0,
        gamma=0.0,
        form=CLUSTERS,
        marginal=False,
        dtype=torch.float32,
        pad=0,
    ):
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(shape, generator=generator)

        self.n, self.K, self.C, self.scale, self.gamma, self.pad = n, K, C, scale, gamma, pad
        self.form = form
        self.products = normal(n, K)
        self.half_norms = normal(K).square() / 2
        self.labels = torch.randint(-2, C + 2, (n,), generator=generator)
        self.log_q = self.wide(normal(C, K).mul(3).log_softmax(1), dtype)
        self.log_p = normal(K).mul(2).log_softmax(0) if marginal else None

    def wide(self, matrix, dtype=torch.float32):
        rows, columns = matrix.shape
        storage = torch.full((rows, columns + self.pad), PADDING).to(dtype)
        storage[:, :columns] = matrix
        return storage[:, :columns]

    @property
    def known(self):
        return (self.labels >= 0) & (self.labels < self.C)

    def arguments(self, products, loss, threads=1, parallel=None):
        return BoundArgs(
            products=products.data_ptr(),
            half_norms=self.half_norms.data_ptr(),
            log_q=self.log_q.data_ptr(),
            log_p=None if self.log_p is None else self.log_p.data_ptr(),
            labels=self.labels.data_ptr(),
            loss=loss.data_ptr(),
            n=self.n,
            K=self.K,
            C=self.C,
            products_pitch=self.K + self.pad,
            log_q_pitch=self.log_q.shape[1] + self.pad,
            scale=self.scale,
            gamma=self.gamma,
            log_q_dtype=DTYPES[self.log_q.dtype],
            form=self.form,
            variant=-1,
            threads=threads,
            parallel=parallel,
        )

    def bound(self, library, threads=1, parallel=None):
        """Loss and gradient of the kernel, and the columns after them."""
        products = self.wide(self.products)
        loss = torch.full((self.n,), PADDING)
        library.bound(self.arguments(products, loss, threads, parallel))
        padding = torch.as_strided(products, (self.n, self.pad), (self.K + self.pad, 1), self.K)
        return loss, products, padding

    def table_arguments(self, products, table, negentropy, threads=1, parallel=None):
        return TableArgs(
            products=products.data_ptr(),
            half_norms=self.half_norms.data_ptr(),
            labels=self.labels.data_ptr(),
            table=table.data_ptr(),
            negentropy=negentropy.data_ptr(),
            n=self.n,
            K=self.K,
            C=self.C,
            products_pitch=self.K + self.pad,
            table_pitch=self.K + self.pad,
            scale=self.scale,
            threads=threads,
            parallel=parallel,
        )

    def logits(self, dtype=torch.float64):
        return self.scale * (self.products.to(dtype) - self.half_norms.to(dtype))

    def rows_of_log_q(self):
        """The row of log Q of each image, float64; of some image if its label is out of range."""
        return self.log_q[self.labels.clamp(0, self.C - 1)].double()


def definition(problem, logits):
    """In float64: the loss, log phi, the scores; and log(phi Q / P) if that is in the loss."""
    log_phi = logits.log_softmax(1)
    log_p = torch.zeros(problem.K) if problem.log_p is None else problem.log_p
    log_ratio = problem.rows_of_log_q() - log_p.double()
    score = problem.gamma * (log_phi - log_p.double())
    if problem.form == CLUSTERS:
        score = score - log_ratio
        return (log_phi.exp() * score).sum(1), log_phi, score, None
    joint = log_phi + log_ratio
    return (log_phi.exp() * score).sum(1) - joint.logsumexp(1), log_phi, score, joint


def check_against_definition(problem, loss, gradient):
    """The error allowed is that of float32 logits, and of sums over a chunk."""
    logits = problem.logits().requires_grad_()
    expected_loss, log_phi, score, joint = definition(problem, logits)
    (expected,) = torch.autograd.grad(expected_loss.sum(), logits)
    with torch.no_grad():
        phi, largest = log_phi.exp(), logits.abs().amax(1)
        relative = EPS * (4 * largest + 16)
        size = score.abs() + problem.gamma * largest[:, None] + 1e-6  # of the terms of a score
        if problem.log_p is not None:
            size += problem.gamma * problem.log_p.abs()
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
        known, unknown = problem.known, problem.labels >= problem.C
        assert ((loss - expected_loss).abs() <= error_of_loss)[known].all()
        assert ((gradient - expected).abs() <= error)[known].all()
        assert (loss[problem.labels < 0] == 0).all()
        assert loss[unknown].isnan().all()
        assert (gradient[~known] == 0).all()


@st.composite
def problems(draw):
    columns = draw(st.one_of(st.integers(1, 40), st.integers(1, 5000)))
    what = {
        "n": draw(st.integers(0, 9)),
        "K": columns,
        "C": draw(st.integers(1, 6)),
        "seed": draw(st.integers(0, 2**31)),
        "scale": draw(st.floats(0.01, 60)),
        "gamma": draw(st.one_of(st.just(0.0), st.just(1.0), st.floats(0, 2))),
        "form": draw(st.sampled_from([CLUSTERS, EMBEDDING])),
        "marginal": draw(st.booleans()),
        "dtype": draw(st.sampled_from(sorted(DTYPES, key=str))),
        "pad": draw(st.integers(0, 20)),
    }
    note(f"Problem(**{what})")
    return Problem(**what)


@settings(max_examples=60, deadline=None)
@given(problems())
def test_bound_agrees_with_its_definition(library, problem):
    loss, gradient, padding = problem.bound(library)
    check_against_definition(problem, loss, gradient)
    assert (padding == PADDING).all()


@pytest.mark.parametrize(("log_ratio", "loss"), [(79.5, -79.5), (-79.5, 79.5), (95, -math.inf)])
def test_ratios_at_the_ends_of_their_range(library, log_ratio, loss):
    problem = Problem(1, 64, 1, form=EMBEDDING, marginal=True)
    problem.products = torch.zeros(1, 64)
    problem.half_norms = torch.zeros(64)
    problem.labels = torch.tensor([0])
    problem.log_q = (problem.log_p + log_ratio)[None]
    assert problem.bound(library)[0].item() == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
@FORMS
def test_sharp_logits(library, gamma, form):
    problem = Problem(4, 1041, 3, scale=240.0, gamma=gamma, form=form, marginal=form == EMBEDDING)
    problem.products = torch.rand(4, 1041, generator=torch.Generator().manual_seed(1))
    problem.products[:, 0], problem.products[:, 1] = 0, 1  # logits differ by 240
    problem.half_norms.zero_()
    problem.labels = torch.tensor([0, 1, 2, 0])
    loss, gradient, _ = problem.bound(library)
    check_against_definition(problem, loss, gradient)


def test_the_exponential_keeps_its_digits(library):
    problem = Problem(5000, 32, 1, scale=1.0)
    below = torch.linspace(0, 1.5, 5000)
    problem.products = (-below[:, None]).repeat(1, 32)
    problem.products[:, 0] = 0
    problem.half_norms.zero_()
    problem.labels.zero_()
    problem.log_q = torch.zeros(1, 32)
    problem.log_q[0, 0] = -1
    loss, _, _ = problem.bound(library)
    weight = 31 * (-below.double()).exp()  # of the columns where log Q is 0
    torch.testing.assert_close(loss.double(), 1 / (1 + weight), rtol=4 * EPS, atol=0)


@FORMS
def test_sums_over_100_000_columns_keep_their_digits(library, form):
    problem = Problem(3, 100_000, 2, scale=1e-3, gamma=0.5, form=form)
    problem.labels = torch.tensor([0, 1, 1])
    loss, gradient, _ = problem.bound(library)
    expected = definition(problem, problem.logits())[0]
    torch.testing.assert_close(loss.double(), expected, rtol=4e-7, atol=0)
    check_against_definition(problem, loss, gradient)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_16_bit_number_is_read_right(library, dtype):
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    values = bits.view(dtype)
    # With 32 equal columns the loss is -log Q, without rounding as long as 32 log Q is finite.
    problem = Problem(2**16, 32, 2**16, dtype=dtype)
    problem.products = torch.zeros(2**16, 32)
    problem.half_norms = torch.zeros(32)
    problem.labels = torch.arange(2**16)
    problem.log_q = values[:, None].repeat(1, 32)
    loss, _, _ = problem.bound(library)
    number = values.float()
    number = torch.where(number.abs() < 2.0**-126, torch.zeros(()), number)  # denormals flush
    checked = number.isnan() | number.isinf() | (number.abs() < 1e36)
    assert checked.sum() > 60_000
    finite = checked & number.isfinite()
    assert torch.equal(-loss[finite], number[finite])
    assert (~loss[checked & ~finite].isfinite()).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("gamma", [0.0, 1.0])
@FORMS
def test_logits_that_are_no_numbers_stay_in_their_row(library, bad, gamma, form):
    problem = Problem(3, 1030, 2, gamma=gamma, form=form)
    problem.labels = torch.tensor([0, 1, 0])
    healthy, _, _ = problem.bound(library)
    problem.products[1, 1027] = bad
    loss, gradient, _ = problem.bound(library)
    assert loss[[0, 2]].tolist() == healthy[[0, 2]].tolist()
    assert gradient[[0, 2]].isfinite().all()
    assert loss[1].isnan()


def test_labels_out_of_range_leave_no_trace_of_a_row_that_is_no_number(library):
    problem = Problem(2, 50, 3, pad=2)
    problem.products[:] = math.nan
    problem.labels = torch.tensor([-1, 3])
    loss, gradient, _ = problem.bound(library)
    assert loss[0] == 0 and loss[1].isnan()
    assert (gradient == 0).all()


@FORMS
def test_threads_change_nothing(library, form):
    # Long enough for threads to meet, if they share what they should not.
    problem = Problem(150, 8009, 5, gamma=0.3, form=form, marginal=True, pad=7)
    once = problem.bound(library)
    for threads in (2, 3, 4):
        loss, gradient, padding = problem.bound(library, threads, gomp_parallel())
        torch.testing.assert_close(loss, once[0], rtol=0, atol=0, equal_nan=True)
        assert torch.equal(gradient, once[1])
        assert (padding == PADDING).all()


def fake_runtime(start):
    """An OpenMP runtime that starts ``start(threads)`` threads and remembers what was asked."""
    asked = []

    @GOMP_PARALLEL
    def parallel(function, data, threads, flags):
        asked.append(threads)
        body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(function)
        team = [threading.Thread(target=body, args=(data,)) for _ in range(start(threads))]
        for thread in team:
            thread.start()
        for thread in team:
            thread.join()

    return parallel, asked


@pytest.mark.parametrize("start", [lambda threads: threads, lambda threads: 1], ids=["all", "one"])
def test_a_runtime_may_start_fewer_threads_than_asked(library, start):
    parallel, asked = fake_runtime(start)
    address = ctypes.cast(parallel, ctypes.c_void_p).value
    problem = Problem(40, 1041, 5)
    gradient = problem.bound(library, 3, address)[1]
    assert torch.equal(gradient, problem.bound(library)[1])
    table = table_of(problem, library, threads=3, parallel=address)[0]
    assert torch.equal(table, table_of(problem, library)[0])
    assert asked == [3, 3]


def test_threads_are_started_only_for_work_that_is_worth_it(library):
    parallel, asked = fake_runtime(lambda threads: threads)
    address = ctypes.cast(parallel, ctypes.c_void_p).value
    Problem(4, 100, 5).bound(library, 4, address)
    Problem(40, 1041, 5).bound(library, 1, address)
    Problem(0, 1041, 5).bound(library, 4, address)
    assert asked == []
    Problem(3, 20_000, 5).bound(library, 4, address)
    assert asked == [3]  # one for each row


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors handle denormals fast")
def test_denormal_gradients_are_zero_and_the_mode_is_restored(library):
    problem = Problem(1, 64, 1, scale=1.0)
    problem.products = torch.linspace(0, -95, 64)[None].contiguous()  # e^-88 is denormal
    problem.half_norms.zero_()
    problem.labels.zero_()
    gradient = problem.bound(library)[1]
    smallest = torch.finfo(torch.float32).tiny
    magnitude = gradient.abs().double()
    assert ((magnitude == 0) | (magnitude >= smallest)).all()
    assert (magnitude == 0).any() and (magnitude > 0).sum() > 50
    assert (torch.tensor([smallest]) / 2).item() != 0


def table_of(problem, library, threads=1, parallel=None):
    products = problem.wide(problem.products)
    table = problem.wide(torch.ones(problem.C, problem.K))
    negentropy = torch.full((problem.n,), PADDING)
    arguments = problem.table_arguments(products, table, negentropy, threads, parallel)
    library.table(arguments)
    assert torch.equal(products, problem.products)
    return table, negentropy


@settings(max_examples=30, deadline=None)
@given(problems())
def test_table_agrees_with_its_definition(library, problem):
    table, negentropy = table_of(problem, library)
    log_phi = problem.logits().log_softmax(1)
    phi, known = log_phi.exp(), problem.known
    expected = torch.ones(problem.C, problem.K, dtype=torch.float64)
    expected.index_add_(0, problem.labels[known], phi[known])
    expected_negentropy = (phi * log_phi).sum(1) * known
    largest = problem.logits().abs().max().item() if problem.n else 0.0
    relative = EPS * (4 * largest + 16)
    torch.testing.assert_close(table.double(), expected, rtol=relative, atol=0)
    torch.testing.assert_close(
        negentropy.double(), expected_negentropy, rtol=2 * relative, atol=relative
    )
    assert (negentropy[~known] == 0).all()
    padding = torch.as_strided(
        table, (problem.C, problem.pad), (problem.K + problem.pad, 1), problem.K
    )
    assert (padding == PADDING).all()


def test_table_is_the_same_with_any_number_of_threads(library):
    problem = Problem(97, 4101, 5, pad=3)
    table, negentropy = table_of(problem, library)
    for threads in (1, 2, 3, 4):
        again = table_of(problem, library, threads, gomp_parallel())
        assert torch.equal(again[0], table)
        assert torch.equal(again[1], negentropy)


def without(*names):
    return [{name: None} for name in names]


def test_bound_refuses(library):
    problem = Problem(2, 40, 3)
    products, loss = problem.products.clone(), torch.full((2,), PADDING)
    for changes in (
        {"n": -1}, {"K": 0}, {"C": 0}, {"products_pitch": 39}, {"log_q_pitch": 39},
        {"log_q_dtype": 3}, {"log_q_dtype": -1}, {"form": 2}, {"form": -1},
        *without("products", "half_norms", "log_q", "labels", "loss"),
    ):  # fmt: skip
        arguments = problem.arguments(products, loss)
        for name, value in changes.items():
            setattr(arguments, name, value)
        with pytest.raises(Unavailable, match="an argument is not allowed"):
            library.bound(arguments)
        assert torch.equal(products, problem.products) and (loss == PADDING).all(), changes


def test_table_refuses(library):
    problem = Problem(2, 40, 3)
    table, negentropy = torch.ones(3, 40), torch.full((2,), PADDING)
    for changes in (
        {"n": -1}, {"K": 0}, {"C": 0}, {"products_pitch": 39}, {"table_pitch": 39},
        *without("products", "half_norms", "labels", "table", "negentropy"),
    ):  # fmt: skip
        arguments = problem.table_arguments(problem.products, table, negentropy)
        for name, value in changes.items():
            setattr(arguments, name, value)
        with pytest.raises(Unavailable, match="an argument is not allowed"):
            library.table(arguments)
        assert (table == 1).all() and (negentropy == PADDING).all(), changes


def test_no_images_need_no_memory(library):
    problem = Problem(0, 40, 3)
    arguments = problem.arguments(problem.products, problem.products)
    arguments.products = arguments.labels = arguments.loss = None
    library.bound(arguments)
    table = problem.table_arguments(problem.products, problem.products, problem.products)
    table.products = table.labels = table.negentropy = None
    library.table(table)


def test_it_says_what_it_runs_on(library):
    assert library.description in ("CPU, AVX-512", "CPU, AVX2", "CPU, portable code")
