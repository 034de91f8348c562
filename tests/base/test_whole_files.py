"""A file has its name once it is whole."""

import os

import pytest

from fastreid_rib.base.whole_files import renamed_to


def test_it_gets_its_name_once_it_is_written(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with renamed_to(str(path)) as partial:
        with open(partial, "w") as file:
            file.write("new")
        assert path.read_text() == "old"
        assert os.path.dirname(partial) == str(tmp_path)  # a rename is one step in one folder only
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("by_one", [True, False])
def test_what_fails_leaves_the_old_one_and_nothing_else(tmp_path, by_one):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError), renamed_to(str(path), by_one) as partial:
        open(partial, "w").close()
        raise RuntimeError
    with pytest.raises(FileNotFoundError), renamed_to(str(path), by_one):
        pass  # nothing was written
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]
