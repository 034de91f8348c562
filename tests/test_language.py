"""Words that were given up do not come back: plain English, the field's words.

Read are README, CONTRIBUTING, the documentation but its notebook, configs, examples, the package.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GIVEN_UP = {
    r"pass(es|ed) over|(to|would|they|optimizers) pass over": "ignores, leaves out",
    r"(go|goes|going|went) on": "resumes, continues",
    r"(take|takes|taken|took|takes .{1,9}) off": "subtracts, removes",
    r"besides": "also, except",
    r"behind": "after",
    r"in front of": "before",
    r"but for": "except",
    r"worth less than nothing": "say what wins",
    r"never touche[sd]|never touch": "is not changed",
    r"(is|are|be|was|were) told(?! apart)": "is reported",
    r"counts? as one of (its|their) own": "is treated as a separate camera",
    r"(above|below) itself": "RIB raised, lowered",
    r"the uninterrupted one": "equals an uninterrupted one",
    r"as it was begun": "older",
    r"(every|each|no|its) room|rooms": "folder",
    r"for want of": "without",
    r"nor (do|does|is|are)": "two sentences",
}
READ = ["README.md", "CONTRIBUTING.md", "docs/**/*.md", "configs/**/*", "examples/*.py"]
FILES = sorted(
    path
    for pattern in (*READ, "fastreid_rib/**/*.py")
    for path in ROOT.glob(pattern)
    if path.suffix in (".md", ".yml", ".py") and "notebook" not in path.parts
)


def given_up(text):
    """(line, expression, what to write) of those in a text that were given up."""
    return [
        (number, found.group(), instead)
        for number, line in enumerate(text.splitlines(), 1)
        for expression, instead in GIVEN_UP.items()
        for found in re.finditer(rf"\b(?:{expression})\b", line, re.I)
    ]


@pytest.mark.parametrize(
    "part", ["README.md", "CONTRIBUTING.md", "docs", "configs", "examples", "fastreid_rib"]
)
def test_what_people_read(part):
    paths = [path for path in FILES if path.relative_to(ROOT).parts[0] == part]
    wrong = [(path, *word) for path in paths for word in given_up(path.read_text("utf-8"))]
    assert paths and wrong == []


def test_they_are_found_where_they_mean_what_they_say():
    assert [word for _, word, _ in given_up("it goes on,\nbesides")] == ["goes on", "besides"]
    assert given_up("identities are told apart; one pass over the rows beside it") == []
