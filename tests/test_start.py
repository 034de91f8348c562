"""Each command of the README and of the pages under Start is run by a test.

The two walks, own pictures and Market-1501, run here as they stand on their page, with a small
network and drawn pictures. The other commands have a test elsewhere.
"""

import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from small_run import SETTINGS

from fastreid_rib.__main__ import main
from fastreid_rib.data.synthetic_folder import GALLERY, QUERY, TRAIN, SyntheticSpec, generate

ROOT = Path(__file__).parent.parent
START = ROOT / "docs" / "start"
BASH = re.compile(r"^```bash\n(.*?)^```$", re.M | re.S)
MARKET = "Market-1501-v15.09.15"
SMALL = {key: value for key, value in SETTINGS.items() if not key.startswith("DATASETS")}
SMALL.update(dict.fromkeys(("INPUT.SIZE_TRAIN", "INPUT.SIZE_TEST"), [64, 32]))
SMALL.update(dict.fromkeys(("SOLVER.MAX_EPOCH", "SOLVER.CHECKPOINT_PERIOD", "TEST.EVAL_PERIOD"), 3))
SMALL["SOLVER.AMP.ENABLED"] = False
TESTED_ELSEWHERE = {
    "bash tools/quickstart.sh": "test_quickstart.py::test_each_config_gets_its_rows",
    "bash tools/run_tests.sh": "test_workflows.py::test_a_change_runs_what_it_can_break",
    "python -m fastreid_rib doctor": "commands/test_doctor.py::test_a_good_machine_is_ready",
    "python -m fastreid_rib build-kernels": "ops/test_build_kernels.py::test_it_builds_what",
    "python examples/plain_pytorch.py": "test_examples.py::test_it_trains_with_rib_and_learns",
    "python examples/vit_with_bnneck.py --rib after": "test_examples.py::test_it_trains_with_rib",
    "pip install .": "test_packaging.py::test_the_hook_is_armed_at_start",
    "pip install .[fastreid]": "test_packaging.py::test_it_brings_what_fastreid_does_not_declare",
}


def commands(*pages):
    """The commands of some pages, in their order, as lists of words without comments."""
    found = []
    for page in pages:
        for block in BASH.findall(page.read_text("utf-8")):
            lines = block.replace("\\\n", " ").splitlines()
            found += [part for line in lines for part in line.split(" && ")]
    words = [shlex.split(command, comments=True) for command in found]
    return [command for command in words if command and command[0] != "export"]


WALKS = {page: commands(START / page) for page in ("own-pictures.md", "market1501.md")}


def test_each_command_is_one_that_a_test_runs():
    pages = [ROOT / "README.md", *sorted(START.glob("*.md"))]
    asked = {" ".join(command) for command in commands(*pages)}
    run = {" ".join(command) for walk in WALKS.values() for command in walk}
    # make_env.sh installs these packages in these versions, and what they need
    installed = {command for command in asked if re.match(r"pip install .*\w==\d", command)}
    text = (ROOT / "tools" / "make_env.sh").read_text("utf-8")
    versions = re.findall(r"[\w-]+==[\d.]+", " ".join(installed))
    assert len(versions) == 3 and [name for name in versions if name not in text] == []
    assert asked - run - installed == set(TESTED_ELSEWHERE)
    for test in TESTED_ELSEWHERE.values():
        path, name = test.split("::")
        assert f"def {name}" in (ROOT / "tests" / path).read_text("utf-8"), test


@pytest.fixture
def walk(monkeypatch, tmp_path, capsys):
    """Runs the commands of a page in a folder with ``configs`` and pictures; what each printed."""
    from fastreid.data import build

    data = tmp_path / "datasets"
    spec = SyntheticSpec(8, 8, num_test_ids=8, query_images=2, gallery_images=4, height=64)
    generate(str(data / MARKET), spec)
    for split in (TRAIN, QUERY, GALLERY):
        for number, picture in enumerate(sorted((data / MARKET / split).iterdir())):
            identity, camera = re.match(r"(\d+)_c(\d)", picture.name).groups()
            folder = data / "my_pictures" / f"person{identity}"
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(
                str(picture), str(folder / f"cam{camera}_{number:03}{split[0]}{picture.suffix}")
            )
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    monkeypatch.setenv("FASTREID_DATASETS", str(data))
    monkeypatch.setattr(build, "_root", str(data))

    changes = [str(word) for pair in SMALL.items() for word in pair]

    def run(page):
        printed = []
        for command in WALKS[page]:
            if command[1] == "-m":
                small = changes if "doctor" in command else []
                assert main(command[3:] + small) == 0
            else:
                small = changes if "train_net" in command[1] else []
                monkeypatch.setattr(sys, "argv", command[1:] + small)
                runpy.run_path(str(ROOT / command[1]), run_name="__main__")
            printed.append(capsys.readouterr().out)
        return printed

    return run


def told(page, line):
    """A line of the log that a page shows, as a pattern for any numbers."""
    (shown,) = re.findall(rf"^{line}.*$", (START / page).read_text("utf-8"), re.M)
    number = r"-?\d[.\d]*"
    return number.join(map(re.escape, re.split(number, shown)))


def test_own_pictures_end_in_a_search(walk, tmp_path):
    doctor, _, _, exported = walk("own-pictures.md")
    for line in ("ok    training set", "ok    test set", "ready to train"):
        assert re.search(told("own-pictures.md", line), doctor), doctor
    logs = tmp_path / "logs"
    log = (logs / "folderreid" / "rib_recipe_R18" / "log.txt").read_text("utf-8")
    assert "RIB refreshed for epoch 2" in log
    assert re.search(told("own-pictures.md", r"\| Dataset"), log)
    page = (logs / "search.html").read_text("utf-8")
    assert "identity person" in page and (logs / "search.png").is_file()
    assert len(re.findall('<td class="(?:right|wrong)">', page)) == 8 * 5  # queries, pictures
    assert "left out: RIB's state" in exported


@pytest.mark.all_only
def test_market_1501_ends_in_an_export(walk, tmp_path):
    doctor, _, _, _, exported = walk("market1501.md")
    assert "ready to train" in doctor
    logs = tmp_path / "logs" / "market1501"
    log = (logs / "rib_recipe_R50" / "log.txt").read_text("utf-8")
    assert re.search(told("market1501.md", "RIB refreshed"), log)
    assert log.count("| Market1501 |") >= 2  # at the end of the training, and evaluated alone
    assert "RIB refreshed" not in (logs / "recipe_R50" / "log.txt").read_text("utf-8")
    assert sorted(path.name for path in (tmp_path / "exported").iterdir()) == [
        "config.yaml",
        "model_final.pth",
    ]
    assert "left out: RIB's state" in exported
