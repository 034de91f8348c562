import os
import pickle
import signal

import numpy as np
import pytest
import torch
from fastreid.utils.checkpoint import Checkpointer
from small_uses import small_model

from fastreid_rib.base import safe_reads

pytestmark = pytest.mark.published


class Program:
    """What a pickle can do: call anything, here `os.mkdir`."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_code_in_a_file_never_runs(tmp_path, monkeypatch):
    path, sign = str(tmp_path / "odd.pth"), tmp_path / "it-ran"
    content = {"model": small_model().state_dict(), "odd": Program(sign)}
    for zipped in (False, True):  # the former as torch before 1.6 wrote it
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(pickle.UnpicklingError, match="If you trust its origin"):
            Checkpointer(small_model()).load(path)
        assert not sign.exists()
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # torch's word for trusting all
    Checkpointer(small_model()).load(path)
    assert sign.exists()


def test_what_fastreid_saves_is_read_without_code(tmp_path):
    model = small_model()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.rand(1, 4)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5])  # it keeps a Counter
    parts = {"optimizer": optimizer, "lr_sched": scheduler}
    more = {"device": torch.device("cpu"), "best": {1}, "metric": np.float64(71.5)}
    Checkpointer(model, str(tmp_path), **parts).save("one", **more)
    rest = Checkpointer(small_model(), str(tmp_path), **parts).load(str(tmp_path / "one.pth"))
    assert rest == more
    assert scheduler.milestones == {3: 1, 5: 1}


def test_a_safe_read_changes_pickle_for_nobody_else(tmp_path, monkeypatch):
    """Another thread may read or write a file meanwhile; on torch before 2.5 it reads so."""
    seen = []
    stock = safe_reads._PlainUnpickler.find_class

    def looked(*name):
        seen.append(torch.serialization.pickle)
        return stock(*name)

    monkeypatch.setattr(safe_reads._PlainUnpickler, "find_class", looked)
    torch.save({"model": small_model().state_dict()}, tmp_path / "one.pth")
    loaded = safe_reads._load_plainly(str(tmp_path / "one.pth"))
    assert set(loaded["model"]) == set(small_model().state_dict())
    assert seen and all(found is pickle for found in seen)


def test_truncated_anywhere(tmp_path):
    path = tmp_path / "cut.pth"
    for zipped in (True, False):
        torch.save({"model": {}, "odd": [1.5] * 99}, path, _use_new_zipfile_serialization=zipped)
        whole = path.read_bytes()
        for size in (0, 3, 100, -40, -5):
            path.write_bytes(whole[:size])
            with pytest.raises(ValueError, match="truncated or damaged|no checkpoint") as caught:
                Checkpointer(small_model()).load(str(path))
            assert str(path) in str(caught.value)


def test_a_foreign_file_is_told(tmp_path):
    path = tmp_path / "odd.pth"
    for content, message in (
        (b"hello world", "is no checkpoint"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "is no checkpoint"),
        ([1, 2], "got a list"),
        (torch.zeros(2), "got a Tensor"),
        ({"layer.weight": torch.zeros(2)}, "under 'model', got a dict with the keys"),
        ({"model": 3}, "expected a dict with a state_dict under 'model'"),
    ):
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        with pytest.raises(ValueError, match=message) as caught:
            Checkpointer(small_model()).load(str(path))
        assert str(path) in str(caught.value)


def test_a_last_checkpoint_that_is_gone_or_truncated(tmp_path):
    checkpointer = Checkpointer(small_model(), str(tmp_path))
    checkpointer.save("model_0004")
    (tmp_path / "last_checkpoint").write_text("model_0005.pth")
    told = "whole checkpoint beside it is model_0004.pth"
    with pytest.raises(FileNotFoundError, match=told):
        checkpointer.resume_or_load("", resume=True)
    checkpointer.save("model_0005")
    os.truncate(tmp_path / "model_0005.pth", 1000)
    with pytest.raises(ValueError, match=f"model_0005.pth is truncated.* {told}.*last_checkpoint"):
        checkpointer.resume_or_load("", resume=True)


class Deadly:
    def __reduce__(self):  # reached when the file is open, long before it is complete
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_killed_while_it_writes_leaves_the_old_one(tmp_path):
    checkpointer = Checkpointer(small_model(), str(tmp_path))
    checkpointer.save("model_best")
    child = os.fork()
    if not child:
        checkpointer.save("model_best", odd=Deadly())
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    checkpointer.resume_or_load("", resume=True)
    (tmp_path / "model_best.pth.partial").write_bytes(b"half" * 1000)  # killed later on
    checkpointer.save("model_best")  # it takes the place of the partial one
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_best.pth"]


def test_nothing_is_said_of_a_checkpoint_that_was_not_written(tmp_path):
    checkpointer = Checkpointer(small_model(), str(tmp_path))
    checkpointer.save("model_0000")
    with pytest.raises(AttributeError):
        checkpointer.save("model_0001", odd=lambda: None)  # not to be pickled
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000.pth"
    assert not (tmp_path / "model_0001.pth").exists()
    assert not (tmp_path / "model_0001.pth.partial").exists()
