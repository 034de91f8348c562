"""Load the compiled kernels and call them: the C interface of ``csrc/rib.h`` through ctypes.

The libraries know nothing of torch, so one build serves every version of it. They are looked for
in the package's own folder and in the user's cache; of two, the one built last is tried first.
"""

import ctypes
import struct
import threading
from contextlib import suppress
from ctypes import POINTER, c_float, c_int, c_int32, c_int64, c_void_p
from functools import lru_cache
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from fastreid_rib.base import cache
from fastreid_rib.ops.build import library_name, sources_digest

ABI_VERSION = 4
PACKAGE_FOLDER = Path(__file__).resolve().parent / "lib"

_INSUFFICIENT_DRIVER = 35  # cudaErrorInsufficientDriver
_NO_CODE_FOR_THIS_GPU = (209, 222)  # cudaErrorNoKernelImageForDevice, ...UnsupportedPtxVersion
_loaded: Dict[str, "Library"] = {}
_loading = threading.Lock()


def _typed(kind: Any, names: str) -> List[Tuple[str, Any]]:
    return [(name, kind) for name in names.split()]


class BoundArgs(ctypes.Structure):
    """``rib_bound_args``: what each field means is written in ``csrc/rib.h``."""

    _fields_ = [
        *_typed(c_void_p, "products half_norms log_q log_p labels loss"),
        *_typed(c_int64, "n K C products_pitch log_q_pitch"),
        *_typed(c_float, "scale gamma"),
        *_typed(c_int32, "log_q_dtype form variant threads device"),
        *_typed(c_void_p, "stream parallel"),
    ]


class Unavailable(RuntimeError):  # noqa: N818  a state of the machine more than a mistake
    """Compiled kernels cannot be used here; the message says why and what to do about it."""


class Library:
    """A loaded library of kernels; :func:`load` finds it.

    Raises:
        Unavailable: it cannot be loaded, has another interface, or is not to be trusted.
    """

    def __init__(self, path: Path) -> None:
        try:
            if path.parent != PACKAGE_FOLDER:
                # Who can write the folder above can swap this one.
                reason = cache.why_untrusted(path, path.parent, path.parent.parent)
                if reason:
                    raise ValueError(reason)
            if not _is_whole(path):
                raise ValueError("the file is truncated or no library")
            functions = ctypes.CDLL(str(path))
            abi = functions.rib_abi()
            if abi != ABI_VERSION:
                raise ValueError(f"its C interface is version {abi}, not {ABI_VERSION}")
            functions.rib_bound.argtypes = [POINTER(BoundArgs)]
            functions.rib_error_text.argtypes = [c_int]
            functions.rib_error_text.restype = ctypes.c_char_p
            functions.rib_describe.restype = ctypes.c_char_p
        except (OSError, AttributeError, ValueError) as error:
            raise Unavailable(f"{path} cannot be used: {error}") from error
        self._functions, self.path = functions, path
        self.description: str = functions.rib_describe().decode()
        """What it was built for, for people to read."""

    def bound(self, arguments: BoundArgs) -> None:
        """Calls ``rib_bound``. Waits for no GPU.

        Raises:
            Unavailable: it fails; says what to do.
        """
        code = self._functions.rib_bound(arguments)
        if code == 0:
            return
        text = self._functions.rib_error_text(code).decode()
        if code == _INSUFFICIENT_DRIVER:
            remedy = (
                "the driver is older than the CUDA toolkit that built the kernels: update the "
                "driver, or build them with an older toolkit: "
                "`NVCC=<its nvcc> python -m fastreid_rib build-kernels --kind cuda`"
            )
        elif code in _NO_CODE_FOR_THIS_GPU:
            remedy = (
                "the kernels were not built for this GPU: "
                "run `python -m fastreid_rib build-kernels --kind cuda --arch native`"
            )
        else:
            remedy = "the backend 'torch' does without compiled kernels"
        error = f"CUDA error {code}" if code > 0 else f"error {code}"
        raise Unavailable(f"{self.path} ({self.description}): {error}, {text}; {remedy}")


def load(kind: str) -> Library:
    """The compiled kernels of a kind, loaded once in a process; safe to call from any thread.

    What was not there is looked for again at the next call: it may have been built since. (One that
    was there and could not be used takes a new process: the loader keeps the file it has opened.)

    Raises:
        Unavailable: there is no library, or none that can be used.
    """
    with _loading:
        if kind not in _loaded:
            _loaded[kind] = _find(kind)
        return _loaded[kind]


def cache_folder() -> Path:
    """Where libraries go if the package cannot be written; the folder need not exist.

    It is named after the sources, so that what was built from others is not found there.

    Raises:
        RuntimeError: the user has no home folder.
    """
    return cache.cache_folder(f"kernels-{sources_digest()[:16]}")


@lru_cache(maxsize=None)
def gomp_parallel() -> Optional[int]:
    """Address of ``GOMP_parallel`` in the OpenMP runtime that torch has loaded; None without one.

    The CPU library runs its threads there. An OpenMP runtime of its own would bring a second pool
    of threads, and the two would fight for the cores.
    """
    import torch  # noqa: F401  it is torch that loads the runtime

    function = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
    return ctypes.cast(function, c_void_p).value if function else None


def _is_whole(path: Path) -> bool:
    """Whether an ELF file is as long as its header says; the loader dies of SIGBUS on a shorter."""
    header = path.read_bytes()[:64]
    if len(header) < 64 or header[:4] != b"\x7fELF":
        return False
    (sections,) = struct.unpack_from("<Q", header, 40)  # which linkers write last
    size, count = struct.unpack_from("<HH", header, 58)
    return path.stat().st_size >= sections + size * count


def _find(kind: str) -> Library:
    folders, built, reasons = [PACKAGE_FOLDER], [], []
    with suppress(RuntimeError):
        folders.append(cache_folder())
    for folder in folders:
        path = folder / library_name(kind)
        with suppress(OSError):
            built.append((path.stat().st_mtime, path))
    for _, path in sorted(built, reverse=True):  # the newest first
        try:
            return Library(path)
        except Unavailable as error:
            reasons.append(str(error))
    cause = "; ".join(reasons) or f"the {kind} kernels are not built"
    raise Unavailable(f"{cause}; run `python -m fastreid_rib build-kernels --kind {kind}`")
