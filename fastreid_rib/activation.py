"""The import hook that brings RIB into an unmodified FastReID.

FastReID has no plug-in mechanism, and its ``train_net.py`` imports nothing of ours. The wheel
therefore installs a ``.pth`` file that calls :func:`arm` at interpreter start. Nothing happens
until a module of FastReID, or of a project beside it, is loaded; then the repairs of
:mod:`fastreid_rib.compat` for that module act around its execution, and the registration for it, if
any, right after.

Only ``sys``, ``os`` and the switches (:mod:`fastreid_rib.base`: ``FASTREID_RIB_DISABLE``) may be
imported here: every interpreter start pays for this file.
"""

from __future__ import annotations

import os
import sys

from fastreid_rib.base import disabled

TYPE_CHECKING = False  # typing takes longer to import than this whole module
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

REGISTRATIONS = {
    # The FastReID module, and what of ours runs once it is loaded: functions that are called with
    # it, or modules whose import is enough. All without the package's own name.
    "fastreid.config.config": ("integration.config:extend_config",),
    "fastreid.config.defaults": ("integration.config:add_keys",),
    "fastreid.data.build": ("data.folder:extend_loaders",),
    "fastreid.data.common": ("integration.run.seeds:extend_dataset",),
    "fastreid.data.datasets": ("data.benchmarks", "data.folder", "data.synthetic"),
    "fastreid.data.data_utils": ("integration.run.seeds:extend_data_loader",),
    "fastreid.engine.defaults": (
        "integration.attention.part_head:extend_trainer",
        "integration.run.start:extend_engine",
        "integration.search.supernet:extend_trainer",
    ),
    "fastreid.engine.train_loop": (
        "integration.run.seeds:extend_trainer",
        "integration.search.supernet:extend_amp",
    ),
    "fastreid.modeling.backbones": ("integration.search.backbone",),
    "fastreid.modeling.backbones.build": ("integration.building:extend_backbones",),
    "fastreid.modeling.heads": (
        "integration.building:name_heads",
        "integration.attention.part_head",
    ),
    "fastreid.modeling.heads.build": ("integration.building:extend_heads",),
    "fastreid.modeling.meta_arch.build": ("integration.building:extend_registry",),
    "fastreid.solver.build": (
        "integration.attention.insertion:extend_optimizer",
        "integration.search.supernet:extend_optimizer",
    ),
    "fastreid.utils.checkpoint": ("integration.run.checkpoints:extend_checkpointer",),
}

ROOTS = frozenset(
    ("fastreid", "fastretri", "partialreid", "fastattr", "fastface", "fastclas", "predictor")
)
"""The packages that concern us: FastReID's, its projects' and the module of its demo."""


def arm() -> None:
    """Puts the hook in place, once; what FastReID has already loaded is registered at once."""
    if "all" in disabled() or any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _Finder())
    if "fastreid" in sys.modules:
        from fastreid_rib import compat

        compat.repair_loaded()
        for name in REGISTRATIONS:
            if name in sys.modules:
                _register(sys.modules[name])


def _concerns(name: str, origin: str | None) -> bool:
    """Whether a module that is about to be loaded, from a file, has repairs or registrations."""
    if name.partition(".")[0] == "predictor" and not _is_demo(origin):
        return False
    from fastreid_rib import compat

    return name in REGISTRATIONS or any(name in repair.modules for repair in compat.REPAIRS)


def _is_demo(origin: str | None) -> bool:
    """Whether a file is FastReID's demo/predictor.py, or a copy: many projects have a predictor."""
    if not origin or not os.path.isfile(origin):
        return False
    with open(origin, encoding="utf-8", errors="replace") as file:
        source = file.read()
    return "class FeatureExtractionDemo" in source and "from fastreid." in source


class _Finder:
    """Finds FastReID's modules as the other finders do, and wraps the loaders that concern us."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname.partition(".")[0] not in ROOTS:
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if hasattr(spec.loader, "exec_module") and _concerns(fullname, spec.origin):
                    spec.loader = _Loader(spec.loader)  # type: ignore[assignment]
                return spec
        return None


class _Loader:
    """Executes one module of FastReID between its repairs, then steps out of the way."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: Any) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        from fastreid_rib import compat

        # Readers of __spec__ (pickle, inspect, importlib.resources) want the real loader.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        with compat.repairing(module.__name__):
            self._loader.exec_module(module)
        if module.__name__ in REGISTRATIONS:
            _register(module)


def _register(module: ModuleType) -> None:
    if "register" in disabled():
        return
    from importlib import import_module

    for place in REGISTRATIONS[module.__name__]:
        home, _, function = place.partition(":")
        ours = import_module(f"fastreid_rib.{home}")
        if function:
            getattr(ours, function)(module)
