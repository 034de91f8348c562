"""The command that says whether training can work here."""

import sys

import pytest

DOCTOR = ("-m", "fastreid_rib", "doctor")


def test_a_good_machine_is_ready(command, monkeypatch, tmp_path):
    monkeypatch.setenv("FASTREID_DATASETS", str(tmp_path))
    status, report = command("doctor")
    assert status == 0 and "FAIL" not in report and "ready to train" in report
    for subject in ("fastreid-rib", "torch", "NumPy", "CUDA", "loss on cpu", "optimizer"):
        assert subject in report
    assert "cpu-launch" in report or "CUDA" in report
    assert str(tmp_path) in report


def test_a_data_root_that_cannot_be_made(command, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FASTREID_DATASETS", str(tmp_path / "file" / "datasets"))
    status, report = command("doctor")
    assert status == 1 and "FAIL  data root" in report and "FASTREID_DATASETS" in report


def test_with_a_config(command, config):
    status, report = command("doctor", *config())
    assert status == 0 and "ready to train" in report
    status, report = command("doctor", *config(), "SOLVER.BASE_LR", "-1.0")
    assert status == 1 and "SOLVER.BASE_LR must be" in report
    assert "training cannot work here: config" in report


@pytest.mark.parametrize("value", ["1", pytest.param("register", marks=pytest.mark.all_only)])
def test_a_plugin_that_is_switched_off_is_a_failure(run_script, value):
    run = run_script(*DOCTOR, env={"FASTREID_RIB_DISABLE": value}, check=False)
    assert run.returncode == 1
    assert "FAIL  activation" in run.stdout and "training cannot work here" in run.stdout


def test_a_pth_file_that_did_not_load_is_a_failure(run_script, tmp_path):
    """Without it FastReID passes over a loss that it does not know, and says nothing."""
    (tmp_path / "fastreid_rib.pth").write_text("import sys")  # nothing of ours, as where it failed
    code = (
        "import sys; from fastreid_rib.commands import doctor\n"
        f"sys.executable, sys.path[:0] = {str(tmp_path / 'python')!r}, [{str(tmp_path)!r}]\n"
        "print(*list(doctor.plugin())[-1])"
    )
    python = tmp_path / "python"  # as an interpreter that reads no .pth files
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    python.chmod(0o700)
    said = run_script("-c", code).stdout
    assert said.startswith("FAIL activation fastreid_rib.pth did not load: write `import")
    assert "trains without RIB, and says nothing" in said
    (tmp_path / "fastreid_rib.pth").unlink()
    code = code.replace("sys.path[:0] =", "sys.path[:] =")
    assert run_script("-c", code).stdout.startswith("note activation no .pth file")


def test_without_fastreid(run_script):
    code = (
        "import sys, fastreid_rib.activation as activation\n"
        "class NotThere:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'fastreid': raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, NotThere())\n"
        "from fastreid_rib.__main__ import main\n"
        "sys.exit(main(['doctor']))"
    )
    run = run_script("-c", code, check=False)
    assert run.returncode == 1
    assert "FAIL  fastreid" in run.stdout


@pytest.mark.today_only  # FastReID's optimizers learn on torch 1.13
def test_an_optimizer_that_does_not_learn_is_found(run_script):
    run = run_script(*DOCTOR, env={"FASTREID_RIB_DISABLE": "zero-grad"}, check=False)
    assert run.returncode == 1
    assert "FAIL  optimizer" in run.stdout
    assert "not repaired" in run.stdout
