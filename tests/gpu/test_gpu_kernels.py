"""The CUDA library on a real GPU: `bash tools/run_tests.sh --fast tests/gpu`."""

import pytest
import torch

from fastreid_rib.losses import RIBLoss
from fastreid_rib.ops import Clusters, Objective, aligned_rows, backends
from fastreid_rib.ops import bound as bound_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

SHAPES = [  # n, D, K, C
    (0, 4, 5, 2),
    (1, 1, 1, 1),
    (7, 5, 3, 4),
    (64, 64, 751, 30),
    (16, 32, 1041, 30),
    (4, 16, 20_000, 3),  # beyond the shared memory of smaller GPUs
    (2, 8, 100_000, 2),
]


def bound(
    embeddings, centroids, log_q, labels, beta, gamma=0.0, log_p=None, half_norms=None, **how
):
    clusters = Clusters(centroids, log_q, log_p, half_norms)
    return bound_of(embeddings, labels, clusters, Objective(beta, gamma, **how))


def problem(n, dim, clusters, classes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(n, dim, generator=generator)
    embeddings = embeddings / embeddings.norm(dim=1, keepdim=True).clamp(min=1e-6)
    centroids = torch.randn(clusters, dim, generator=generator) / dim**0.5
    log_q = torch.randn(classes, clusters, generator=generator).log_softmax(1)
    labels = torch.randint(classes, (n,), generator=generator)
    labels[2::5] = -1
    return [tensor.cuda() for tensor in (embeddings, centroids, log_q, labels)]


FORMS_AND_MARGINALS = pytest.mark.parametrize(
    ("form", "with_marginal"),
    [("clusters", False), ("clusters", True), ("embedding", False), ("embedding", True)],
)


def marginal(clusters, seed=0):
    generator = torch.Generator().manual_seed(seed + 1)
    return (2 * torch.randn(clusters, generator=generator)).log_softmax(0).cuda()


def exact(embeddings, centroids, log_q, labels, *settings, **options):
    return bound(embeddings.double(), centroids.double(), log_q, labels, *settings, **options)


def assert_close(ours, theirs, beta):
    tolerance = 2e-6 * (1 + beta)
    assert torch.allclose(ours[0].double(), theirs[0], rtol=tolerance, atol=tolerance)
    assert torch.allclose(ours[1].double(), theirs[1], rtol=0, atol=10 * tolerance)


@pytest.fixture(scope="module", autouse=True)
def the_library_works_here():
    assert backends.choose("cuda", torch.device("cuda")) == "cuda"
    with torch.cuda.device(0):
        bound(*problem(2, 3, 4, 2), 5.0, backend="cuda")  # raises what is wrong with it
        torch.cuda.synchronize()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("aligned", [False, True])
@FORMS_AND_MARGINALS
def test_it_equals_float64(shape, dtype, aligned, form, with_marginal):
    embeddings, centroids, log_q, labels = problem(*shape)
    log_q = log_q.to(dtype)
    log_q = aligned_rows(log_q) if aligned else log_q
    options = {"form": form, "log_p": marginal(shape[2]) if with_marginal else None}
    for beta, gamma in ((60.0, 0.0), (30.0, 0.3), (1.0, 1.0), (1.0, 2.0)):
        arguments = (embeddings, centroids, log_q, labels, beta, gamma)
        ours = bound(*arguments, backend="cuda", **options)
        assert_close(ours, exact(*arguments, **options), beta)


def test_a_label_beyond_the_table_is_found_without_waiting():
    embeddings, centroids, log_q, labels = problem(4, 5, 6, 3)
    labels[1] = 3
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss, gradient = bound(embeddings, centroids, log_q, labels, 5.0, backend="cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert loss.isnan().tolist() == [False, True, False, False]
    assert gradient[1].abs().max() == 0


def test_another_stream():
    arguments = problem(64, 256, 2000, 9)
    expected = bound(*arguments, 30.0, backend="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        # Late on this stream: a kernel on another one would run before the embeddings are there.
        late = arguments[0] * 0
        torch.cuda._sleep(50_000_000)
        late += arguments[0]
        ours = bound(late, *arguments[1:], 30.0, backend="cuda")
    stream.synchronize()
    assert torch.equal(ours[0], expected[0]) and torch.equal(ours[1], expected[1])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_another_device_than_the_current_one():
    arguments = problem(16, 8, 33, 5)
    expected = bound(*arguments, 30.0, backend="cuda")[0]
    ours = bound(*(tensor.to("cuda:1") for tensor in arguments), 30.0, backend="cuda")[0]
    assert ours.device.index == 1 and torch.cuda.current_device() == 0
    assert torch.allclose(ours.cpu(), expected.cpu(), rtol=1e-6)


def test_cuda_graph():
    embeddings, centroids, log_q, labels = problem(64, 32, 751, 9)
    embeddings.requires_grad_()
    half_norms = centroids.square().sum(1) / 2

    def step():
        loss = bound(
            embeddings, centroids, log_q, labels, 30.0, half_norms=half_norms, backend="cuda"
        )[0].sum()
        (gradient,) = torch.autograd.grad(loss, embeddings)
        return loss, gradient

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()  # cuBLAS makes its workspace
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        embeddings.copy_(embeddings.flip(0))
    graph.replay()
    expected = step()
    assert torch.allclose(captured[0], expected[0]) and torch.equal(captured[1], expected[1])


def test_at_most_six_launches():
    embeddings, centroids, log_q, labels = problem(64, 2048, 751, 9)
    embeddings.requires_grad_()
    half_norms = centroids.square().sum(1) / 2
    weights = torch.ones(64, device="cuda")

    def step():
        loss = bound(
            embeddings, centroids, log_q, labels, 30.0, half_norms=half_norms, backend="cuda"
        )[0]
        torch.autograd.grad(loss, embeddings, weights)

    step()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        step()
        torch.cuda.synchronize()
    kernels = [
        event.name
        for event in profile.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    ]
    # cuBLAS may split a product in two kernels.
    assert any("bound_rows" in name for name in kernels) and len(kernels) <= 6, kernels


def test_training_agrees_with_the_plain_path():
    torch.manual_seed(0)
    batches = [(torch.randn(32, 16).cuda(), torch.randint(6, (32,)).cuda()) for _ in range(20)]
    losses = {}
    for backend in ("cuda", "torch"):
        torch.manual_seed(1)
        layer = torch.nn.Linear(16, 16).cuda()
        rib = RIBLoss(6, beta=10.0, backend=backend).cuda()
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        losses[backend] = []
        for epoch in range(2):
            rib.start_epoch(epoch)
            for features, labels in batches:
                loss = rib(layer(features), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses[backend].append(loss.detach())
    assert torch.allclose(torch.stack(losses["cuda"]), torch.stack(losses["torch"]), rtol=1e-4)
    assert losses["cuda"][-1] != 0
