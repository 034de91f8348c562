"""Which implementation of the kernels is used: the CUDA library, the CPU library, or PyTorch."""

import contextlib
import logging
from typing import Any, Callable, ContextManager, Dict

import torch
from torch import Tensor

from fastreid_rib.ops import native
from fastreid_rib.settings.rib import BACKENDS

logger = logging.getLogger(__name__)

_given_up: Dict[str, str] = {}  # kind of library -> why this process does without it


def choose(backend: str, device: torch.device, dtype: torch.dtype = torch.float32) -> str:
    """Settles what a call will use.

    Args:
        backend: one of :data:`BACKENDS`.
        device: where the tensors are.
        dtype: of the embeddings.

    Returns:
        "cuda", "cpu" or "torch".

    Raises:
        ValueError: not a backend, or one that was asked for by name and cannot take such tensors.
        native.Unavailable: a library was asked for by name and cannot be used; says why, and what
            to do. With "auto" the log says so, once.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if backend == "torch":
        return "torch"
    if backend != "auto":
        if backend != device.type:
            raise ValueError(
                f"backend '{backend}' works on {backend} tensors, got tensors on {device}; write "
                "'auto', which follows the device"
            )
        if dtype == torch.float64:
            raise ValueError(
                f"backend '{backend}' computes in float32, got float64 embeddings; write 'auto' or "
                "'torch', which compute them in float64"
            )
        native.load(backend)
        return backend
    kind = device.type
    if kind not in ("cuda", "cpu") or dtype == torch.float64 or kind in _given_up:
        return "torch"
    try:
        native.load(kind)
    except native.Unavailable as error:
        give_up(kind, error)
        return "torch"
    return kind


def run(
    kind: str, may_fall_back: bool, kernels: Callable[[], Tensor], plain: Callable[[], Tensor]
) -> Tensor:
    """What the kernels of a kind give, or plain PyTorch.

    Args:
        kind: "cuda", "cpu" or "torch", from :func:`choose`.
        may_fall_back: compute in PyTorch, now and from now on, if the kernels fail to launch.
        kernels: calls them.
        plain: the same in PyTorch; a launch that failed has changed nothing.

    Raises:
        native.Unavailable: the kernels fail to launch.
    """
    if kind != "torch":
        try:
            return kernels()
        except native.Unavailable as error:
            if not may_fall_back:
                raise
            give_up(kind, error)
    return plain()


def placed(arguments: Any, device: torch.device) -> ContextManager[None]:
    """Fills in where a library works; the context keeps torch's current device as it is.

    Args:
        arguments: of a function of ``csrc/rib.h``.
        device: of the tensors that they point to.
    """
    if device.type == "cuda":
        # What is queued on this stream keeps the memory in use, so the tensors may go meanwhile.
        arguments.stream = torch.cuda.current_stream(device).cuda_stream
        arguments.device = torch.cuda.current_device() if device.index is None else device.index
        return torch.cuda.device(device)
    arguments.threads, arguments.parallel = torch.get_num_threads(), native.gomp_parallel()
    return contextlib.nullcontext()


def give_up(kind: str, error: native.Unavailable) -> None:
    """Lets ``auto`` do without a library from now on, and says why.

    Args:
        kind: "cuda" or "cpu".
        error: what became of it.
    """
    if kind not in _given_up:
        _given_up[kind] = str(error)
        logger.warning("RIB runs in plain PyTorch on this %s device: %s", kind, error)


def explain(backend: str, device: torch.device) -> str:
    """One line for people: what a backend comes to on a device, and why.

    Args:
        backend: one of :data:`BACKENDS`.
        device: where the tensors would be.
    """
    if backend == "torch":
        return "torch (asked for)"
    if backend == "auto" and device.type not in ("cuda", "cpu"):
        return f"torch: there are no kernels for {device.type}"
    try:
        # By name, so that the reason is not lost in the log.
        kind = choose(device.type if backend == "auto" else backend, device)
    except (native.Unavailable, ValueError) as error:
        return f"torch: {error}" if backend == "auto" else f"none: {error}"
    if kind in _given_up:
        return f"torch: {_given_up[kind]}"
    library = native.load(kind)
    return f"{kind} ({library.description}; {library.path})"
