"""One training in an output folder at a time, and a folder that can be written.

Two would overwrite each other's checkpoints and `last_checkpoint`, and mix their logs.
"""

import contextlib
import logging
import os
import socket
from typing import IO, Dict

logger = logging.getLogger(__name__)

LOCK_NAME = ".training"
"""The file in the output folder that a training holds; it stays there, without meaning, after."""

# Kept open: the lock is the process's own and ends with it, however it ends.
_held: Dict[str, IO[str]] = {}


class FolderInUseError(RuntimeError):
    """Another training is writing into the output folder."""


def claim(folder: str) -> None:
    """Makes the folder, and holds it for this process until it ends.

    A lock of the kernel on a file: nothing is left over from a process that was killed, and workers
    of data loaders do not inherit it. A URL is left alone.

    Raises:
        FolderInUseError: another process holds it; with its number and machine.
        OSError: the folder cannot be made or written.
    """
    if not folder or "://" in folder:
        return
    key = os.path.realpath(folder)
    if key in _held:  # a second training of the same process, after the first
        return
    path = os.path.join(folder, LOCK_NAME)
    try:
        os.makedirs(folder, exist_ok=True)
        file = open(path, "a+")  # noqa: SIM115  closing it would give the lock away
    except OSError as error:
        raise OSError(
            error.errno,
            f"{error.strerror}. OUTPUT_DIR {folder} cannot be written; write another OUTPUT_DIR",
            path,
        ) from error
    if not _lock(file):
        file.seek(0)
        holder = file.read() or "an unknown process"
        file.close()
        raise FolderInUseError(
            f"OUTPUT_DIR {folder} belongs to a training that is running ({holder}). Two would "
            "overwrite each other's checkpoints: write another OUTPUT_DIR, or end that one."
        )
    _held[key] = file
    with contextlib.suppress(OSError):  # a full disk shows at the first checkpoint
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()


def _lock(file: IO[str]) -> bool:
    """Whether this process holds the lock now. True as well where there are no locks."""
    try:
        import fcntl  # not on Windows
    except ImportError:
        return True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        logger.warning("OUTPUT_DIR cannot be locked against a second training: %s", error)
    return True
