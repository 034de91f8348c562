"""Which implementation of the kernels is used: the CUDA library, the CPU library, or PyTorch."""

import logging
from typing import Dict

import torch

from fastreid_rib.ops import native, proof
from fastreid_rib.ops.build import KINDS
from fastreid_rib.settings.rib import BACKENDS

logger = logging.getLogger(__name__)

_given_up: Dict[torch.device, str] = {}  # device -> why this process does without kernels there


def choose(backend: str, device: torch.device, dtype: torch.dtype = torch.float32) -> str:
    """Settles what a call will use; kernels prove themselves at their first use on a device.

    Args:
        backend: one of :data:`BACKENDS`.
        device: where the tensors are.
        dtype: of the embeddings.

    Returns:
        "cuda", "cpu" or "torch".

    Raises:
        ValueError: not a backend, or one that was asked for by name and cannot take such tensors.
        native.Unavailable: a library was asked for by name and cannot be used, or computes other
            numbers than PyTorch; says why, and what to do. With "auto" the log says so, once.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if backend == "torch":
        return "torch"
    kind, device = device.type, _numbered(device)
    if backend == "auto":
        if kind not in KINDS or dtype == torch.float64 or device in _given_up:
            return "torch"
    elif backend != kind:
        raise ValueError(
            f"backend '{backend}' works on {backend} tensors, got tensors on {device}; write "
            "'auto', which follows the device"
        )
    elif dtype == torch.float64:
        raise ValueError(
            f"backend '{backend}' computes in float32, got float64 embeddings; write 'auto' or "
            "'torch', which compute them in float64"
        )
    try:
        proof.require(kind, device)
    except native.Unavailable as error:
        if backend != "auto":
            raise
        if not isinstance(error, proof.Postponed):
            _given_up[device] = str(error)
            logger.warning("RIB runs in plain PyTorch on this %s device: %s", device, error)
        return "torch"
    return kind


def explain(backend: str, device: torch.device) -> str:
    """One line for people: what a backend comes to on a device, and why."""
    if backend == "torch":
        return "torch (asked for)"
    device = _numbered(device)
    if backend == "auto" and device.type not in KINDS:
        return f"torch: there are no kernels for {device.type}"
    if backend == "auto" and device in _given_up:
        return f"torch: {_given_up[device]}"
    try:
        # By name, so that the reason is not lost in the log.
        kind = choose(device.type if backend == "auto" else backend, device)
    except (native.Unavailable, ValueError) as error:
        return f"torch: {error}" if backend == "auto" else f"none: {error}"
    library = native.load(kind)
    return f"{kind} ({library.description}; {library.path}; computes what PyTorch does)"


def _numbered(device: torch.device) -> torch.device:
    if device.type == "cuda" and device.index is None and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return device
