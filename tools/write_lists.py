"""Writes the lists in the documentation that are made from the code.

    python tools/write_lists.py

Between ``<!-- keys -->`` and ``<!-- end of keys -->`` stands every key with default, range and
meaning, from the declarations in ``fastreid_rib/settings`` and in ``integration/keys.py``.
"""

import re
from pathlib import Path

from fastreid_rib.integration import key_list

PAGE = Path(__file__).resolve().parent.parent / "docs" / "guide" / "configuration.md"
LIST = re.compile(r"(?<=<!-- keys -->\n).*?(?=<!-- end of keys -->)", re.S)


def written(text):
    """The text of the page with its list made anew."""
    made, count = LIST.subn(lambda _: f"\n{key_list.markdown()}\n\n", text)
    if count != 1:
        raise ValueError(f"{PAGE.name} must have one list of keys, but has {count}")
    return made


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
    print(f"{PAGE.name} written")
