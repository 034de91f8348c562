"""Every row of README.md is a test that exists, and every test of a fault has a row."""

import ast
import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROW = re.compile(
    r"^\| (?P<fault>.+?) \| (?P<happens>.+?) \| `(?P<file>tests/\S+\.py)::(?P<test>\w+)` \|$"
)


def rows():
    lines = (Path(__file__).parent / "README.md").read_text().splitlines()
    table = [line for line in lines if line.startswith("| ")]
    return [line for line in table if not line.startswith(("| fault |", "| --- |"))]


def functions_of(path):
    tree = ast.parse(path.read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_each_row_has_a_fault_an_outcome_and_a_test_that_exists():
    for line in rows():
        row = ROW.match(line)
        assert row, line
        assert row["test"].startswith("test_"), line
        assert row["test"] in functions_of(ROOT / row["file"]), line


def test_a_fault_is_listed_once():
    found = [ROW.match(line) for line in rows()]
    assert found
    assert max(Counter(row["fault"] for row in found).values()) == 1


def test_no_test_of_a_fault_is_forgotten():
    listed = {(row["file"], row["test"]) for row in map(ROW.match, rows())}
    own = Path("tests/faults")
    here = {
        (str(own / path.name), name)
        for path in (ROOT / own).glob("test_*.py")
        for name in functions_of(path)
        if name.startswith("test_") and path.name != Path(__file__).name
    }
    # What holds when nothing is broken.
    good = {
        ("tests/faults/test_export.py", "test_fastreid_alone_gives_the_same_embeddings"),
        ("tests/faults/test_export.py", "test_rib_alone_leaves_no_loss"),
        ("tests/faults/test_ranks_disagree.py", "test_alone_nothing_is_compared"),
        ("tests/faults/test_ranks_disagree.py", "test_another_version_and_three_ranks_named"),
    }
    assert here - listed == good
