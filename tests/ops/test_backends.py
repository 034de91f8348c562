"""Which implementation is taken, and what is said where one cannot be."""

import logging

import pytest
import torch

from fastreid_rib.losses import RIBLoss, rib_loss
from fastreid_rib.ops import Clusters, Objective, backends, bound, native

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def nothing_given_up(monkeypatch):
    monkeypatch.setattr(backends, "_given_up", {})


@pytest.fixture
def no_libraries(monkeypatch):
    def load(kind):
        raise native.Unavailable(f"the {kind} kernels are not built; build them")

    monkeypatch.setattr(native, "load", load)


def problem():
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(6, 4, generator=generator)
    centroids = torch.randn(5, 4, generator=generator)
    log_q = torch.randn(3, 5, generator=generator).log_softmax(1)
    return embeddings, torch.tensor([0, 1, 2, 2, 1, -1]), Clusters(centroids, log_q)


def test_auto_takes_the_library_for_the_device():
    assert backends.choose("auto", CPU) == "cpu"
    assert backends.choose("cpu", CPU) == "cpu"
    assert backends.choose("torch", CPU) == "torch"


def test_float64_and_other_devices_are_torch_s():
    assert backends.choose("auto", CPU, torch.float64) == "torch"
    assert backends.choose("auto", torch.device("meta")) == "torch"


def test_an_unknown_backend_is_named():
    with pytest.raises(ValueError, match="auto, cuda, cpu, torch, got 'gpu'"):
        backends.choose("gpu", CPU)
    with pytest.raises(ValueError, match="got 'gpu'"):
        RIBLoss(3, backend="gpu")


@pytest.mark.parametrize(
    ("backend", "device", "dtype", "remedy"),
    [
        ("cuda", CPU, torch.float32, "write 'auto'"),
        ("cpu", CUDA, torch.float32, "write 'auto'"),
        ("cpu", CPU, torch.float64, "'auto' or 'torch'"),
    ],
)
def test_a_backend_that_cannot_take_the_tensors_is_refused(backend, device, dtype, remedy):
    with pytest.raises(ValueError, match=remedy):
        backends.choose(backend, device, dtype)


def test_without_libraries_auto_says_so_once_and_goes_on(no_libraries, caplog):
    arguments = problem()
    with caplog.at_level(logging.WARNING):
        first = bound(*arguments, Objective(5.0))[0]
        second = bound(*arguments, Objective(5.0))[0]
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "RIB runs in plain PyTorch on this cpu device: the cpu kernels are not built; build them"
    ]
    assert torch.equal(first, second)
    assert torch.equal(first, bound(*arguments, Objective(5.0, backend="torch"))[0])


def test_without_libraries_a_name_raises_before_anything_is_computed(no_libraries):
    embeddings, labels, clusters = problem()
    embeddings.requires_grad_()
    with pytest.raises(native.Unavailable, match="not built; build them"):
        rib_loss(embeddings, labels, *clusters[:2], beta=5.0, backend="cpu")


def test_a_launch_that_fails_falls_back_with_the_same_numbers(monkeypatch, caplog):
    library = native.load("cpu")

    def fail(arguments):
        raise native.Unavailable("CUDA error 35, the driver is too old")

    monkeypatch.setattr(library, "bound", fail)
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


def test_what_is_missing_is_explained(no_libraries):
    assert backends.explain("torch", CPU) == "torch (asked for)"
    assert backends.explain("auto", CPU).startswith("torch: the cpu kernels are not built")
    assert backends.explain("cpu", CPU).startswith("none: the cpu kernels are not built")


def test_what_is_in_use_is_explained():
    explanation = backends.explain("auto", CPU)
    assert explanation.startswith("cpu (") and "librib_cpu.so" in explanation
    backends.give_up("cpu", native.Unavailable("error -1"))
    assert backends.explain("auto", CPU) == "torch: error -1"
    assert "no kernels" in backends.explain("auto", torch.device("meta"))
