"""Every row of README.md is a test that exists, and every test of a fault has a row."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| (.+?) \| .+? \| `(tests/\S+\.py)::(test_\w+)` \|$")
TEST = re.compile(r"^def (test_\w+)", re.M)
GOOD = {  # they hold when nothing is broken
    "test_fastreid_alone_gives_the_same_embeddings",
    "test_the_vector_before_the_neck_is_what_fastreid_alone_gives",
    "test_a_projection_is_what_fastreid_alone_gives",
    "test_parts_stay_with_the_plugin_or_become_a_projection",
}


def test_rows_and_tests_belong_together():
    text = (Path(__file__).parent / "README.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    lines = [line for line in lines if not line.startswith(("| fault |", "| --- |"))]
    rows = [ROW.match(line) for line in lines]
    assert all(rows), [line for line, row in zip(lines, rows) if not row]
    faults = [row[1] for row in rows]
    assert len(set(faults)) == len(faults) > 50, "a fault is listed twice"
    for row in rows:
        assert row[3] in TEST.findall((ROOT / row[2]).read_text()), row[3]
    here = [path for path in Path(__file__).parent.glob("test_*.py") if path != Path(__file__)]
    own = {test for path in here for test in TEST.findall(path.read_text())}
    assert own - {row[3] for row in rows} == GOOD
