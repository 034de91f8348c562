"""What CI runs: scripts and environments that exist."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
JOBS = [
    job
    for workflow in WORKFLOWS
    for job in yaml.safe_load(workflow.read_text("utf-8"))["jobs"].values()
]
ROWS = [row for job in JOBS for row in job.get("strategy", {}).get("matrix", {}).get("include", [])]
RUN_TESTS = (ROOT / "tools" / "run_tests.sh").read_text("utf-8")


def test_each_command_is_a_script_with_words_that_it_knows():
    known = {
        "tools/run_tests.sh": {"--all", "--fast", "--stack"},
        "tools/build_site.sh": set(),
        "tools/build_dist.sh": set(),
    }
    commands = {step["run"] for job in JOBS for step in job["steps"] if "run" in step}
    for command in commands:
        bash, script, *words = command.split()
        assert bash == "bash" and (ROOT / script).is_file(), command
        assert {word for word in words if word.startswith("-")} <= known[script], command
    assert {command.split()[1] for command in commands} == set(known)


@pytest.fixture
def run_tests(tmp_path):
    """Runs tools/run_tests.sh with scripts beside it that only say how they were called."""
    said = {
        "run_tests.sh": RUN_TESTS,
        "make_env.sh": f'echo "$1 NVCC=${{NVCC:-}}" >> made; echo {tmp_path}/python',
        "lint.sh": "echo linted",
        "build_site.sh": "echo built",
    }
    (tmp_path / "tools").mkdir()
    for name, text in said.items():
        (tmp_path / "tools" / name).write_text(text)
    python = tmp_path / "python"
    none_is_marked = 'case "$*" in *"-m published"*) exit 5 ;; esac'
    python.write_text(f'#!/bin/sh\necho "python $*"\n{none_is_marked}\n')
    python.chmod(0o755)

    def run(*words):
        command = ["bash", "tools/run_tests.sh", *words]
        result = subprocess.run(command, cwd=str(tmp_path), capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        runs = re.findall("^python -I -m pytest .*--durations-min 1 ?(.*)$", result.stdout, re.M)
        return runs, (tmp_path / "made").read_text().splitlines(), result.stdout

    return run


def test_a_change_runs_what_it_can_break(run_tests):
    runs, made, said = run_tests("-k", "dcs")
    published = "-m published and not all_only and not today_only"
    assert runs == [f"{published} -k dcs", "-m not all_only -k dcs"], "the whole suite is the last"
    assert made == ["today NVCC=no-nvcc", "published NVCC=no-nvcc"]
    assert "linted" in said and "built" in said and "--all: the others" in said
    assert run_tests("--fast")[0] == ["-m not all_only"]
    assert run_tests("--stack", "today-3.9", "-x")[0] == ["-m not all_only and not today_only -x"]


def test_all_is_everything_on_the_pythons_of_the_workflow(run_tests):
    runs, made, said = run_tests("--all")
    others = re.search(r"for stack in (.*); do", RUN_TESTS).group(1).split()
    assert runs[-2:] == ["-m not today_only", ""] and len(runs) == len(others) + 2
    assert all("one_changed_line" in run for run in runs[:-2])
    assert made == [f"{stack} NVCC=" for stack in ("today", *others, "published")]
    assert "--all: the others" not in said and "linted" in said
    stacks = {row["stack"] for row in ROWS}
    assert sorted(stacks - {"published-3.9", "today-3.11"}) == sorted(others)


@pytest.fixture
def make_env(tmp_path):
    """Makes no environment, as there is no Python: 3 is a stack that it knows, 2 another."""
    (tmp_path / "tools").mkdir()
    shutil.copy(str(ROOT / "tools" / "make_env.sh"), str(tmp_path / "tools"))

    def run(*words):
        command = ["bash", "tools/make_env.sh", *words]
        environment = dict(os.environ, PYTHON="no-python")
        return subprocess.run(
            command, cwd=str(tmp_path), env=environment, capture_output=True, text=True
        )

    return run


def test_each_stack_is_one_that_can_be_made_on_the_python_of_its_job(make_env):
    assert len(ROWS) > 5
    for row in ROWS:
        assert row["stack"].endswith(f"-{row['python']}")
        result = make_env(row["stack"], "tests")
        assert result.returncode == 3 and f"needs Python {row['python']} " in result.stderr
    for words in ("", "tomorrow", "published-3.11", "today test"):  # refused before any is made
        result = make_env(*words.split())
        assert result.returncode == 2 and result.stderr.startswith("usage: "), words
