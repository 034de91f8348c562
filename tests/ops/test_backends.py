"""Which implementation is taken, and what is said where one cannot be."""

import logging
import threading

import pytest
import torch

from fastreid_rib.commands import doctor
from fastreid_rib.losses import RIBLoss, rib_loss
from fastreid_rib.ops import Clusters, Objective, backends, bound, native, proof

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def first_use(monkeypatch):
    """As in a process that has not used the kernels."""
    monkeypatch.setattr(backends, "_given_up", {})
    monkeypatch.setattr(proof, "_made", {})


@pytest.fixture
def no_libraries(monkeypatch):
    def load(kind):
        raise native.Unavailable(f"the {kind} kernels are not built; build them")

    monkeypatch.setattr(native, "load", load)


def wrong(arguments):
    """Arguments of a kernel that is a little off: 0.1 % of a factor that it has to apply."""
    arguments.scale *= 1.001


def wrong_where_rows_are_not_aligned(arguments):
    if arguments.products_pitch % 16:
        arguments.scale *= 1.001


@pytest.fixture
def spoil(monkeypatch):
    """``spoil(wrong)``: from then on the loaded library computes something else."""
    library = native.load("cpu")

    def spoil(change):
        right = library.bound

        def bound(arguments):
            change(arguments)
            right(arguments)

        monkeypatch.setattr(library, "bound", bound)

    return spoil


def problem():
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(6, 4, generator=generator)
    centroids = torch.randn(5, 4, generator=generator)
    log_q = torch.randn(3, 5, generator=generator).log_softmax(1)
    return embeddings, torch.tensor([0, 1, 2, 2, 1, -1]), Clusters(centroids, log_q)


def test_the_library_for_the_device_is_taken_or_torch(caplog):
    with caplog.at_level(logging.WARNING):
        assert backends.choose("auto", CPU) == backends.choose("cpu", CPU) == "cpu"
        assert backends.choose("torch", CPU) == "torch"
        assert backends.choose("auto", CPU, torch.float64) == "torch"
        assert backends.choose("auto", torch.device("meta")) == "torch"
    assert not caplog.records
    explanation = backends.explain("auto", CPU)
    assert explanation.startswith("cpu (") and "librib_cpu.so; computes what" in explanation
    assert "no kernels" in backends.explain("auto", torch.device("meta"))


def test_a_backend_that_cannot_take_the_tensors_is_refused():
    for backend, device, dtype, words in (
        ("cuda", CPU, torch.float32, "write 'auto'"),
        ("cpu", CUDA, torch.float32, "write 'auto'"),
        ("cpu", CPU, torch.float64, "'auto' or 'torch'"),
        ("gpu", CPU, torch.float32, "auto, cuda, cpu, torch, got 'gpu'"),
    ):
        with pytest.raises(ValueError, match=words):
            backends.choose(backend, device, dtype)
    with pytest.raises(ValueError, match="got 'gpu'"):
        RIBLoss(3, backend="gpu")


def test_without_libraries_auto_says_so_once_and_a_name_raises(no_libraries, caplog):
    embeddings, labels, clusters = arguments = problem()
    with caplog.at_level(logging.WARNING):
        losses = [bound(*arguments, Objective(5.0))[0] for _ in range(2)]
    assert [record.getMessage() for record in caplog.records] == [
        "RIB runs in plain PyTorch on this cpu device: the cpu kernels are not built; build them"
    ]
    expected = bound(*arguments, Objective(5.0, backend="torch"))[0]
    assert torch.equal(losses[0], expected) and torch.equal(losses[1], expected)
    with pytest.raises(native.Unavailable, match="not built; build them"):
        rib_loss(embeddings.requires_grad_(), labels, *clusters[:2], beta=5.0, backend="cpu")
    assert backends.explain("torch", CPU) == "torch (asked for)"
    assert backends.explain("auto", CPU).startswith("torch: the cpu kernels are not built")
    assert backends.explain("cpu", CPU).startswith("none: the cpu kernels are not built")


def test_a_launch_that_fails_falls_back_with_the_same_numbers(monkeypatch, caplog):
    def fail(arguments):
        raise native.Unavailable("CUDA error 35, the driver is too old")

    monkeypatch.setattr(native.load("cpu"), "bound", fail)
    arguments = problem()
    with caplog.at_level(logging.WARNING):
        loss, gradient = bound(*arguments, Objective(5.0, 0.5))
    assert ["driver is too old" in record.getMessage() for record in caplog.records] == [True]
    expected, expected_gradient = bound(*arguments, Objective(5.0, 0.5, backend="torch"))
    assert torch.equal(loss, expected) and torch.equal(gradient, expected_gradient)
    # From now on without trying.
    assert backends.choose("auto", CPU) == "torch"
    with pytest.raises(native.Unavailable, match="driver is too old"):
        bound(*arguments, Objective(5.0, backend="cpu"))


@pytest.mark.parametrize("change", [wrong, wrong_where_rows_are_not_aligned])
def test_kernels_that_compute_wrongly_are_not_used(spoil, caplog, change):
    spoil(change)
    arguments = problem()
    with caplog.at_level(logging.WARNING):
        losses = [bound(*arguments, Objective(5.0, 0.7))[0] for _ in range(2)]
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("RIB runs in plain PyTorch on this cpu device: the kernels of ")
    for words in ("librib_cpu.so", "on cpu", "differ from PyTorch by ", "build"):
        assert words in said, words
    expected = bound(*arguments, Objective(5.0, 0.7, backend="torch"))[0]
    assert torch.equal(losses[0], expected) and torch.equal(losses[1], expected)
    for _ in range(2):
        with pytest.raises(native.Unavailable, match="compute wrongly on cpu"):
            bound(*arguments, Objective(5.0, backend="cpu"))
    (finding,) = [one for one in doctor.kernels() if one.subject == "loss on cpu"]
    assert finding.status == "note" and "torch: the kernels of " in finding.text


def test_kernels_are_compared_once_whatever_mode_the_caller_is_in(monkeypatch):
    compared = []
    right = proof.compare
    monkeypatch.setattr(proof, "compare", lambda *which: compared.append(which) or right(*which))
    state = torch.get_rng_state()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        threads = [threading.Thread(target=backends.choose, args=("cpu", CPU)) for _ in range(4)]
        for thread in threads:
            thread.start()
        backends.choose("auto", CPU)
    for thread in threads:
        thread.join()
    assert compared == [("cpu", CPU)] and torch.equal(torch.get_rng_state(), state)
    assert right("cpu", CPU).share < 0.25


def test_it_waits_where_nothing_can_be_compared(monkeypatch, caplog):
    monkeypatch.setattr(native, "load", lambda kind: None)
    monkeypatch.setattr(proof, "compare", None)
    for available, words in ((False, "sees no GPU"), (True, "captured: do a step before")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: available)  # noqa: B023
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        with caplog.at_level(logging.WARNING):
            assert backends.choose("auto", CUDA) == "torch"
        with pytest.raises(proof.Postponed, match=words):
            backends.choose("cuda", CUDA)
    assert not caplog.records and not backends._given_up and not proof._made


def test_a_gpu_that_breaks_off_is_told_with_the_way_around(monkeypatch):
    def broken(*which):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(proof, "compare", broken)
    with pytest.raises(native.Unavailable, match="illegal memory access .* backend 'torch'"):
        backends.choose("cpu", CPU)
