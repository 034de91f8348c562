"""The keys DATASETS.FOLDER: the settings of FolderReID (`fastreid_rib.data.folder`)."""

from typing import Any


def add_folder_keys(_C: Any) -> None:  # noqa: N803  FastReID's own name for it
    """Adds them to FastReID's default config.

    Args:
        _C: the config node of ``fastreid.config.defaults``.
    """
    _C.DATASETS.FOLDER = type(_C)()
    # The folder of the pictures, or a CSV file with the columns path, identity, camera, split. A
    # relative path counts from the data root (FASTREID_DATASETS).
    _C.DATASETS.FOLDER.PATH = ""
    # A regular expression with the named groups identity, camera, split, searched in the path of
    # each picture below PATH. "" = the layouts of docs/data.md.
    _C.DATASETS.FOLDER.PATTERN = ""
    # Whether cameras count in the evaluation. False = every other picture of an identity is a
    # match, as it is where no camera is known.
    _C.DATASETS.FOLDER.CAMERAS = True
    # Share of the identities that test where nothing says which do, 0..1.
    _C.DATASETS.FOLDER.TEST_SHARE = 0.5
