"""A guess at what was meant by a name that does not exist."""

import difflib
from typing import Collection, Iterable, Mapping, Optional


def did_you_mean(written: str, known: Iterable[str]) -> str:
    """``" Did you mean 'DCS'?"``, or an empty string if nothing is close; case does not matter."""
    by_case = {name.lower(): name for name in known}
    close = difflib.get_close_matches(str(written).lower(), list(by_case), n=1, cutoff=0.5)
    return f" Did you mean '{by_case[close[0]]}'?" if close else ""


def check_settings(
    owner: str,
    given: Iterable[str],
    known: Collection[str],
    gone: Optional[Mapping[str, str]] = None,
) -> None:
    """Checks the names of keyword arguments that are settings.

    Args:
        owner: what takes them, for the message.
        given: the names that came.
        known: those that there are.
        gone: those of earlier versions, and what to write instead.

    Raises:
        TypeError: one of them is not a setting, with a guess at what was meant.
    """
    for name in given:
        if gone and name in gone:
            raise TypeError(f"{owner} no longer has the setting '{name}'. {gone[name]}")
        if name not in known:
            raise TypeError(
                f"{owner} has no setting '{name}'.{did_you_mean(name, known)} It has "
                f"{', '.join(known) or 'none'}."
            )
