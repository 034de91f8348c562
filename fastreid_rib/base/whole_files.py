"""Files that are written whole or not at all."""

import contextlib
import os
import uuid
from typing import IO, Any, Iterator, Optional


@contextlib.contextmanager
def renamed_to(path: str, by_one: bool = False) -> Iterator[str]:
    """Gives the name of a file to write; that gets its real name, in one step, once it is written.

    So nobody ever reads half a file. If writing it fails, what stood under the name is as it was.

    Args:
        path: the real name.
        by_one: whether only one process at a time writes it. Its unfinished file is then called
            the same at each attempt, so that what a killed process left is overwritten by the next.
    """
    partial = f"{path}.partial" if by_one else f"{path}.{uuid.uuid4().hex}.partial"
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(partial)
        raise


@contextlib.contextmanager
def written_whole(path: str, mode: str = "wb") -> Iterator[Any]:
    """Opens a file that appears under its name once it is complete and on the disk.

    Args:
        path: its name. Until then it has the same with ``.partial`` added, one for all
            attempts, so that what a killed process left is overwritten by the next.
        mode: "wb" or "w".

    Raises:
        OSError: it cannot be written; what stood under the name is as it was.
    """
    try:
        with renamed_to(path, by_one=True) as partial, open(partial, mode) as opened:
            file = _KeepsItsError(opened)
            yield file  # as much of a file as torch.save and FastReID use
            file.finish()
        _sync_folder(os.path.dirname(path) or ".")
    except OSError as error:
        raise OSError(
            error.errno,
            f"{error.strerror}. It was not written; an older file of that name is whole. Make "
            "room or make the folder writable, and resume with --resume",
            path,
        ) from error


class _KeepsItsError:
    """A file whose first error waits until everything is written.

    Raised into the middle of ``torch.save`` it comes back as "unexpected pos", and torch 1.13
    aborts the process.
    """

    def __init__(self, file: IO[Any]) -> None:
        self._file = file
        self._error: Optional[OSError] = None

    def write(self, data: Any) -> int:
        if self._error is None:
            try:
                return self._file.write(data)
            except OSError as error:
                self._error = error
        return len(data)

    def flush(self) -> None:
        """Left to `finish`, which is the only one that has to know."""

    def finish(self) -> None:
        """Puts everything on the disk, or raises what went wrong."""
        if self._error is None:
            self._file.flush()
            os.fsync(self._file.fileno())
            return
        with contextlib.suppress(OSError):
            self._file.close()  # it tries once more to write what it holds
        raise self._error


def _sync_folder(folder: str) -> None:
    """Puts a rename on the disk; file systems that cannot are left alone."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
