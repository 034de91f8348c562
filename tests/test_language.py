"""Words that were given up do not come back: plain English, the field's words.

Read are README, CONTRIBUTING, the documentation but its notebook, configs, examples and the
package: all of a text file, and of Python the comments, docstrings and other strings.
"""

import io
import re
import tokenize
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


def words(path):
    """{line: what people read of it}; of code that is comments and strings."""
    text = path.read_text("utf-8")
    if path.suffix != ".py":
        return dict(enumerate(text.splitlines(), 1))
    kinds = (tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1))
    found = {}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in kinds:
            for line, part in enumerate(token.string.splitlines(), token.start[0]):
                found[line] = f"{found.get(line, '')} {part}"
    return found


def given_up(text):
    """Expressions of a text that were given up, each with what to write."""
    return [
        (found.group(), instead)
        for expression, instead in GIVEN_UP.items()
        for found in re.finditer(rf"\b(?:{expression})\b", text, re.I)
    ]


@pytest.mark.parametrize("folder", ["README.md", "CONTRIBUTING.md", "docs", "configs", "examples"])
def test_what_people_read(folder):
    check(path for path in FILES if path.relative_to(ROOT).parts[0] == folder)


def test_what_the_package_says():
    check(path for path in FILES if path.suffix == ".py")


def check(paths):
    paths = list(paths)
    assert paths
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: '{found}', write: {instead}"
        for path in paths
        for line, text in words(path).items()
        for found, instead in given_up(text)
    ]
    assert wrong == [], "\n".join(wrong)


def test_they_are_found_where_they_mean_what_they_say():
    assert given_up("it goes on, besides") == [
        ("goes on", "resumes, continues"),
        ("besides", "also, except"),
    ]
    assert given_up("identities are told apart; one pass over the rows beside it") == []
