import pickle

import pytest
import torch
from cases import load_code, small_model
from fastreid.utils.checkpoint import Checkpointer

from fastreid_rib.base import safe_reads
from fastreid_rib.base.safe_reads import loads_weights_only

pytestmark = pytest.mark.published


def test_code_in_a_file_never_runs():
    for zipped in (True, False):  # the latter as torch before 1.6 wrote it
        with pytest.raises(pickle.UnpicklingError, match="If you trust its origin"):
            load_code(_use_new_zipfile_serialization=zipped)


def test_what_fastreid_saves_is_read_without_code(tmp_path):
    model = small_model()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.rand(1, 4)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5])  # it keeps a Counter
    parts = {"optimizer": optimizer, "lr_sched": scheduler}
    Checkpointer(model, str(tmp_path), **parts).save("one", device=torch.device("cpu"), best={1})
    rest = Checkpointer(small_model(), str(tmp_path), **parts).load(str(tmp_path / "one.pth"))
    assert rest == {"device": torch.device("cpu"), "best": {1}}
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


def test_torch_s_word_for_trusting_every_file_is_kept(monkeypatch):
    if not loads_weights_only():
        pytest.skip("this torch has no such word")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    assert load_code() is True


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


def test_a_last_checkpoint_that_is_gone(tmp_path):
    checkpointer = Checkpointer(small_model(), str(tmp_path))
    checkpointer.save("model_0004")
    (tmp_path / "last_checkpoint").write_text("model_0005.pth")
    with pytest.raises(FileNotFoundError, match="whole checkpoint beside it is model_0004.pth"):
        checkpointer.resume_or_load("", resume=True)


def test_the_next_write_takes_the_place_of_a_partial_one(tmp_path):
    (tmp_path / "model.pth.partial").write_bytes(b"half" * 1000)
    checkpointer = Checkpointer(small_model(), str(tmp_path))
    checkpointer.save("model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last_checkpoint", "model.pth"]
    checkpointer.load(str(tmp_path / "model.pth"))


def test_nothing_is_said_of_a_checkpoint_that_was_not_written(tmp_path):
    checkpointer = Checkpointer(small_model(), str(tmp_path))
    checkpointer.save("model_0000")
    with pytest.raises(AttributeError):
        checkpointer.save("model_0001", odd=lambda: None)  # not to be pickled
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000.pth"
    assert not (tmp_path / "model_0001.pth").exists()
    assert not (tmp_path / "model_0001.pth.partial").exists()
