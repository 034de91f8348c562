"""Files that are written whole or not at all."""

import contextlib
import io
import os
import uuid
from typing import Any, Iterator


@contextlib.contextmanager
def renamed_to(path: str, by_one: bool = False) -> Iterator[str]:
    """Gives the name of a file to write; that gets its real name, in one step, once it is written.

    So nobody ever reads half a file. If writing it fails, what stood under the name is as it was.
    Where only one process at a time writes it (`by_one`) the unfinished file has the same name at
    each attempt, so that what a killed process left is overwritten by the next.
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
    """A file ("wb" or "w") that is kept in memory, and put on the disk under its name at the end.

    An error of the disk in the middle of ``torch.save`` comes back as "unexpected pos", and in
    torch 1.13 aborts the process.

    Raises:
        OSError: it cannot be written; what stood under the name is as it was.
    """
    content: Any = io.BytesIO() if "b" in mode else io.StringIO()
    yield content
    try:
        with renamed_to(path, by_one=True) as partial, open(partial, mode) as file:
            file.write(content.getbuffer() if "b" in mode else content.getvalue())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(
            error.errno,
            f"{error.strerror}. It was not written; an older file of that name is whole. Make "
            "room or make the folder writable, and resume with --resume",
            path,
        ) from error
