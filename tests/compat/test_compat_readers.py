"""People's own pictures in FastReID's layouts: read if they can be understood, else one error."""

import os
import re

import pytest
import torch
from fastreid.data.datasets.dukemtmcreid import DukeMTMC
from fastreid.data.datasets.market1501 import Market1501
from fastreid.data.datasets.msmt17 import MSMT17
from fastreid.engine import DefaultTrainer
from trees import DUKE, MARKET, in_market, market_names, small_market, write_picture, write_tree

from fastreid_rib.base import pictures
from fastreid_rib.compat import readers

pytestmark = pytest.mark.usefixtures("as_after_setup")


@pytest.fixture
def said(heard):
    """What the repairs log."""
    return heard(readers.logger)


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
def test_the_real_data_sets_are_read_by_fastreid_itself(dataset, tmp_path, said):
    folder, names = REAL[dataset]
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


def test_msmt17_is_read_by_fastreid_itself(tmp_path):
    root = write_msmt17(tmp_path, "{} {}\n")
    data = MSMT17(root=root)
    places = os.path.join(root, "MSMT17_V1", "train"), os.path.join(root, "MSMT17_V1")
    expected = stock(MSMT17)(data, places[0], os.path.join(places[1], "list_train.txt"))
    assert data.train == expected and len(expected) == 4
    assert {pid for _, pid, _ in data.query} == {2 + 0, 2 + 1}  # behind those that train


# People's own pictures: {case: (changes of the names, what FastReID does of itself)}
OWN = {
    "JPG": ({"ending": ".JPG"}, 0),
    "png": ({"ending": ".png"}, 0),
    "jpeg": ({"ending": ".jpeg"}, 0),
    "bmp": ({"ending": ".bmp"}, 0),
    "identities above 1501": ({"identities": (5, 1502, 20000), "tested": (1600, 1601)}, None),
    "cameras above 6": ({"cameras": (1, 7, 9)}, None),
    "camera 0": ({"cameras": (0, 1)}, None),
    "cameras with two digits": ({"cameras": (11, 12, 21)}, "another camera"),
    "cameras with zeros": ({"cameras": ("01", "02")}, None),
}


@pytest.mark.parametrize("case", OWN)
def test_own_pictures_are_read(case, tmp_path):
    for dataset, folder in ((Market1501, MARKET), (DukeMTMC, DUKE)):
        check_own_pictures(dataset, folder, case, tmp_path)


def check_own_pictures(dataset, folder, case, tmp_path):
    how, by_itself = OWN[case]
    root = write_tree(tmp_path, small_market(folder, **how))
    data = dataset(root=root)
    identities = [int(i) for i in how.get("identities", range(1, 4))]
    tested = [int(i) for i in how.get("tested", range(11, 14))]
    cameras = [int(camera) - 1 for camera in how.get("cameras", (1, 2))]
    name = dataset.dataset_name
    assert {pid for _, pid, _ in data.train} == {f"{name}_{i}" for i in identities}
    assert {camera for *_, camera in data.train} == {f"{name}_{c}" for c in cameras}
    for items, shots in ((data.query, 1), (data.gallery, 1)):
        assert {pid for _, pid, _ in items} == set(tested)
        assert {camera for *_, camera in items} == set(cameras)
        assert len(items) == len(tested) * len(cameras) * shots
        for path, pid, camera in items:
            assert os.path.basename(path).startswith(f"{pid:04d}_c")
            assert int(re.search(r"_c(\d+)", os.path.basename(path)).group(1)) - 1 == camera
    # and what it was without the repair
    place = os.path.join(root, folder, "bounding_box_train")
    if dataset is DukeMTMC and case == "identities above 1501":
        assert facts(stock(dataset)(data, place)) == facts(data.train)
    elif by_itself is None:
        with pytest.raises(AssertionError):
            stock(dataset)(data, place)
    elif by_itself == 0:
        assert stock(dataset)(data, place) == []
    else:
        assert {c for *_, c in stock(dataset)(data, place)} == {f"{name}_0", f"{name}_1"}


def test_cameras_with_two_digits_are_evaluated_as_any(tmp_path, make_cfg, monkeypatch):
    """Cut to one digit, 11 and 12 would be one camera, whose pictures are left out."""
    from fastreid.data import build

    torch.manual_seed(0)
    model = DefaultTrainer.build_model(make_cfg({"MODEL.BACKBONE.PRETRAIN": False})).eval()
    results = []
    for cameras in ((1, 2, 3), (11, 12, 25)):
        root = write_tree(tmp_path / str(cameras[0]), small_market(cameras=cameras, shots=3))
        monkeypatch.setattr(build, "_root", root)
        changes = {"DATASETS.TESTS": ("Market1501",)}
        results.append(DefaultTrainer.test(make_cfg(changes), model))
    assert results[0] == pytest.approx(results[1], abs=1e-3) and results[0]["mAP"] > 0
    monkeypatch.setattr(Market1501, "process_dir", stock(Market1501))
    assert DefaultTrainer.test(make_cfg(changes), model)["mAP"] != pytest.approx(
        results[0]["mAP"], abs=1
    )


def test_a_file_with_another_name_between_them(tmp_path):
    root = write_tree(tmp_path, small_market())
    for name in ("copy of anna.jpg", "z.jpg"):
        write_picture(tmp_path / MARKET / "bounding_box_train" / name)
    with pytest.raises(ValueError) as error:
        Market1501(root=root)
    path = os.path.join(root, MARKET, "bounding_box_train", "copy of anna.jpg")
    assert str(error.value) == (
        f"Market1501: the name of {path} (and of 1 others) says neither identity nor "
        "camera. Expected names such as 0001_c1s1_000001_00.jpg. Rename such files, or move them "
        "out of the folder; pictures laid out in another way are read by DATASETS.NAMES "
        "('FolderReID',)."
    )
    os.remove(path)
    os.remove(os.path.join(os.path.dirname(path), "z.jpg"))
    assert len(Market1501(root=root).train) == 12


def test_a_name_of_which_the_number_is_none(tmp_path):
    root = write_tree(tmp_path, [*small_market(), f"{MARKET}/query/12-7_c1s1_000001_00.jpg"])
    with pytest.raises(ValueError, match="12-7_c1s1_000001_00.jpg says neither identity nor"):
        list(Market1501(root=root).query)  # read when it is asked for


def test_a_data_root_with_any_name(tmp_path):
    plain = Market1501(root=write_tree(tmp_path / "plain", small_market()))
    for parent in ("run-1_c2", "data[1]", "9999_c9 more"):
        odd = Market1501(root=write_tree(tmp_path / parent, small_market()))
        for part in ("train", "query", "gallery"):
            assert facts(getattr(odd, part)) == facts(getattr(plain, part)) != []
        try:
            by_itself = facts(
                stock(Market1501)(odd, str(tmp_path / parent / MARKET / "bounding_box_train"))
            )
        except AssertionError:
            by_itself = None
        assert by_itself != facts(plain.train)


def test_masks_and_copies_beside_the_pictures_stay_out(tmp_path, heard):
    said = heard(pictures.logger)
    root = write_tree(tmp_path, small_market())
    folder = tmp_path / MARKET / "bounding_box_train"
    write_picture(folder / "0001_c1s1_000000_00.png")  # a mask of the .jpg
    write_picture(folder / "contents.png")
    assert len(Market1501(root=root).train) == 12
    assert said() == [
        f"Market1501: of {folder} 2 left out, beside .jpg pictures, without a name like theirs or "
        "with that of one (such as 0001_c1s1_000000_00.png)."
    ]
    write_picture(folder / "0001_c1s1_000099_00.PNG")  # a picture like the others
    data = Market1501(root=root)
    assert len(data.train) == 13


def test_pictures_in_folders_of_their_identities(tmp_path):
    names = [name.replace("train/0001_", "train/0001/0001_") for name in small_market()]
    names = [name for name in names if "train/0001/" in name or "train/" not in name]
    with pytest.raises(ValueError) as error:
        Market1501(root=write_tree(tmp_path, names))
    assert "holds no picture but 1 folders, such as 0001. Expected the pictures themselves" in str(
        error.value
    )
    assert "FolderReID" in str(error.value)


def test_an_empty_folder(tmp_path):
    root = write_tree(tmp_path, [name for name in small_market() if "/query/" not in name])
    folder = tmp_path / MARKET / "query"
    folder.mkdir()
    for told in ("is empty", "of its 1 files, such as notes.txt, none"):
        with pytest.raises(ValueError, match=f"Market1501: {re.escape(str(folder))} {told}"):
            list(Market1501(root=root).query)
        (folder / "notes.txt").write_text("")


def write_msmt17(root, line, cameras=("01", "12"), version=("MSMT17_V1", "train", "test")):
    """Two identities train and two test, one picture by each camera."""
    folder, train, test = version
    lists = {"train": [], "val": [], "query": [], "gallery": []}
    for part in lists:
        for identity in range(2):
            for camera in cameras[:1] if part == "query" else cameras:
                name = f"{identity:04d}/{identity:04d}_{part}_{camera}_0303morning_0008_0.jpg"
                place = test if part in ("query", "gallery") else train
                write_picture(root / folder / place / name)
                lists[part].append(line.format(name, identity))
    for part, lines in lists.items():
        (root / folder / f"list_{part}.txt").write_text("".join(lines))
    return str(root)


def test_lists_of_msmt17_that_are_clear(tmp_path):
    plain = MSMT17(root=write_msmt17(tmp_path / "plain", "{} {}\n"))
    for line in ("{}   {}\n", "{} {}\n\n", "{} {} \n", "{}\t{}\r\n"):
        data = MSMT17(root=write_msmt17(tmp_path / "own", line))
        for part in ("train", "query", "gallery"):
            items = getattr(data, part)
            assert facts(items) == facts(getattr(plain, part)) != []
            assert all(os.path.isfile(path) for path, *_ in items)


def test_lists_of_msmt17_from_windows(tmp_path):
    plain = MSMT17(root=write_msmt17(tmp_path, "{} {}\n")).train
    for path in (tmp_path / "MSMT17_V1").glob("list_*.txt"):
        path.write_text("\ufeff" + path.read_text().replace("/", "\\"), encoding="utf-8")
    assert facts(MSMT17(root=str(tmp_path)).train) == facts(plain)


def test_underscores_and_spaces_in_folders_of_msmt17(tmp_path):
    root = write_msmt17(tmp_path, "{} {}\n")
    folder = tmp_path / "MSMT17_V1"
    (folder / "train" / "0000").rename(folder / "train" / "id_a 0")
    for path in (folder / "list_train.txt", folder / "list_val.txt"):
        path.write_text(path.read_text().replace("0000/", "id_a 0/"))
    items = MSMT17(root=root).train
    assert [camera for *_, camera in items] == ["msmt17_0", "msmt17_11"] * 2
    assert all(os.path.isfile(item[0]) for item in items)


def test_a_line_of_msmt17_that_is_not_clear(tmp_path):
    root = write_msmt17(tmp_path, "{} {}\n")
    path = tmp_path / "MSMT17_V1" / "list_query.txt"
    clear, name = path.read_text(), "0000/0000_000"
    for line in ("anna/anna.jpg 1", f"{name}_xx_0303.jpg 1", f"{name}_01_0303.jpg anna", "x"):
        path.write_text(clear + line + "\n")
        told = re.escape(f"{path}, line 3: {line!r} is not a picture and its identity")
        with pytest.raises(ValueError, match=told):
            MSMT17(root=root)


def test_lists_of_msmt17_that_are_missing_or_of_another_place(tmp_path):
    root = write_msmt17(tmp_path, "{} {}\n")
    (tmp_path / "MSMT17_V1" / "list_gallery.txt").unlink()
    with pytest.raises(RuntimeError, match="list_gallery.txt.* is not found: MSMT17"):
        MSMT17(root=root)
    root = write_msmt17(tmp_path / "other", "elsewhere/{} {}\n")
    with pytest.raises(RuntimeError, match="list_train.txt, line 1, expects it there"):
        MSMT17(root=root)


def test_what_fastreid_says_of_itself(tmp_path):
    """The defects, without the repairs."""
    root = write_tree(tmp_path, [*small_market(), f"{MARKET}/query/anna.jpg"])
    data = Market1501(root=root)
    with pytest.raises(AttributeError, match="'NoneType' object has no attribute 'groups'"):
        stock(Market1501)(data, os.path.join(root, MARKET, "query"), False)
    (tmp_path / "list.txt").write_text("a/0000_000_01_0.jpg 0\n\n")
    with pytest.raises(ValueError, match="not enough values to unpack"):
        stock(MSMT17)(data, root, str(tmp_path / "list.txt"))
