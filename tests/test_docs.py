"""The documentation: its examples run, its lines are short, and what it names is there."""

import ast
import re
from pathlib import Path

import pytest

from fastreid_rib.integration import config

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "fastreid_rib"
README = ROOT / "README.md"
PAGES = [README, ROOT / "configs" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)


def name(page):
    return str(page.relative_to(ROOT))


def blocks(page, language):
    return [code for found, code in BLOCK.findall(page.read_text("utf-8")) if found == language]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name)
def test_the_examples_of_a_page_run_one_after_the_other(page):
    namespace = {}
    for code in blocks(page, "python"):
        exec(compile(code, name(page), "exec"), namespace)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "yaml")], ids=name)
def test_the_configs_of_a_page_are_configs(page, make_cfg, tmp_path):
    for text in blocks(page, "yaml"):
        (tmp_path / "example.yml").write_text(text)
        cfg = make_cfg()
        cfg.merge_from_file(str(tmp_path / "example.yml"))
        config.check(cfg)


def test_lines_are_short():
    for page in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]:
        lines = enumerate(page.read_text("utf-8").splitlines(), 1)
        assert [(page, number) for number, line in lines if len(line) > 120] == []
    assert len(README.read_text("utf-8").splitlines()) <= 120  # read in five minutes


def test_what_is_named_is_there():
    """Pages in code and scripts; configs, tools and links in pages."""
    folders = ("fastreid_rib", "tests", "tools", "configs")
    code = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    code = [path for path in code if path.suffix in (".py", ".sh", ".yml", ".cu", ".h")]
    of_fastreid = {"docs/reference/repairs.md", "docs/guide/troubleshooting.md"}  # its own files
    pages = [path for path in (*PAGES, ROOT / "CONTRIBUTING.md") if name(path) not in of_fastreid]
    found = [
        (name(path), named)
        for pattern, paths in (
            (r"\bdocs/[\w/.-]+\.(?:md|svg|png|yml)\b", [*code, README, ROOT / "CONTRIBUTING.md"]),
            (r"\b(?:configs|tools)/[\w/.-]+\w", pages),
            (r"\]\((?!https?:)([^)#]+)\)", [README]),
        )
        for path in paths
        for named in re.findall(pattern, path.read_text("utf-8"))
    ]
    assert len(found) > 60
    assert [pair for pair in found if not (ROOT / pair[1]).exists()] == []


def messages(path):
    """The texts of a source file, with three dots for what is put in, as the questions have it."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.JoinedStr):
            parts = [getattr(part, "value", None) for part in node.values]
            yield "".join(part if isinstance(part, str) else "..." for part in parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield re.sub(r"%(s|d|r|\.\d+f)", "...", node.value)


def says(message, quote):
    """Whether a quotation is a part of a message, or the message with something put in."""
    if quote.strip(". ") in message:
        return True
    fixed = message.split("...")
    if len("".join(fixed)) <= 15 or not all(part in quote for part in fixed):
        return False
    return re.fullmatch(".+".join(map(re.escape, fixed)), quote.rstrip()) is not None


def test_errors_among_the_questions_are_the_plugins_own():
    text = (ROOT / "docs" / "guide" / "troubleshooting.md").read_text("utf-8")
    own = text.split("## Errors and warnings of the plugin")[1].split("\n## ")[0]
    quotes = re.findall(r"^> `(.+)`$", own, re.M)
    known = [message for path in PACKAGE.rglob("*.py") for message in messages(path)]
    assert len(quotes) == own.count("**Cause.**") == own.count("**Remedy.**") > 10
    assert [quote for quote in quotes if not any(says(m, quote) for m in known)] == []
    assert not any(says(message, "a message that nobody writes") for message in known)


def test_the_reference_has_a_page_for_each_room():
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms == {path.stem for path in (ROOT / "docs" / "reference" / "api").glob("*.md")}


LISTS = ["reference/keys.md", "guide/attention.md", "reference/repairs.md"]


@pytest.mark.parametrize("page", LISTS)
def test_a_list_is_what_the_code_says(page, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import write_lists

    path = ROOT / "docs" / page
    assert write_lists.written(path) == path.read_text("utf-8"), "run tools/write_lists.py"


@pytest.mark.today_only
def test_equations_are_understood():
    """What latex2mathml does not know it leaves in the page as it was written."""
    from latex2mathml.converter import convert

    texts = [BLOCK.sub("", page.read_text("utf-8")) for page in PAGES]
    formulas = [found for text in texts for found in re.findall(r"\$\$(.*?)\$\$", text, re.S)]
    for text in texts:
        inline = re.sub(r"\$\$.*?\$\$|`[^`\n]*`", "", text, flags=re.S)
        formulas += re.findall(r"\$([^$]+)\$", inline)
    assert len(formulas) > 50
    assert [formula for formula in formulas if "\\" in convert(formula)] == []
