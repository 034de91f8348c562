"""What CI and pre-commit run: scripts, environments and checks that exist."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
HOOKS = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))
RUN_TESTS = (ROOT / "tools" / "run_tests.sh").read_text("utf-8")
LINT = (ROOT / "tools" / "lint.sh").read_text("utf-8")
CHECKS = re.search(r"set -- (.*)$", LINT, re.M).group(1).split()
OTHER_PYTHONS = re.search(r"for stack in (.*); do", RUN_TESTS).group(1).split()


def jobs():
    for workflow in WORKFLOWS:
        yield from yaml.safe_load(workflow.read_text("utf-8"))["jobs"].values()


def variants(job):
    """The rows of its matrix; one without keys if it has none."""
    return job.get("strategy", {}).get("matrix", {}).get("include", [{}])


def commands():
    """What the workflows run, once for each row of a matrix."""
    found = [
        re.sub(r"\$\{\{ matrix\.(\w+) \}\}", lambda name, row=row: row[name.group(1)], step["run"])
        for job in jobs()
        for row in variants(job)
        for step in job["steps"]
        if "run" in step
    ]
    return sorted(set(found))


def test_each_command_is_a_script_with_words_that_it_knows():
    known = {
        "tools/run_tests.sh": re.findall(r"^        (--[\w-]+)\)", RUN_TESTS, re.M),
        "tools/build_site.sh": [],
        "tools/build_dist.sh": [],
    }
    assert known["tools/run_tests.sh"] == ["--all", "--fast", "--stack"]
    for command in commands():
        bash, script, *words = command.split()
        assert bash == "bash" and (ROOT / script).is_file(), command
        assert {word for word in words if word.startswith("-")} <= set(known[script]), command
    assert {command.split()[1] for command in commands()} == set(known)


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


def test_all_is_everything(run_tests):
    runs, made, said = run_tests("--all")
    assert runs[-2:] == ["-m not today_only", ""] and len(runs) == len(OTHER_PYTHONS) + 2
    assert all("one_changed_line" in run for run in runs[:-2])
    assert made == [f"{stack} NVCC=" for stack in ("today", *OTHER_PYTHONS, "published")]
    assert "--all: the others" not in said and "linted" in said
    assert run_tests("--all", "--stack", "today-3.12")[0] == [""]


@pytest.fixture
def make_env(tmp_path):
    """Makes no environment, for want of a Python: 3 is a stack that it knows, 2 one it does not."""
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
    rows = [row for job in jobs() for row in variants(job) if row]
    assert len(rows) > 5
    for row in rows:
        assert row["stack"].endswith(f"-{row['python']}")
        result = make_env(row["stack"], "tests")
        assert result.returncode == 3 and f"needs Python {row['python']} " in result.stderr


def test_all_runs_on_the_pythons_of_the_workflow_that_the_two_stacks_are_not_on():
    stacks = [row["stack"] for job in jobs() for row in variants(job) if row]
    assert sorted(set(stacks) - {"published-3.9", "today-3.11"}) == sorted(OTHER_PYTHONS)


def test_what_it_does_not_know_it_refuses_before_it_makes_anything(make_env):
    for words in ("", "tomorrow", "today-3.14", "published-3.11", "today test"):
        result = make_env(*words.split())
        assert result.returncode == 2 and result.stderr.startswith("usage: "), words


def test_hooks_are_the_checks_of_the_script_and_fetch_nothing():
    (local,) = HOOKS["repos"]
    assert local["repo"] == "local"
    hooks = {hook["id"]: hook for hook in local["hooks"]}
    assert list(hooks) == CHECKS
    for name, hook in hooks.items():
        assert hook["entry"] == f"bash tools/lint.sh {name}"
        assert hook["language"] == "system" and hook["pass_filenames"] is False


def test_a_check_that_does_not_exist_fails(tmp_path):
    tools = tmp_path / "tools"
    linter = tmp_path / ".venv" / "bin" / "clang-format"
    for folder in (tools, linter.parent):
        folder.mkdir(parents=True)
    shutil.copy(str(ROOT / "tools" / "lint.sh"), str(tools))
    linter.write_text("")
    linter.chmod(0o755)  # there: no environment is made
    command = ["bash", str(tools / "lint.sh"), "spelling"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1 and "got 'spelling'" in result.stderr
