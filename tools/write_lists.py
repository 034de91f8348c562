"""Writes the lists in the documentation that are made from the code.

    python tools/write_lists.py

Between ``<!-- keys -->`` and ``<!-- end of keys -->`` stands every key with default, range and
meaning, from the declarations in ``fastreid_rib/settings`` and in ``integration/keys.py``.
"""

import re
import textwrap
from pathlib import Path

from fastreid_rib.integration.keys import NODES, keys_of
from fastreid_rib.settings.declaration import declared

PAGE = Path(__file__).resolve().parent.parent / "docs" / "guide" / "configuration.md"
LIST = re.compile(r"(?<=<!-- keys -->\n).*?(?=<!-- end of keys -->)", re.S)


def markdown():
    """A list of all keys in Markdown: name, default, range, meaning, symbol."""
    return "\n".join(entry for path in NODES for entry in _entries(path))


def _entries(path):
    known = declared(NODES[path])
    for key, default in keys_of(NODES[path]).items():
        of = known[key.lower()]
        name = f"{path}.{key}" if path else key
        value = f'"{default}"' if isinstance(default, str) else repr(default).replace("'", '"')
        symbol = f", symbol {of.symbol}" if of.symbol else ""
        meaning = of.meaning
        for other in known:  # settings of the same node are keys here
            meaning = meaning.replace(f"`{other}`", f"`{other.upper()}`")
        text = f"- **`{name}`**, default `{value}`, {of.range.text}{symbol}. {meaning}"
        yield textwrap.fill(
            text, 110, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )


def written(text):
    """The text of the page with its list made anew."""
    made, count = LIST.subn(lambda _: f"\n{markdown()}\n\n", text)
    if count != 1:
        raise ValueError(f"{PAGE.name} must have one list of keys, but has {count}")
    return made


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
    print(f"{PAGE.name} written")
