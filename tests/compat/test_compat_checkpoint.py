import pickle

import pytest
import torch
from cases import killed_writer, load_code, load_scalars, load_truncated, regnet, small_model
from fastreid.utils.checkpoint import Checkpointer

from fastreid_rib.compat.checkpoint import loads_weights_only

pytestmark = pytest.mark.published


def test_numpy_numbers_load(stock):
    if loads_weights_only():
        assert stock["scalars"].startswith("UnpicklingError")
    else:
        assert stock["scalars"] == [71.5, 3]
    assert load_scalars() == [71.5, 3]


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before-1.6"])
def test_code_in_a_file_never_runs(stock, zipped):
    if not loads_weights_only():
        assert stock["code"] is True, "this torch ran it"
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


def test_torch_s_word_for_trusting_every_file_is_kept(monkeypatch):
    if not loads_weights_only():
        pytest.skip("this torch has no such word")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    assert load_code() is True


def test_a_truncated_file_is_named_and_the_newest_whole_one(stock):
    assert not stock["truncated"].startswith("ValueError")
    with pytest.raises(ValueError, match="model_0001.pth is truncated") as caught:
        load_truncated()
    assert "The newest whole checkpoint beside it is model_0000.pth" in str(caught.value)
    assert "last_checkpoint" in str(caught.value)


@pytest.mark.parametrize("size", [0, 3, 100, -40, -5])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before-1.6"])
def test_truncated_anywhere(tmp_path, size, zipped):
    path = tmp_path / "cut.pth"
    state = {"model": small_model().state_dict()}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match="truncated or damaged|no checkpoint") as caught:
        Checkpointer(small_model()).load(str(path))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello world", "is no checkpoint"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "is no checkpoint"),
        ([1, 2], "got a list"),
        (torch.zeros(2), "got a Tensor"),
        ({"layer.weight": torch.zeros(2)}, "under 'model', got a dict with the keys"),
        ({"model": 3}, "expected a dict with a state_dict under 'model'"),
    ],
)
def test_a_foreign_file_is_told(tmp_path, content, message):
    path = tmp_path / "odd.pth"
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


def test_a_killed_writer_leaves_the_file_that_was_there(stock):
    assert "killed_writer" in stock and not isinstance(stock["killed_writer"], list)
    left = killed_writer()
    assert left == ["last_checkpoint", "model_best.pth", "model_best.pth.partial"]


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


def test_settings_of_regnet_and_effnet_are_found(stock):
    assert stock["regnet"].startswith("FileNotFoundError")
    assert regnet() == [[1, 368, 4, 2], [1, 1280, 4, 2]]
