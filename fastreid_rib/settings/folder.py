"""The settings of the data set of one's own pictures."""

from dataclasses import dataclass

from fastreid_rib.settings.declaration import Settings, between, setting, text, yes_or_no


@dataclass(frozen=True)
class FolderSettings(Settings):
    """The settings of the data set FolderReID, see :mod:`fastreid_rib.data.folder`."""

    path: str = setting(
        "",
        text("a folder or a file"),
        "The folder of the pictures, or a CSV file with the columns path, identity, "
        "camera, split. A relative path counts from the data root (FASTREID_DATASETS).",
    )
    pattern: str = setting(
        "",
        text("a regular expression, or ''"),
        "A regular expression with the named groups identity, camera, split, searched in the path "
        'of each picture below `path`, for another layout of folders. `""`: those of the page on '
        "data.",
    )
    cameras: bool = setting(
        True,
        yes_or_no,
        "Whether cameras count in the evaluation. `False`: every other picture of an "
        "identity is a match, as it is where no camera is known.",
    )
    test_share: float = setting(
        0.5,
        between(0, 1),
        "Share of the identities that test where nothing says which do.",
    )
