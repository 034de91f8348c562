"""How everything here is measured: interleaved, medians, in one process."""

import platform
import statistics
import subprocess
import time
from pathlib import Path

import fastreid_rib

# isort: split
import torch
from torch.utils._python_dispatch import TorchDispatchMode

REPOSITORY = Path(__file__).resolve().parent.parent.parent
LEAST_REPEATS = 3


def about():
    """What a result cannot be compared without."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=str(REPOSITORY), stdout=subprocess.PIPE
    ).stdout.decode()
    return {
        "fastreid-rib": fastreid_rib.__version__,
        "commit": commit.strip(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": torch.backends.cpu.get_cpu_capability()
        if hasattr(torch.backends, "cpu")
        else platform.machine(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def seconds(function, device="cpu"):
    """Wall-clock seconds of one call, with the GPU's work done."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def interleaved(cases, budget=4.0, device="cpu", before=None, before_round=None):
    """Times several functions in turn, so that all see the same machine.

    Args:
        cases: name -> function.
        budget: seconds to spend on them; each is called at least ``LEAST_REPEATS`` times.
        device: "cpu" or "cuda".
        before: called before each timed call, not timed.
        before_round: called before each round of all cases, not timed.

    Returns:
        name -> list of seconds, in the order of the calls, after one call that is not counted.
    """
    times = {name: [] for name in cases}
    counted, end = -1, time.perf_counter() + budget
    while counted < LEAST_REPEATS or (time.perf_counter() < end and counted < 300):
        counted += 1
        if before_round is not None:
            before_round()
        for name, function in cases.items():
            if before is not None:
                before()
            elapsed = seconds(function, device)
            if counted:
                times[name].append(elapsed)
    return times


def medians(times):
    """Name -> median, of what :func:`interleaved` gives."""
    return {name: statistics.median(values) for name, values in times.items()}


def ratio(times, name, base):
    """Median of the ratios of two cases, round by round: what both suffered cancels."""
    return statistics.median(a / b for a, b in zip(times[name], times[base]))


def peak_bytes(function, device="cpu"):
    """The most memory that torch held at once during a call, beyond what it held before."""
    function()
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        function()
    held = most = 0
    events = (e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]")
    clock = "start_ns" if hasattr(torch._C._autograd._KinetoEvent, "start_ns") else "start_us"
    for event in sorted(events, key=lambda event: getattr(event, clock)()):
        held += event.nbytes()
        most = max(most, held)
    return most


class Traffic(TorchDispatchMode):
    """Counts what a GPU would have to do: launches, and elements of large tensors moved.

    Views and allocations cost nothing. Matrix products are counted as launches, but what they read
    and write is not: it is the same for every way to compute the bound. (A bias in ``addmm`` is
    copied into the result first: one more launch, and one more pass.) Picking rows reads what it
    writes, not the whole table.
    """

    NO_WORK = (
        "alias", "as_strided", "detach", "empty", "expand", "is_same_size", "new_empty", "permute",
        "select.", "slice", "t.", "transpose", "unbind", "unsqueeze", "view", "_unsafe_view",
    )  # fmt: skip

    def __init__(self, columns):
        """Counts the elements of tensors that have ``columns`` as one of their sizes."""
        super().__init__()
        self.columns, self.launches, self.moved = columns, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Runs an operation and counts it."""
        result = function(*args, **(kwargs or {}))
        name = function.__name__
        if name.startswith(self.NO_WORK):
            return result
        self.launches += 1
        results = list(result) if isinstance(result, (tuple, list)) else [result]
        if name.startswith("addmm") and (kwargs or {}).get("beta", 1) != 0:
            self.launches += 1
            moved = results
        elif name.startswith(("mm", "addmm")):
            moved = []
        elif name.startswith("index"):
            moved = results + results
        else:
            moved = list(args) + results
        tensors = [part for part in moved if isinstance(part, torch.Tensor) and part.dim() > 1]
        self.moved += sum(part.numel() for part in tensors if self.columns in part.shape)
        return result
