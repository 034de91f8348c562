"""What is understood of people's own trees and tables, and what is said of the rest."""

import os
import re
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastreid_rib.base.pictures import HIDDEN
from fastreid_rib.data.own_pictures import Picture, divide
from fastreid_rib.data.own_table import read_table
from fastreid_rib.data.own_tree import read_tree


def of(root, found):
    """{path: "identity camera split"}, each "-" if it is not known."""
    return {
        os.path.relpath(p.path, str(root)).replace(os.sep, "/"): " ".join(
            part or "-" for part in (p.identity, p.camera, p.split)
        )
        for p in found.pictures
    }


# {case: ({path: what is read, or "!" and why it is left out}, pattern)}
TREES = {
    "identities": ({"anna/1.jpg": "anna - -", "Bär 2/x.PNG": "Bär 2 - -"}, ""),
    "endings": (
        {
            **{f"a/{e}.{e}": "a - -" for e in ["jpeg", "JPG", "jfif", "webp", "bmp", "tif"]},
            **{f"b/1.{end}": f"!the ending .{end} is not read" for end in ("heic", "txt", "gz")},
            "b/2.gif": "b - -",
            "b/noending": "!a name without an ending is not read",
            **dict.fromkeys(("b/._2.jpg", "b/Thumbs.db", "b/.DS_Store"), f"!{HIDDEN}"),
        },
        "",
    ),
    "names of other systems": (
        {
            "train\\anna\\c1_2.jpg": "anna 1 train",
            "train/" + unicodedata.normalize("NFD", "Bär") + "/1.jpg": "Bär - train",
            "train/Bär/2.jpg": "Bär - train",
        },
        "",
    ),
    "splits, cameras in identities": (
        {
            "train/anna/1.jpg": "anna - train",
            "Test/7/1.webp": "7 - test",
            "Training/7/cam1/2.jpg": "7 cam1 training",
        },
        "",
    ),
    "identities in cameras": (
        {"camera_1/anna/1.jpg": "anna camera_1 -", "cam_a/berta/1.jpg": "berta cam_a -"},
        "",
    ),
    "as VeRi": (
        {
            "image_train/0001_c001_00016460_0.jpg": "0001 001 image_train",
            "image_query/0002_c002_00030670_0.jpg": "0002 002 image_query",
            "image_test/0002_c013_00030600_1.jpg": "0002 013 image_test",
        },
        "",
    ),
    "cameras in names": (
        {
            "anna/c3_17.jpg": "anna 3 -",
            "anna/0002_c12s1_000001_00.jpg": "anna 12 -",
            "anna/anna_cam4.jpg": "anna 4 -",
            "anna/coffee1.jpg": "anna - -",
            "b/17-C5.jpg": "b 5 -",
        },
        "",
    ),
    "as Market-1501": (
        {
            "bounding_box_train/0002_c1s1_000451_03.jpg": "0002 1 bounding_box_train",
            "query/0001_c16s1_001051_00.png": "0001 16 query",
            "bounding_box_test/0000_c1s1_000151_01.jpg": "0000 1 bounding_box_test",
            "bounding_box_test/-1_c1s1_000401_03.jpg": "!identity -1: junk, as in Market-1501",
            "bounding_box_train/0000_c1s1_000151_01.jpg": "!identity 0000 outside of a gallery",
            "gt_bbox/0001_c1s1_001051_00.jpg": "!in none of the folders train, training,",
        },
        "",
    ),
    "named people": (
        {
            "new_car_c1_5.jpg": "new_car 1 -",
            "B-AB 12_c2_1.jpg": "B-AB 12 2 -",
            "x_c.jpg": "!no folder, and no",
        },
        "",
    ),
    "not clear": (
        {
            "anna/1.jpg": "anna - -",
            "berta/1.jpg": "berta - -",
            "shop/anna/1.jpg": "!folders of which it is not clear which is the identity",
            "c1/c2/1.jpg": "!folders of which it is not clear",
            "shop/train/anna/1.jpg": "!train or test is not the fi",
        },
        "",
    ),
    "a pattern": (
        {
            "shop/day1/anna-left-1.jpg": "anna left -",
            "shop/day1/b-right-1.jpg": "b right -",
            "shop/day1/nobody.jpg": "!DATASETS.FOLDER.PATTERN does not match",
        },
        r"/(?P<identity>\w+)-(?P<camera>\w+)-\d",
    ),
    "a pattern with splits": (
        {
            "anna_train_1.jpg": "anna - train",
            "anna_Test_1.jpg": "anna - test",
            "anna_val_1.jpg": "!split 'val' is none of train,",
            "_train_1.jpg": "!DATASETS.FOLDER.PATTERN finds no identity",
        },
        r"(?P<identity>[a-z]*)_(?P<split>\w+)_",
    ),
}


def write(root, names):
    """As `write_tree`, but a file that Pillow could not write is one of a few bytes."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"not opened")
    return str(root)


@pytest.mark.parametrize("case", TREES)
def test_trees(case, tmp_path):
    expected, pattern = TREES[case]
    found = read_tree(write(tmp_path, expected), pattern)
    assert of(tmp_path, found) == {k: v for k, v in expected.items() if v[0] != "!"}
    skipped = {
        os.path.relpath(os.path.join(str(tmp_path), path), str(tmp_path)): reason
        for reason, paths in found.left_out.items()
        for path in paths
    }
    told = {path: value[1:] for path, value in expected.items() if value[0] == "!"}
    assert set(skipped) == set(told)
    for path, reason in told.items():
        assert skipped[path].startswith(reason), path
    assert all(os.path.isfile(picture.path) for picture in found.pictures)


DOUBTFUL = {
    # case: (paths, why, what the pattern that the error shows reads of the first)
    "cameras alone in splits": (
        ["test/CAM-A/p4.png", "train/CAM-A/p3.png"],
        "CAM-A looks like a camera, and no folder is the identity, as in test/CAM-A/p4.png",
        "p4 CAM-A test",
    ),
    "a split with another name": (
        ["my_train/0770_c001_1.jpg", "my_test/0771_c001_1.jpg"],
        "my_test does not look like an identity",
        "0771 001 -",
    ),
    "all in one folder": (["images/7_1.jpg", "images/8_1.jpg"], "images does not", "7 - -"),
    "one identity": (["shop/7_1.jpg", "shop/8_1.jpg"], "would be of one", "7 - -"),
    "names against folders": (
        ["train/day1/0001_c1.jpg", "train/day1/0002_c1.jpg"],
        "files in day1 are named like identities '0001' and '0002'",
        "0001 1 train",
    ),
}


@pytest.mark.parametrize("case", DOUBTFUL)
def test_a_doubtful_tree_is_refused_with_a_pattern_that_reads_it(case, tmp_path):
    names, why, expected = DOUBTFUL[case]
    root = write(tmp_path, names)
    with pytest.raises(ValueError) as error:
        read_tree(root)
    message = str(error.value)
    assert message.startswith(f"DATASETS.FOLDER.PATH {root}: ") and why in message
    pattern = re.search("DATASETS.FOLDER.PATTERN, .* for example '(.*)' ", message).group(1)
    assert of(root, read_tree(root, pattern))[min(names)] == expected


@pytest.mark.parametrize(
    "names, told",
    [
        (["Anna/1.jpg", "anna/2.jpg", "b/1.jpg"], "the identities 'Anna' and 'anna': are they one"),
        (["1/1.jpg", "001/1.jpg"], "the identities '001' and '1'"),
        (["a/cam1/1.jpg", "b/c01_1.jpg"], "the cameras '01' and 'cam1'"),
        (["query/a/1.jpg", "test/a/2.jpg"], "pictures in test, .* and in query"),
    ],
)
def test_names_that_may_mean_the_same_are_refused(names, told, tmp_path):
    with pytest.raises(ValueError, match=told):
        read_tree(write(tmp_path, names))


def test_links_are_followed_and_loops_end(tmp_path):
    write(tmp_path / "disk", ["anna/1.jpg"])
    (tmp_path / "root").mkdir()
    for name in ("berta", "cora"):
        (tmp_path / "root" / name).symlink_to(tmp_path / "disk" / "anna")
    (tmp_path / "disk" / "anna" / "around").symlink_to(tmp_path / "root")
    (tmp_path / "root" / ".thumbnails").mkdir()
    (tmp_path / "root" / "@eaDir").mkdir()
    found = read_tree(str(tmp_path / "root"))
    assert [picture.identity for picture in found.pictures] == ["berta", "cora"]
    assert found.left_out == {HIDDEN: [".thumbnails/", "@eaDir/"]}


def test_a_tree_that_is_not_understood(tmp_path):
    root = write(tmp_path, ["a/1.heic", "a.jpg", "b.jpg"])
    with pytest.raises(ValueError) as error:
        read_tree(root)
    message = str(error.value)
    assert message.startswith(f"DATASETS.FOLDER.PATH {root} has no picture that can be")
    assert "1 left out, the ending .heic is not read" in message
    assert "2 left out, no folder, and no name" in message and "such as a.jpg)" in message
    assert "Expected IDENTITY/picture.jpg" in message


@pytest.mark.parametrize(
    "pattern, told",
    [
        ("(", "is none: "),
        (r"(?P<identity>\w+)/(?P<cam>\w+)", "are: cam, identity."),
        (r"(?P<camera>\w+)/", "are: camera."),
    ],
)
def test_a_pattern_that_is_none(tmp_path, pattern, told):
    with pytest.raises(ValueError) as error:
        read_tree(write(tmp_path, ["a/1.jpg"]), pattern)
    assert str(error.value).startswith("DATASETS.FOLDER.PATTERN must be '' or a regular expression")
    assert told in str(error.value)


def table(tmp_path, text, encoding="utf-8"):
    write(tmp_path, ["a/1.jpg", "a/2.jpg", "b 1.png"])
    path = tmp_path / "list.csv"
    path.write_text(text, encoding=encoding)
    return str(path)


@pytest.mark.parametrize(
    "separator, encoding", [(",", "utf-8"), (";", "utf-8-sig"), ("\t", "utf-16")]
)
def test_tables(tmp_path, separator, encoding):
    lines = [
        "Split, PATH ,camera,identity,occluded",
        "train,a/1.jpg,left,anna,",
        "Query,a/2.jpg,,Ärger,yes",
        "",
        "gallery,a/2.jpg,,Ärger,YES",
        "gallery,./a/2.jpg,,Ärger,yes",
        "gallery,gone.jpg,,anna,0",
        "gallery,,,anna,",
        f"gallery,{tmp_path / 'b 1.png'},,-1,",
    ]
    path = table(tmp_path, "\r\n".join(lines).replace(",", separator), encoding)
    found = read_table(path)
    place = os.path.join(str(tmp_path), "a", "{}.jpg")
    assert found.pictures == [
        Picture(place.format(1), "anna", "left", "train", None),
        Picture(place.format(2), "Ärger", None, "query", True),
        Picture(place.format(2), "Ärger", None, "gallery", True),
    ]
    assert found.left_out == {
        "listed before": ["./a/2.jpg"],
        "no such file": ["gone.jpg"],
        "no path or no identity in the line": [f"{path}, line 8"],
        "identity -1: junk, as in Market-1501": [str(tmp_path / "b 1.png")],
    }


def test_tables_of_other_systems(tmp_path):
    """Excel's mark, quotes and separators in values, backslashes, case, accents, and no camera."""
    accents = unicodedata.normalize("NFD", "Bär")
    write(tmp_path, ["Shop/1.JPG", f"{accents}/2.jpg", "a;b.jpg", "x/Y.jpg", "x/y.jpg"])
    text = """sep=;
"path"; "identity";"camera"
shop\\1.jpg;anna;nan
Bär/2.jpg;Bär;-1
"a;b.jpg";"anna";" left "
x/y.JPG;anna;left
"""
    (tmp_path / "list.csv").write_bytes(text.replace("\\\\", "\\").encode().replace(b"\n", b"\r"))
    found = read_table(str(tmp_path / "list.csv"))
    assert of(tmp_path, found) == {
        "Shop/1.JPG": "anna - -",
        f"{accents}/2.jpg": "Bär - -",
        "a;b.jpg": "anna left -",
    }
    assert found.left_out == {"no such file": ["x/y.JPG"]}  # Y.jpg or y.jpg?


@pytest.mark.parametrize(
    "text, told",
    [
        ("", "but it is empty: there is no path and no identity."),
        ("path,pid\na/1.jpg,anna\n", "but it is path, pid: there is no identity."),
        ("path,identity,path\n", "names a column twice"),
        ("path,identity\na/1.jpg,Bär\n", "Save it as CSV UTF-8"),
        ("0001/1.jpg 0\n0001/2.jpg 0\n", "Expected a line such as path,identity,camera,split"),
        ("path,identity\na,b.jpg,anna\n", "line 2 has 3 values for 2 columns"),
        ("path,identity\na/1.jpg,a\na/2.jpg,A\n", "the identities 'A' and 'a': are they one"),
        ("path,identity\nx.jpg,anna\n", "1 left out, no such file (such as x.jpg)"),
        ("path,identity,split\na/1.jpg,anna,tain\n", "got 'tain'. Did you mean 'train'?"),
        (
            "path,identity,camera\na/1.jpg,anna,1\na/1.jpg,berta,1\n",
            "line 3 says identity berta by camera 1 of a/1.jpg, and an earlier line says identity "
            "anna by camera 1.",
        ),
    ],
)
def test_a_table_that_is_not_understood(tmp_path, text, told):
    with pytest.raises(ValueError) as error:
        read_table(table(tmp_path, text, "latin-1"))
    assert told in str(error.value)
    assert "list.csv" in str(error.value)


def test_a_column_that_nobody_reads_is_told(tmp_path, heard):
    from fastreid_rib.data import own_table

    said = heard(own_table.logger)
    read_table(table(tmp_path, "path,identity,cam\na/1.jpg,anna,1\n"))
    (line,) = said()
    assert line.startswith("Column 'cam' of ") and "Did you mean 'camera'?" in line


@settings(max_examples=40)
@given(
    counts=st.dictionaries(st.text(min_size=1, max_size=3), st.integers(1, 4), min_size=1),
    share=st.floats(0, 1),
)
def test_whole_identities_are_divided(counts, share):
    pictures = [
        Picture(f"{name}/{i}", name) for name, count in counts.items() for i in range(count)
    ]
    divided = divide(pictures, share)
    assert [p._replace(split=None) for p in divided] == pictures
    splits = {name: {p.split for p in divided if p.identity == name} for name in counts}
    assert all(len(found) == 1 for found in splits.values())
    tested = [name for name, found in splits.items() if found == {"test"}]
    several = [name for name, count in counts.items() if count > 1]
    assert len(tested) == min(len(several), round(share * len(counts)))
    assert set(tested) <= set(several)
    assert divide(list(reversed(pictures)), share) == list(reversed(divided))
