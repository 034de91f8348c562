"""The settings of FolderReID: how they come from a config to a data set that is made without."""

from typing import Any, Callable

from fastreid_rib.base.patching import wrap
from fastreid_rib.settings.declaration import from_keys
from fastreid_rib.settings.folder import FolderSettings

_configured = FolderSettings()


def configure(cfg: Any) -> None:
    """Takes the settings of a config: FastReID makes its data sets without one.

    Args:
        cfg: a FastReID config; one without the keys changes nothing.

    Raises:
        ValueError: a key out of its range.
    """
    global _configured
    if "FOLDER" in cfg.get("DATASETS", {}):
        _configured = from_keys(FolderSettings, cfg.DATASETS.FOLDER, "DATASETS.FOLDER")


def configured() -> FolderSettings:
    """The settings of the config that came last; the defaults before there was one."""
    return _configured


def extend_loaders(build: Any) -> None:
    """Lets FastReID's loaders say which config they are built from.

    Args:
        build: the module ``fastreid.data.build``.
    """

    def built(stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        cfg = args[0] if args else kwargs.get("cfg")
        if hasattr(cfg, "DATASETS"):
            configure(cfg)
        return stock(*args, **kwargs)

    wrap(build, "build_reid_train_loader", built)
    wrap(build, "build_reid_test_loader", built)
