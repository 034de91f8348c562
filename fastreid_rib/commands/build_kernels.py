"""The command ``build-kernels``: compile the kernels on the machine that will run them."""

import os
import re
from pathlib import Path
from typing import List, Optional

import torch

from fastreid_rib.base import cache
from fastreid_rib.ops import build, native


def main(kind: Optional[str] = None, arch: Optional[str] = None, into: Optional[str] = None) -> int:
    """Builds libraries and says what became of each; 1 if one that was asked for is not there."""
    folder = _destination(into)
    kinds = build.KINDS if kind in (None, "all") else [str(kind)]
    results = [_build(one, arch, folder, asked_for=kind is not None) for one in kinds]
    return 1 if "failed" in results or "built" not in results else 0


def _build(kind: str, arch: Optional[str], folder: Path, asked_for: bool) -> str:
    try:
        path = build.build(kind, folder, _architectures(arch) if kind == "cuda" else None)
        library = native.Library(path)
    except build.NoCompilerError as error:
        result = "failed" if asked_for else "left out"
        print(f"{kind}: {result}: {error}")
        return result
    except (build.BuildError, native.Unavailable, OSError) as error:
        print(f"{kind}: failed: {error}")
        return "failed"
    print(f"{kind}: built: {library.path} ({library.description})")
    return "built"


def _architectures(arch: Optional[str]) -> Optional[List[int]]:
    if arch in (None, "all"):
        return None
    if arch == "native":
        gpus = map(torch.cuda.get_device_capability, range(torch.cuda.device_count()))
        found = [10 * major + minor for major, minor in gpus]
        if not found:
            raise build.BuildError("torch sees no GPU here; name the architectures, as in 80,90")
        return found
    if not re.fullmatch(r"\d+(,\d+)*", str(arch)):
        raise build.BuildError(f"--arch takes native, all, or numbers as in 75,80; got {arch!r}")
    return [int(number) for number in str(arch).split(",")]


def _destination(into: Optional[str]) -> Path:
    package = native.PACKAGE_FOLDER
    writable = os.access(str(package if package.exists() else package.parent), os.W_OK)
    if into == "package" and not writable:
        raise PermissionError(f"{package} cannot be written; --into cache can")
    if into != "cache" and writable:
        package.mkdir(exist_ok=True)
        return package
    folder = native.cache_folder()
    cache.make_folder(folder)
    return folder
