"""What the README says of the keys is what the code has."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_table_of_keys_is_complete_and_true(make_cfg):
    rows = re.findall(r"^\| `([A-Z._]+)` \| `([^`]*)` \|", (ROOT / "README.md").read_text(), re.M)
    documented = {key: ast.literal_eval(default) for key, default in rows}
    cfg = make_cfg(base={})
    expected = {f"MODEL.LOSSES.RIB.{key}": value for key, value in cfg.MODEL.LOSSES.RIB.items()}
    expected.update((f"MODEL.ATTENTION.{key}", value) for key, value in cfg.MODEL.ATTENTION.items())
    expected.update((f"DATASETS.FOLDER.{key}", v) for key, v in cfg.DATASETS.FOLDER.items())
    expected.update({"TEST.OCCLUDED": cfg.TEST.OCCLUDED, "SEED": cfg.SEED})
    assert documented == expected


def test_every_file_that_the_readme_names_is_there():
    text = (ROOT / "README.md").read_text()
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    commands = re.findall(r"(tools/[\w.]+)", text)
    assert links and commands
    missing = [name for name in links + commands if not (ROOT / name).exists()]
    assert missing == []
