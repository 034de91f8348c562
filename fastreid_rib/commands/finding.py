"""A line of the report of ``doctor``."""

from typing import NamedTuple


class Finding(NamedTuple):
    """One line of the report."""

    status: str
    """``ok``, ``note`` (works, but you may want to know) or ``FAIL`` (training cannot work)."""
    subject: str
    text: str
