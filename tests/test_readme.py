"""What the README names is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_file_that_the_readme_names_is_there():
    text = (ROOT / "README.md").read_text()
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    commands = re.findall(r"(tools/[\w.]+)", text)
    assert links and commands
    missing = [name for name in links + commands if not (ROOT / name).exists()]
    assert missing == []


def test_it_can_be_read_in_five_minutes():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120
