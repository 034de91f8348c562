"""The settings of a run beside the network and its loss: seed, own pictures, evaluation."""

from dataclasses import dataclass

from fastreid_rib.settings.declaration import (
    Range,
    Settings,
    between,
    one_of,
    setting,
    text,
    yes_or_no,
)

# NumPy takes 32 bits, and every rank adds its number.
_MOST_SEED = 2**32 - 2**16 - 1


@dataclass(frozen=True)
class RunKeys(Settings):
    """Keys at the top of the config."""

    seed: int = setting(
        -1,
        Range(f"-1 (no seed) or 0 .. {_MOST_SEED}", lambda value: -1 <= value <= _MOST_SEED),
        "Seed of every random number of a run: Python, NumPy, torch, samplers, data-loader "
        "workers, on every rank, and of K-means, so that a run that was killed and resumed equals "
        "an uninterrupted one. -1 leaves FastReID as it is: a new seed for every run.",
    )


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


@dataclass(frozen=True)
class EvaluationKeys(Settings):
    """Keys beside FastReID's own of the evaluation."""

    occluded: str = setting(
        "",
        text("the name of a text file, or '' (none)"),
        "A text file with the file name of one occluded query a line: occluded and free queries "
        'get a row each in the evaluation. `""`: where the data set knows it (SyntheticReID), or '
        "has a property `occluded_queries`.",
    )
    neck_feat: str = setting(
        "after",
        one_of("after", "before"),
        "What a trained network gives for an image, in the evaluation, the demo and exports: the "
        'vector after the neck (BNNeck), as FastReID does, or the one before it, `"before"`, which '
        "RIB and the triplet loss train. It works without RIB, too. It changes nothing in the "
        "training.",
    )
