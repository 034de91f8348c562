"""People's own pictures in FastReID's layouts: read if they can be understood, else one error."""

import os
import re

import pytest
from fastreid.data.datasets.dukemtmcreid import DukeMTMC
from fastreid.data.datasets.market1501 import Market1501
from fastreid.data.datasets.msmt17 import MSMT17
from trees import DUKE, MARKET, in_market, market_names, small_market, write_picture, write_tree

from fastreid_rib.compat import readers


def stock(dataset):
    """FastReID's own method, without the repair."""
    return dataset.process_dir.__stock__


def facts(items):
    """File name, identity and camera of each picture, sorted: folders are listed in any order."""
    return sorted((os.path.basename(path), pid, camera) for path, pid, camera in items)


DUKE_FORM = "_f{:07d}"
REAL = {
    # data set: (folder, what the real one holds besides what is easy)
    Market1501: (
        MARKET,
        in_market(
            market_names([2, 7, 1500], range(1, 7)),
            market_names([1, 1501], (1, 6), 1),
            [*market_names([0, 1, 1501], range(1, 7)), *market_names([3], (1,), form="_{:d}")]
            + [f"-1_c{camera}s1_000401_03.jpg" for camera in range(1, 7)],
        ),
    ),
    DukeMTMC: (
        DUKE,
        in_market(
            market_names([1, 2, 4000], range(1, 9), form=DUKE_FORM),
            market_names([5, 7139], (2, 8), 1, form=DUKE_FORM),
            market_names([5, 17, 7139], range(1, 9), form=DUKE_FORM),
            DUKE,
        ),
    ),
}


@pytest.mark.parametrize("dataset", REAL)
def test_the_real_data_sets_are_read_by_fastreid_itself(dataset, tmp_path, heard):
    said, (folder, names) = heard(readers.logger), REAL[dataset]
    root = write_tree(tmp_path, names)
    for part in ("bounding_box_train", "query", "bounding_box_test"):
        (tmp_path / folder / part / "Thumbs.db").write_bytes(b"of Windows")
        (tmp_path / folder / part / "._0001_c1s1_000001_00.jpg").write_bytes(b"of macOS")
    data = dataset(root=root)
    for part, items, train in (
        ("bounding_box_train", data.train, True),
        ("query", data.query, False),
        ("bounding_box_test", data.gallery, False),
    ):
        expected = stock(dataset)(data, os.path.join(root, folder, part), train)
        assert expected and items == expected  # the same order, identities and cameras
    assert said() == []


# People's own pictures: changes of the names
OWN = {
    "JPG": {"ending": ".JPG"},
    "png": {"ending": ".png"},
    "identities above 1501": {"identities": (5, 1502, 20000), "tested": (1600, 1601)},
    "cameras above 6, or 0": {"cameras": (0, 1, 7, 9)},
    "cameras with two digits": {"cameras": (11, 12, 21)},
    "cameras with zeros": {"cameras": ("01", "02")},
}


@pytest.mark.parametrize("case", OWN)
@pytest.mark.parametrize("dataset, folder", [(Market1501, MARKET), (DukeMTMC, DUKE)])
def test_own_pictures_are_read(case, dataset, folder, tmp_path):
    how = OWN[case]
    data = dataset(root=write_tree(tmp_path, small_market(folder, **how)))
    identities = [int(i) for i in how.get("identities", range(1, 4))]
    tested = [int(i) for i in how.get("tested", range(11, 14))]
    cameras = [int(camera) - 1 for camera in how.get("cameras", (1, 2))]
    name = dataset.dataset_name
    assert {pid for _, pid, _ in data.train} == {f"{name}_{i}" for i in identities}
    assert {camera for *_, camera in data.train} == {f"{name}_{c}" for c in cameras}
    for items in (data.query, data.gallery):
        assert {pid for _, pid, _ in items} == set(tested)
        assert len(items) == len(tested) * len(cameras)
        for path, pid, camera in items:
            assert os.path.basename(path).startswith(f"{pid:04d}_c")
            assert int(re.search(r"_c(\d+)", os.path.basename(path)).group(1)) - 1 == camera


def test_a_data_root_with_any_name(tmp_path):
    plain = Market1501(root=write_tree(tmp_path / "plain", small_market()))
    for parent in ("run-1_c2", "data[1]", "9999_c9 more"):
        odd = Market1501(root=write_tree(tmp_path / parent, small_market()))
        for part in ("train", "query", "gallery"):
            assert facts(getattr(odd, part)) == facts(getattr(plain, part)) != []


def test_files_with_other_names_between_them(tmp_path):
    root = write_tree(tmp_path, small_market())
    folder = tmp_path / MARKET / "bounding_box_train"
    for name in ("12-7_c1s1_000001_00.jpg", "copy of anna.jpg"):
        write_picture(folder / name)
    with pytest.raises(ValueError) as error:
        Market1501(root=root)
    assert str(error.value) == (
        f"Market1501: the name of {folder}/12-7_c1s1_000001_00.jpg (and of 1 others) says neither "
        "identity nor camera. Expected names such as 0001_c1s1_000001_00.jpg. Rename such files, "
        "or move them out of the folder; pictures laid out in another way are read by "
        "DATASETS.NAMES ('FolderReID',)."
    )


def test_a_folder_without_pictures(tmp_path):
    root = write_tree(tmp_path, [name for name in small_market() if "/query/" not in name])
    folder = tmp_path / MARKET / "query"
    folder.mkdir()
    for there, inside in (
        ("nothing", "notes.txt"),
        ("notes.txt", "0001/0001_c1.jpg"),
        ("0001, notes.txt. Expected the pictures themselves", "end"),
    ):
        told = f"Market1501: {folder} has no picture, it holds {there}"
        with pytest.raises(ValueError, match=re.escape(told)):
            list(Market1501(root=root).query)  # read when it is asked for
        (folder / os.path.dirname(inside)).mkdir(exist_ok=True)
        (folder / inside).touch()


def write_msmt17(root, line="{} {}\n", cameras=("01", "12")):
    """Two identities train and two test, one picture by each camera."""
    lists = {"train": [], "val": [], "query": [], "gallery": []}
    for part in lists:
        for identity in range(2):
            for camera in cameras[:1] if part == "query" else cameras:
                name = f"{identity:04d}/{identity:04d}_{part}_{camera}_0303morning_0008_0.jpg"
                place = "test" if part in ("query", "gallery") else "train"
                write_picture(root / "MSMT17_V1" / place / name)
                lists[part].append(line.format(name, identity))
    for part, lines in lists.items():
        (root / "MSMT17_V1" / f"list_{part}.txt").write_text("".join(lines))
    return str(root)


def test_lists_of_msmt17_as_fastreid_reads_them(tmp_path):
    root = write_msmt17(tmp_path)
    data, folder = MSMT17(root=root), os.path.join(root, "MSMT17_V1")
    expected = stock(MSMT17)(data, f"{folder}/train", f"{folder}/list_train.txt")
    assert data.train == expected and len(expected) == 4
    assert {pid for _, pid, _ in data.query} == {2 + 0, 2 + 1}  # behind those that train
    for line in ("{}   {}\n", "{} {}\n\n", "{} {} \n", "{}\t{}\r\n"):
        own = MSMT17(root=write_msmt17(tmp_path, line))
        for part in ("train", "query", "gallery"):
            assert getattr(own, part) == getattr(data, part)


def test_lists_of_msmt17_from_windows_with_underscores_and_spaces(tmp_path):
    root = write_msmt17(tmp_path)
    folder = tmp_path / "MSMT17_V1"
    (folder / "train" / "0000").rename(folder / "train" / "id_a 0")
    for path in folder.glob("list_*.txt"):
        text = path.read_text()
        if path.name in ("list_train.txt", "list_val.txt"):
            text = text.replace("0000/", "id_a 0/")
        path.write_text("\ufeff" + text.replace("/", "\\"), encoding="utf-8")
    items = MSMT17(root=root).train
    assert [camera for *_, camera in items] == ["msmt17_0", "msmt17_11"] * 2
    assert all(os.path.isfile(item[0]) for item in items)


def test_a_line_of_msmt17_that_is_not_clear(tmp_path):
    root = write_msmt17(tmp_path)
    path = tmp_path / "MSMT17_V1" / "list_query.txt"
    clear, name = path.read_text(), "0000/0000_000"
    for line in ("anna/anna.jpg 1", f"{name}_xx_0303.jpg 1", f"{name}_01_0303.jpg anna", "x"):
        path.write_text(clear + line + "\n")
        told = re.escape(f"{path}, line 3: {line!r} is not a picture and its identity")
        with pytest.raises(ValueError, match=told):
            MSMT17(root=root)


def test_lists_of_msmt17_that_are_missing_or_of_another_place(tmp_path):
    root = write_msmt17(tmp_path)
    (tmp_path / "MSMT17_V1" / "list_gallery.txt").unlink()
    with pytest.raises(RuntimeError, match="list_gallery.txt.* is not found: MSMT17"):
        MSMT17(root=root)
    root = write_msmt17(tmp_path / "other", "elsewhere/{} {}\n")
    with pytest.raises(RuntimeError, match="list_train.txt, line 1, expects it there"):
        MSMT17(root=root)
