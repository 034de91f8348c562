"""The folder for what is compiled on a machine, and whether its code may be loaded.

Environment:
    FASTREID_RIB_CACHE: the folder. Without it, ``fastreid-rib`` in ``$XDG_CACHE_HOME``, or in
        ``~/.cache``.
"""

import os
from pathlib import Path
from typing import Optional


def cache_folder(name: str) -> Path:
    """The absolute path of a folder in the user's cache; it need not exist.

    Its name should change with whatever its contents depend on.

    Raises:
        RuntimeError: neither variable names a cache, and the user has no home folder.
    """
    own = os.environ.get("FASTREID_RIB_CACHE", "")
    if own:
        return Path(os.path.abspath(os.path.expanduser(own))) / name
    base = os.environ.get("XDG_CACHE_HOME", "")  # which counts if it is absolute, says its standard
    root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    return root / "fastreid-rib" / name


def make_folder(folder: Path) -> None:
    """Makes a folder of the cache so that others cannot write to it, whatever the umask."""
    for place in (folder.parent, folder):
        place.mkdir(mode=0o755, parents=True, exist_ok=True)


def why_untrusted(*places: Path) -> Optional[str]:
    """Which of some places belongs to another user, or can be written by others; None: none does.

    To load code runs it: who can write or swap it, or a folder around it, is who is trusted.
    """
    for place in places:
        status = place.stat()
        if status.st_uid not in (0, os.geteuid()):
            return f"{place} belongs to another user; delete it"
        if status.st_mode & 0o022:
            return f"{place} can be written by others; `chmod go-w` it or delete it"
    return None
