"""Writes the lists in the documentation that are made from the code.

    python tools/write_lists.py

Between ``<!-- NAME -->`` and ``<!-- end of NAME -->`` stands, in docs:

- reference/keys.md, ``keys``: every key with default, range and meaning, from the declarations in
  ``fastreid_rib/settings``;
- guide/attention.md, ``attentions``: every attention with the first sentence of its class, from
  the names in ``attention/__init__.py``, and a link to its section of understand/attention.md;
- reference/repairs.md, ``repairs``: every repair with its defect, from its decorator in
  ``compat/``.
"""

import inspect
import re
import textwrap
from pathlib import Path

from fastreid_rib.attention import ATTENTIONS
from fastreid_rib.compat import REPAIRS
from fastreid_rib.integration.config import NODES
from fastreid_rib.settings.declaration import declared, keys_of

DOCS = Path(__file__).resolve().parent.parent / "docs"


def list_of_keys():
    """A list of all keys in Markdown: name, default, range, meaning, symbol."""
    return "\n".join(entry for path in NODES for entry in _keys_of(path))


def list_of_attentions():
    """A list of all attentions in Markdown: name, what it is, its section."""
    return "\n".join(_entry(_attention(name)) for name in ATTENTIONS)


def list_of_repairs():
    """A list of all repairs in Markdown: name, where the defect is, defect, what comes instead."""
    return "\n".join(
        _entry(
            f"- **`{of.name}`**, {of.where}{', essential' if of.essential else ''}: {of.defect}. "
            f"Instead: {of.instead}"
        )
        for of in REPAIRS
    )


LISTS = {
    DOCS / "reference" / "keys.md": ("keys", list_of_keys),
    DOCS / "guide" / "attention.md": ("attentions", list_of_attentions),
    DOCS / "reference" / "repairs.md": ("repairs", list_of_repairs),
}
"""For each page, the name of its list and what makes it."""


def written(page):
    """The text of a page with its list made anew."""
    name, make = LISTS[page]
    found = re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- end of {name} -->)", re.S)
    made, count = found.subn(lambda _: f"\n{make()}\n\n", page.read_text("utf-8"))
    if count != 1:
        raise ValueError(f"{page.name} must have one list of {name}, but has {count}")
    return made


def _keys_of(path):
    known = declared(NODES[path])
    for key, default in keys_of(NODES[path]).items():
        of = known[key.lower()]
        name = f"{path}.{key}" if path else key
        value = f'"{default}"' if isinstance(default, str) else repr(default).replace("'", '"')
        symbol = f", symbol {of.symbol}" if of.symbol else ""
        meaning = of.meaning
        for other in known:  # settings of the same node are keys here
            meaning = meaning.replace(f"`{other}`", f"`{other.upper()}`")
        yield _entry(f"- **`{name}`**, default `{value}`, {of.range.text}{symbol}. {meaning}")


def _attention(name):
    first = inspect.getdoc(ATTENTIONS[name]).split("\n\n")[0].replace("\n", " ")
    sections = (DOCS / "understand" / "attention.md").read_text("utf-8")
    more = (
        f" [More](../understand/attention.md#{name.lower()})."
        if f"\n## {name}\n" in sections
        else ""
    )
    return f'- **`"{name}"`**: {first.replace("``", "`")}{more}'


def _entry(text):
    return textwrap.fill(
        text, 110, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


if __name__ == "__main__":
    for page in LISTS:
        page.write_text(written(page), "utf-8")
        print(f"{page.name} written")
