"""Two runs in one folder, folders that cannot be written, full disks."""

import argparse
import errno
import os
import signal
from contextlib import contextmanager

import pytest
import torch
from fastreid.engine import default_setup
from fastreid.utils.checkpoint import Checkpointer

from fastreid_rib.integration.run import output_folder, start

RIB = {"MODEL.LOSSES.NAME": ("CrossEntropy", "RIB"), "MODEL.LOSSES.RIB.WARMUP_EPOCHS": 1}
TRAINING = argparse.Namespace(eval_only=False)


@contextmanager
def another_process(body):
    """A process that runs `body` and then stands still; its number. Killed at the end."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            body()
            os.write(theirs, b"1")
            signal.pause()
        finally:
            os._exit(1)
    os.close(theirs)
    try:
        assert os.read(ours, 1) == b"1"
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ours)


def test_a_second_training_in_a_folder_is_refused(make_cfg, caplog):
    cfg = make_cfg(RIB)
    with another_process(lambda: output_folder.claim(cfg.OUTPUT_DIR)) as pid:
        with pytest.raises(output_folder.FolderInUseError, match=f"process {pid} on ") as caught:
            default_setup(cfg, TRAINING)
        assert cfg.OUTPUT_DIR in str(caught.value) and "another OUTPUT_DIR" in str(caught.value)
        assert os.listdir(cfg.OUTPUT_DIR) == [output_folder.LOCK_NAME], "it has written something"
        # One may look on, and what does not concern the plugin stays FastReID's affair.
        start.claim_output_folder(cfg, argparse.Namespace(eval_only=True))
        assert not caplog.records
        plain = make_cfg({"MODEL.LOSSES.NAME": ("CrossEntropyLoss",)})
        start.claim_output_folder(plain, TRAINING)
        assert f"process {pid}" in caplog.text


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path):
    folder = str(tmp_path)
    with another_process(lambda: output_folder.claim(folder)) as pid:
        path = tmp_path / output_folder.LOCK_NAME
        assert path.read_text().startswith(f"process {pid} on ")
    output_folder.claim(folder)
    assert path.read_text().startswith(f"process {os.getpid()} on ")
    output_folder.claim(folder + "/.")  # the same process again


def test_children_of_a_training_do_not_keep_its_folder(tmp_path):
    def with_a_worker():
        output_folder.claim(str(tmp_path))
        if not os.fork():
            signal.alarm(60)  # it outlives its parent, as a worker of a data loader may
            signal.pause()

    with another_process(with_a_worker):
        pass
    output_folder.claim(str(tmp_path))


def test_a_folder_that_cannot_be_written(make_cfg, tmp_path):
    (tmp_path / "file").write_text("")
    for folder in ("/sys/fastreid-rib", f"{tmp_path}/file/logs"):
        with pytest.raises(OSError, match="cannot be written; write another OUTPUT_DIR"):
            default_setup(make_cfg(dict(RIB, OUTPUT_DIR=folder)), TRAINING)


def test_a_full_disk_is_told_and_the_last_checkpoint_stays(tmp_path):
    model = torch.nn.Linear(300, 300)
    checkpointer = Checkpointer(model, str(tmp_path))
    checkpointer.save("model_0000")
    checkpointer.save("model_best")
    before = (tmp_path / "model_best.pth").read_bytes()
    for name in ("model_0001", "model_best"):
        # The kernel's own full disk: every write to it fails with ENOSPC.
        (tmp_path / f"{name}.pth.partial").symlink_to("/dev/full")
        with pytest.raises(OSError, match="No space left on device.*not written") as caught:
            checkpointer.save(name)
        assert caught.value.errno == errno.ENOSPC
        assert caught.value.filename == str(tmp_path / f"{name}.pth")
    assert (tmp_path / "last_checkpoint").read_text() == "model_best.pth"
    assert (tmp_path / "model_best.pth").read_bytes() == before
    assert not list(tmp_path.glob("*.partial")) and not (tmp_path / "model_0001.pth").exists()
    checkpointer.resume_or_load("", resume=True)
    (tmp_path / "last_checkpoint.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        checkpointer.save("model_0001")
    assert (tmp_path / "last_checkpoint").read_text() == "model_best.pth"


def test_an_evaluation_leaves_the_config_of_the_training(make_small_cfg):
    """It would be what the training resumes with, and what an export reads."""
    folder = make_small_cfg().OUTPUT_DIR
    path = os.path.join(folder, "config.yaml")
    default_setup(make_small_cfg(), TRAINING)
    with open(path) as file:
        written = file.read()
    other = make_small_cfg({"MODEL.HEADS.NAME": "PartHead"})
    default_setup(other, argparse.Namespace(eval_only=True))
    with open(path) as file:
        assert file.read() == written and "PartHead" not in written
    os.remove(path)
    default_setup(other, argparse.Namespace(eval_only=True))
    with open(path) as file:
        assert "PartHead" in file.read()
