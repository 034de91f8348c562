"""The bound four ways: speed, memory, and what a GPU would have to do.

``fused`` is ``ops.bound``; ``eager`` the same formula as matrix product, softmax and sums under
autograd; ``compiled`` is ``torch.compile`` of it; ``published`` follows the public code of the
authors' sister method: a loop over centroids, then an n x K x C product, written anew.
``products`` are the two matrix products alone, which every way needs (``padded``: into rows that
begin at aligned addresses, as ``fused`` has them; ``graph``: as forward and backward of autograd).
"""

import torch
from benchmarks.harness import Traffic, interleaved, medians, peak_bytes, ratio

from fastreid_rib.ops import Clusters, Objective, aligned_rows, bound
from fastreid_rib.ops.backends import choose
from fastreid_rib.ops.rows import bound_rows_, empty_rows

SIZES = [(64, 751, 2048), (64, 1041, 2048), (256, 4101, 768), (64, 20000, 512)]  # n, K, D
BETA, GAMMA = 30.0, 0.0
# Rows of the class table at K = 20000, so that it need not be 1.6 GB: the rows of 16 are read.
MOST_CLASSES = 4101
MOST_PUBLISHED_BYTES = 2**30


class Problem:
    """Operands of one size, and the ways to compute the bound of them."""

    def __init__(self, n, clusters, dim, device):
        """Random L2-normalised embeddings, four of each identity as FastReID samples them."""
        generator = torch.Generator().manual_seed(0)
        classes = min(clusters, MOST_CLASSES)

        def normal(*shape):
            return torch.randn(*shape, generator=generator).to(device)

        self.n, self.clusters, self.classes = n, clusters, classes
        self.embeddings = torch.nn.functional.normalize(normal(n, dim), dim=1).requires_grad_()
        self.centroids = 0.7 * torch.nn.functional.normalize(normal(clusters, dim), dim=1)
        self.half_norms = self.centroids.square().sum(1) / 2
        self.bias = -2 * BETA * self.half_norms
        self.log_q = aligned_rows(normal(classes, clusters).log_softmax(1))
        self.labels = torch.randint(classes, (n // 4,), generator=generator)
        self.labels = self.labels.repeat_interleave(4).to(device)
        self.weights = torch.full((n,), 1 / n, device=device)
        self.matrix = normal(n, clusters)  # stands for a gradient of the logits
        self.padded = aligned_rows(self.matrix)
        self.compiled_form = torch.compile(self.eager, dynamic=False) if can_compile() else None

    def fused(self, embeddings):
        """This package's operation."""
        return bound(embeddings, self.labels, self.constants(), Objective(BETA, GAMMA))[0]

    def constants(self):
        """What the images are compared with."""
        return Clusters(self.centroids, self.log_q, None, self.half_norms)

    def between(self, logits):
        """What stands between the two matrix products in the eager form."""
        log_phi = logits.log_softmax(1)
        return (log_phi.exp() * -self.log_q[self.labels]).sum(1)

    def eager(self, embeddings):
        """The matrix-product form in plain PyTorch."""
        return self.between(torch.addmm(self.bias, embeddings, self.centroids.t(), alpha=2 * BETA))

    def published(self, embeddings):
        """Distances centroid by centroid, and the sum over identities as one large product."""
        distances = [(embeddings - centroid).square().sum(1) for centroid in self.centroids]
        phi = (-BETA * torch.stack(distances, dim=1)).softmax(1)
        is_label = torch.nn.functional.one_hot(self.labels, self.classes).to(phi.dtype)
        return -(phi[:, :, None] * self.log_q.t() * is_label[:, None, :]).sum((1, 2))

    def ways(self):
        """Name -> function of the embeddings, of those that can run at this size."""
        ways = {"fused": self.fused, "eager": self.eager}
        if self.compiled_form is not None:
            ways["compiled"] = self.compiled_form
        if 4 * self.n * self.clusters * self.classes < MOST_PUBLISHED_BYTES:
            ways["published"] = self.published
        return ways

    def both(self, way):
        """Forward and backward, as one call."""
        return lambda: torch.autograd.grad(way(self.embeddings), self.embeddings, self.weights)

    def products(self):
        """The two matrix products alone."""
        self.embeddings.detach() @ self.centroids.t()
        self.matrix @ self.centroids

    def products_graph(self):
        """The same as a matrix product and its backward."""
        product = self.embeddings @ self.centroids.t()
        torch.autograd.grad(product, self.embeddings, self.matrix)

    def products_padded(self):
        """The same, with the logits in aligned rows."""
        rows = empty_rows(self.embeddings, self.n, self.clusters)
        torch.mm(self.embeddings.detach(), self.centroids.t(), out=rows)
        self.padded @ self.centroids


def can_compile():
    """Whether this torch has torch.compile."""
    return hasattr(torch, "compile")


def speed(problem, budget, device):
    """Times forward, backward and both, every way, beside the products."""
    ways = problem.ways()
    # Apart: its seconds beside the others' milliseconds would leave them few repetitions.
    slow = {name: problem.both(ways.pop(name)) for name in list(ways) if name == "published"}
    both = {name: problem.both(way) for name, way in ways.items()}
    both["products"], both["padded"] = problem.products, problem.products_padded
    both["graph"] = problem.products_graph
    times = interleaved(both, budget, device)
    forward = interleaved(
        {name: (lambda way=way: way(problem.embeddings)) for name, way in ways.items()},
        budget / 2,
        device,
    )
    losses = {}

    def build_graphs():
        losses.update({name: way(problem.embeddings) for name, way in ways.items()})

    backward = interleaved(
        {
            name: lambda name=name: torch.autograd.grad(
                losses[name], problem.embeddings, problem.weights
            )
            for name in ways
        },
        budget / 2,
        device,
        before_round=build_graphs,
    )
    result = {
        "milliseconds": {
            name: {
                "both": 1e3 * value,
                "forward": 1e3 * medians(forward).get(name, float("nan")),
                "backward": 1e3 * medians(backward).get(name, float("nan")),
            }
            for name, value in medians(times).items()
        },
        "fused / products": ratio(times, "fused", "products"),
        "fused / padded": ratio(times, "fused", "padded"),
        "fused / graph": ratio(times, "fused", "graph"),
        "eager / fused": ratio(times, "eager", "fused"),
    }
    for name, function in slow.items():
        pair = interleaved({name: function, "fused": both["fused"]}, budget, device)
        result[f"{name} / fused"] = ratio(pair, name, "fused")
        result["milliseconds"][name] = {"both": 1e3 * medians(pair)[name]}
    return result


def row_kernel(problem, budget, device):
    """The row kernel on ready products, the eager form on ready logits, a pass over the buffer."""
    rows = empty_rows(problem.embeddings, problem.n, problem.clusters)
    ready = (problem.embeddings.detach() @ problem.centroids.t()).contiguous()
    kind = choose("auto", torch.device(device))
    logits = (2 * BETA * (ready - problem.half_norms)).requires_grad_()

    def kernel():
        bound_rows_(kind, rows, problem.labels, problem.constants(), Objective(BETA, GAMMA))

    times = interleaved(
        {
            "kernel": kernel,
            "eager": lambda: torch.autograd.grad(problem.between(logits), logits, problem.weights),
            "pass": lambda: rows.mul_(1.0001),
        },
        budget,
        device,
        before=lambda: rows.copy_(ready),
    )
    return {
        "milliseconds": {name: 1e3 * value for name, value in medians(times).items()},
        "kernel / eager": ratio(times, "kernel", "eager"),
        "kernel / pass": ratio(times, "kernel", "pass"),
    }


def memory(problem, device):
    """Peak bytes of forward and backward, and the least that the fused way can do with."""
    n, dim = problem.embeddings.shape
    least = 4 * (n * problem.clusters + n * dim)
    ways = {name: way for name, way in problem.ways().items() if name != "published"}
    peaks = {name: peak_bytes(problem.both(way), device) for name, way in ways.items()}
    return dict(peaks, least=least)


def gpu_work(problem):
    """Launches, and passes over n x K elements outside the products, counted.

    The row kernel is no torch operation; by its source it is one launch and three passes: it reads
    the products and the rows of log Q, and writes the gradient.
    """
    counted = {}
    for name, way in problem.ways().items():
        if name == "compiled":
            continue
        with Traffic(problem.clusters) as traffic:
            problem.both(way)()
        own = (1, 3) if name == "fused" else (0, 0)
        passes = traffic.moved / (problem.n * problem.clusters) + own[1]
        counted[name] = {"launches": traffic.launches + own[0], "passes": passes}
    return counted


def measure(budget, device, threads):
    """Everything, at every size: a list of results, one for each size and number of threads."""
    results = []
    before = torch.get_num_threads()
    for n, clusters, dim in SIZES:
        problem = Problem(n, clusters, dim, device)
        for number in threads:
            torch.set_num_threads(number)
            result = {"n": n, "K": clusters, "D": dim, "threads": number}
            result.update(speed(problem, budget, device))
            result["row kernel"] = row_kernel(problem, budget / 2, device)
            if number == threads[0]:
                result["peak bytes"] = memory(problem, device)
                result["gpu work"] = gpu_work(problem)
            results.append(result)
            show(result)
    torch.set_num_threads(before)
    return results


def show(result):
    """Prints one result as lines of a table."""
    size = f"({result['n']}, {result['K']}, {result['D']})"
    print(f"\n{size}, {result['threads']} thread(s): forward + backward, forward, backward in ms")
    for name, times in result["milliseconds"].items():
        columns = (times.get(part, float("nan")) for part in ("both", "forward", "backward"))
        print(f"  {name:10}" + "".join(f"{value:10.3f}" for value in columns))
    ratios = {name: value for name, value in result.items() if " / " in name}
    print("  " + "; ".join(f"{name} {value:.3f}" for name, value in ratios.items()))
    kernel = result["row kernel"]
    print(
        "  row kernel: "
        + ", ".join(f"{name} {value:.3f} ms" for name, value in kernel["milliseconds"].items())
        + f"; kernel / eager {kernel['kernel / eager']:.3f}"
        + f"; kernel / pass {kernel['kernel / pass']:.3f}"
    )
    if "peak bytes" in result:
        peaks = result["peak bytes"].items()
        print(
            "  peak memory: "
            + ", ".join(f"{name} {value / 2**20:.2f} MiB" for name, value in peaks)
        )
    for name, work in result.get("gpu work", {}).items():
        print(f"  a GPU would do, {name}: {work['launches']} launches, {work['passes']:.1f} passes")
