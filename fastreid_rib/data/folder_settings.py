"""The settings of FolderReID: how they come from a config to a data set that is made without."""

from typing import Any, Callable, NamedTuple

from fastreid_rib.base.patching import wrap


class FolderSettings(NamedTuple):
    """The keys DATASETS.FOLDER.*, by their names in small letters.

    Attributes:
        path: a folder, or a CSV file; where it is not absolute it counts from the data root.
        pattern: see `own_tree.read_tree`; "" takes the layouts that are known there.
        cameras: whether cameras count. If not, or where none is known, every other picture of an
            identity is a right answer.
        test_share: share of the identities that test, 0..1, where nothing says which do.
    """

    path: str = ""
    pattern: str = ""
    cameras: bool = True
    test_share: float = 0.5


_configured = FolderSettings()


def configure(cfg: Any) -> None:
    """Takes the settings of a config: FastReID makes its data sets without one.

    Args:
        cfg: a FastReID config; one without the keys changes nothing.
    """
    global _configured
    if "FOLDER" in cfg.get("DATASETS", {}):
        _configured = FolderSettings(**{k.lower(): v for k, v in cfg.DATASETS.FOLDER.items()})


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

    def train(stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return built(stock, *args, **kwargs)

    def test(stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return built(stock, *args, **kwargs)

    wrap(build, "build_reid_train_loader", train)
    wrap(build, "build_reid_test_loader", test)
