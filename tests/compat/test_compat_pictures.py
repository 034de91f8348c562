"""Colour modes, files that cannot be read, and test sets that answer themselves."""

import os
from pathlib import Path

import numpy as np
import pytest
from fastreid.data import build
from fastreid.data.data_utils import read_image
from fastreid.engine import DefaultTrainer
from PIL import Image
from trees import MARKET, small_market, write_tree

from fastreid_rib.compat import pictures

RGB = np.kron(np.random.RandomState(0).randint(0, 256, (4, 2, 3)), np.ones((8, 8, 1), int))
RGB = RGB.astype(np.uint8)
GREY = np.asarray(Image.fromarray(RGB).convert("L"))
CLEAR = np.dstack([RGB, np.full(GREY.shape, 60, np.uint8)])


def repeated(grey):
    return np.repeat(grey[..., None], 3, axis=2)


def of_16_bits(byte_order="<u2"):
    return Image.fromarray((GREY.astype(np.int64) * 257).astype(byte_order))


READ = {
    # case: (file, picture, how it is saved, pixels that have to come)
    "RGB": ("a.png", Image.fromarray(RGB), {}, RGB),
    "L": ("a.png", Image.fromarray(GREY), {}, repeated(GREY)),
    "RGBA": ("a.png", Image.fromarray(CLEAR), {}, RGB),
    "LA": ("a.png", Image.fromarray(GREY).convert("LA"), {}, repeated(GREY)),
    "1": ("a.png", Image.fromarray(GREY > 99), {}, repeated(255 * (GREY > 99))),
    "P": ("a.png", Image.fromarray(RGB).quantize(), {}, RGB),
    "P, transparent": ("a.png", Image.fromarray(RGB).quantize(), {"transparency": bytes(8)}, RGB),
    "CMYK": ("a.tif", Image.fromarray(RGB).convert("CMYK"), {}, RGB),
    "16 bits": ("a.png", of_16_bits(), {}, repeated(GREY)),
    "16 bits, TIFF": ("a.tif", of_16_bits(), {}, repeated(GREY)),
    "16 bits, big-endian": ("a.tif", of_16_bits(">u2"), {}, repeated(GREY)),
    "gif": ("a.gif", Image.fromarray(RGB).quantize(), {}, RGB),
    "webp": ("a.webp", Image.fromarray(CLEAR), {"lossless": True, "exact": True}, RGB),
    "PNG data in .jpg": ("a.jpg", Image.fromarray(RGB), {"format": "PNG"}, RGB),
}


@pytest.mark.parametrize("case", READ)
def test_every_mode_is_read_as_the_same_in_rgb(case, tmp_path):
    name, image, how, expected = READ[case]
    path = str(tmp_path / name)
    image.save(path, **how)
    came = read_image(path)
    assert came.mode == "RGB"
    assert abs(np.asarray(came).astype(int) - expected).max() <= 3


def test_modes_that_few_files_have():
    for mode in ("YCbCr", "RGBX", "HSV", "RGBa"):
        image = Image.fromarray(RGB).convert("RGBA" if mode == "RGBa" else "RGB").convert(mode)
        assert abs(np.asarray(pictures.as_rgb(image)).astype(int) - RGB).max() <= 8, mode
    assert pictures.as_rgb(Image.new("LAB", (2, 2))).mode == "RGB"


def test_of_several_frames_the_first_is_read(tmp_path, heard):
    said = heard(pictures.logger)
    path = str(tmp_path / "a.webp")
    frames = [Image.fromarray(RGB), Image.fromarray(RGB[::-1].copy())]
    frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
    assert abs(np.asarray(read_image(path)).astype(int) - RGB).max() <= 3
    pictures.check_pictures([(path, 0, 0)], {})
    assert said()[1:] == [f"1 pictures have several frames, such as {path}: the first one is read."]


@pytest.mark.parametrize("mode, kind", [("RGB", "jpg"), ("RGBA", "png")])
def test_pictures_that_lie_are_set_upright(mode, kind, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    path = str(tmp_path / f"a.{kind}")
    how = {"quality": 100, "subsampling": 0} if kind == "jpg" else {}
    Image.fromarray(RGB).convert(mode).save(path, exif=exif, **how)
    came = np.asarray(read_image(path)).astype(int)
    assert came.shape == (16, 32, 3)
    assert abs(came - np.rot90(RGB, -1)).mean() < 4


@pytest.mark.parametrize(
    "name, values, told",
    [
        ("a.tif", GREY.astype(np.float32), "mode F. have no known range"),
        ("a.tif", GREY.astype(np.int32), "mode I. have no known range"),
        ("a.png", GREY.astype(np.uint16), "brightest value is [0-9]+ of 65535 .16 bits."),
        ("a.png", (GREY.astype(np.uint16) * 15), "the range in use is not known"),
    ],
)
def test_values_of_an_unknown_range_are_refused(name, values, told, tmp_path):
    path = str(tmp_path / name)
    Image.fromarray(values).save(path)
    with pytest.raises(OSError, match=f"{path} cannot be read: .*{told}.*Convert it to 8 bits"):
        read_image(path)
    Image.fromarray(values * 0).save(path)  # black is black in any range
    if name == "a.png":
        assert not np.asarray(read_image(path)).any()


def cut(path, left=0.5):
    os.truncate(path, int(os.path.getsize(path) * left))


DAMAGE = {
    "missing": (os.remove, "the picture is missing"),
    "empty": (lambda path: cut(path, 0), "the picture is empty"),
    "cut short": (cut, "the picture is damaged .*[Tt]runcated"),
    "text": (lambda path: Path(path).write_text("<html>"), "the picture is damaged .*identify"),
}


@pytest.fixture
def market(tmp_path, monkeypatch):
    root = write_tree(tmp_path, small_market())
    monkeypatch.setattr(build, "_root", root)
    return tmp_path / MARKET


BOTH = {
    "DATASETS.NAMES": ("Market1501",),
    "DATASETS.TESTS": ("Market1501",),
    "SOLVER.IMS_PER_BATCH": 4,
    "DATALOADER.NUM_INSTANCE": 2,
    "MODEL.BACKBONE.PRETRAIN": False,
    "MODEL.HEADS.NUM_CLASSES": 3,
}


@pytest.mark.usefixtures("as_after_setup")
def test_damaged_pictures_are_named_before_training(market, make_cfg, tmp_path):
    damaged = []
    for (name, (damage, told)), part in zip(
        DAMAGE.items(), ("bounding_box_train", "query", "bounding_box_test", "query")
    ):
        path = str(sorted((market / part).iterdir())[len(name) % 3])
        damaged.append(f"{path} cannot be read: {told}")
        if name == "missing":
            Path(path).unlink()
            Path(path).symlink_to(tmp_path / "gone.jpg")
        else:
            damage(path)
    with pytest.raises(OSError) as error:
        DefaultTrainer(make_cfg(BOTH))
    assert str(error.value).startswith("4 of 24 pictures cannot be used, found before training. ")
    for place in damaged:
        error.match(place)


def test_a_data_root_that_vanishes(tmp_path):
    told = f"cannot be read: {tmp_path}/gone is gone: is the disk .*FASTREID_DATASETS"
    with pytest.raises(OSError, match=told):
        read_image(str(tmp_path / "gone" / "0001_c1s1_000001_00.jpg"))


@pytest.fixture
def copies(tmp_path):
    """``copies("abc")``: pictures with these contents; returns the paths."""

    def write(contents):
        paths = []
        for place, content in enumerate(contents):
            paths.append(str(tmp_path / f"{place}{content}.png"))
            Image.fromarray(np.full((4, 4, 3), ord(content), np.uint8)).save(paths[-1])
        return paths

    return write


def test_test_sets_that_answer_themselves_are_told(copies, heard):
    said = heard(pictures.logger)
    a, b, c, d, *gallery = copies("abcdabce")
    train = [(d, "x", 0), (gallery[3], "y", 0), (gallery[0], "x", 0), (a, "z", 0)]
    queries = [(a, 1, 0), (b, 2, 0), (c, 3, 0), (d, 4, 0)]
    # of a by another camera, of b by the same, of c under another identity; d is both by design
    kept = [(gallery[0], 1, 1), (gallery[1], 2, 0), (gallery[2], 9, 1), (d, 4, 0)]
    pictures.check_pictures(train, {"Mine": (queries, kept)})
    assert [line.split(" (such as")[0] for line in said()[1:]] == [
        "1 training pictures are the same as one of another identity",
        "Mine: 3 of 7 test pictures are training pictures, too: the results will look better than "
        "they are",
        "Mine: 1 of 4 queries have a copy in the gallery that counts as a right answer: the "
        "results look better than they are",
        "Mine: 1 of 4 queries have a copy in the gallery that counts as wrong: it has another "
        "identity",
    ]


def test_data_sets_that_read_in_a_way_of_their_own_are_left_alone():
    from fastreid.data.common import CommDataset
    from torch.utils.data import DataLoader

    class Packed(CommDataset):
        def __getitem__(self, index):
            return index

    items = [("a.jpg", 0, 0)]
    assert pictures.listed(DataLoader(Packed(items)), as_files=True) is None
    assert pictures.listed(DataLoader(Packed(items))) == items
    assert pictures.listed(DataLoader(CommDataset(items)), as_files=True) == items
    assert pictures.listed(None) is None
