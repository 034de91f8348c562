import pytest

from fastreid_rib.base import pictures
from fastreid_rib.base.pictures import (
    HIDDEN,
    Shot,
    missing,
    shot_of,
    shots_in,
    why_left_out,
)


@pytest.mark.parametrize(
    "name, said",
    [
        ("0001_c1s1_000001_00.jpg", (1, 1)),
        ("-1_c3s2_000401_03.jpg", (-1, 3)),
        ("person_12_c03.png", (12, 3)),
        ("anna.jpg", None),
        ("c1_0001.jpg", None),
        ("1-2_c1.jpg", None),
    ],
)
def test_names_as_in_market_1501(name, said):
    assert shot_of(name) == (said and Shot(name, *said))


@pytest.mark.parametrize(
    "name, why",
    [
        ("a.JPG", None),
        ("._c.jpg", HIDDEN),
        ("Thumbs.db", HIDDEN),
        ("d.jpg.txt", "the ending .txt is not read"),
        ("e", "a name without an ending is not read"),
    ],
)
def test_pictures_by_their_ending(name, why):
    assert why_left_out(name) == why


def test_a_folder_in_the_order_of_its_names(tmp_path, heard):
    said = heard(pictures.logger)
    for name in ("0002_c1.jpg", "0001_c2.JPG", "0001_c1.jpg", "0001_c1.png", "mask.png", "x.heic"):
        (tmp_path / name).write_bytes(b"")
    names = [shot.name for shot in shots_in(str(tmp_path), "Mine")]
    assert names == ["0001_c1.jpg", "0001_c2.JPG", "0002_c1.jpg"]
    assert said() == [
        f"Mine: of {tmp_path} 2 left out, beside .jpg pictures, without a name like theirs or with "
        "that of one (such as 0001_c1.png).",
        f"Mine: of {tmp_path} 1 left out, the ending .heic is not read (such as x.heic).",
    ]


def test_what_is_missing_is_told_with_what_is_there(tmp_path):
    for name in "abcdefghij":
        (tmp_path / name).mkdir()
    message = missing(str(tmp_path / "data" / "query"), "Mine", ("query", "gallery"))
    assert message.startswith(
        f'"{tmp_path / "data" / "query"}" is not found: Mine expects it there.'
    )
    assert (
        f"It needs query, gallery. {tmp_path} holds a, b, c, d, e, f, g, h and 2 more." in message
    )
