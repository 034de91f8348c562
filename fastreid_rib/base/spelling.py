"""A guess at what was meant by a name that does not exist."""

import difflib
from typing import Iterable


def did_you_mean(written: str, known: Iterable[str]) -> str:
    """``" Did you mean 'DCS'?"``, or an empty string if nothing is close; case does not matter."""
    by_case = {name.lower(): name for name in known}
    close = difflib.get_close_matches(str(written).lower(), list(by_case), n=1, cutoff=0.5)
    return f" Did you mean '{by_case[close[0]]}'?" if close else ""
