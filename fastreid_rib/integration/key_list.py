"""The list of keys for the documentation, from their declarations."""

import textwrap
from typing import Iterable

from fastreid_rib.integration.keys import NODES, keys_of
from fastreid_rib.settings.declaration import declared


def markdown() -> str:
    """A list of all keys in Markdown: name, default, range, meaning, symbol."""
    return "\n".join(entry for path in NODES for entry in _entries(path))


def _entries(path: str) -> Iterable[str]:
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
