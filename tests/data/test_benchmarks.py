"""Occluded sets and CUHK03-NP in small made-up trees of their layout, whole and damaged."""

import os
import re
import shutil

import pytest
from fastreid.data import build
from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.engine import DefaultTrainer
from trees import in_market, market_names, small_market, write_picture, write_tree

from fastreid_rib import data
from fastreid_rib.data import benchmarks


def sides(folder, identities, parts, form):
    """Two pictures of each identity in each part, in a folder of the identity or beside."""
    return [
        f"{folder}/{part}/{form.format(identity=identity, shot=shot)}"
        for part in parts
        for identity in identities
        for shot in (1, 2)
    ]


OCCLUDED, WHOLE = "occluded_body_images", "whole_body_images"
P_DUKE = "{identity:04d}/{identity:04d}_c{shot}_f0046182.jpg"
OCCLUDED_DUKE = in_market(
    market_names([1, 4], (1, 8), form="_f{:07d}"),
    market_names([2, 3000], (2,), 1, form="_f{:07d}"),
    market_names([2, 5, 3000], (2, 8), form="_f{:07d}"),
    "Occluded_Duke",
)
REID, PARTIAL = "{identity:03d}/{identity:03d}_{shot:02d}.tif", "{identity:03d}_{shot:03d}.jpg"
SIDES = (OCCLUDED, WHOLE)
CUHK03 = ({1, 2, 3}, {11, 12, 13}), ({0, 1}, {0, 1})
LAYOUTS = {
    # name: (paths, (identities that train, that test), cameras of (query, gallery))
    "OccludedDuke": (OCCLUDED_DUKE, ({1, 4}, {2, 3000}), ({1}, {1, 7})),
    "OccludedREID": (
        sides("Occluded_REID", (1, 200), SIDES, REID),
        (set(), {1, 200}),
        ({0}, {1}),
    ),
    "PartialREID": (
        sides("Partial_REID", (1, 60), ("partial_body_images", *SIDES), PARTIAL),
        (set(), {1, 60}),
        ({0}, {1}),
    ),
    "POccludedDuke": (
        sides("P-DukeMTMC-reid/train", (1, 2), SIDES, P_DUKE)
        + sides("P-DukeMTMC-reid/test", (7, 5000), SIDES, P_DUKE),
        ({1, 2}, {7, 5000}),
        ({0}, {1}),
    ),
    "CUHK03NP": (small_market("cuhk03-np/detected", ending=".png", form="_{:d}"), *CUHK03),
    "CUHK03NPLabeled": (small_market("cuhk03-np/labeled", ending=".png", form="_{:d}"), *CUHK03),
}
LAYOUTS["PartialREIDOccluded"] = LAYOUTS["PartialREID"]
UNUSED = {"PartialREID": OCCLUDED, "PartialREIDOccluded": "partial_body_images"}
TEST_ONLY = ("OccludedREID", "PartialREID", "PartialREIDOccluded")


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_published_layout(name, tmp_path):
    names, (train, test), (query_cameras, gallery_cameras) = LAYOUTS[name]
    data = DATASET_REGISTRY.get(name)(root=write_tree(tmp_path, names))
    prefix = data.dataset_name
    assert {pid for _, pid, _ in data.train} == {f"{prefix}_{identity}" for identity in train}
    assert {pid for _, pid, _ in data.query} == test
    assert test <= {pid for _, pid, _ in data.gallery}
    assert {camera for *_, camera in data.query} == query_cameras
    assert {camera for *_, camera in data.gallery} == gallery_cameras
    items = data.train + data.query + data.gallery
    read = sorted(os.path.relpath(path, str(tmp_path)) for path, *_ in items)
    assert read == sorted(path for path in names if UNUSED.get(name, "none") not in path)
    for path, pid, _ in items:
        number = re.match(r"\d+", os.path.basename(path)).group()
        assert int(number) == int(str(pid).rpartition("_")[2])


@pytest.mark.parametrize("name", ["OccludedREID", "CUHK03NP"])
def test_it_is_evaluated_by_fastreid(name, tmp_path, monkeypatch, make_cfg, heard):
    names, *_ = LAYOUTS[name]
    monkeypatch.setattr(build, "_root", write_tree(tmp_path, names))
    said = heard(benchmarks.logger)
    cfg = make_cfg({"DATASETS.TESTS": (name,), "MODEL.BACKBONE.PRETRAIN": False})
    results = DefaultTrainer.test(cfg, DefaultTrainer.build_model(cfg).eval())
    assert 0 < results["mAP"] <= 100
    cls = DATASET_REGISTRY.get(name)
    counts = {part: cls.published[part] for part in ("query", "gallery")}
    assert [line.split(" pictures here, and ")[1] for line in said()] == [
        f"{count} as published: results do not compare." for count in counts.values()
    ]


@pytest.mark.parametrize("name", TEST_ONLY)
def test_a_test_set_does_not_train(name, tmp_path, monkeypatch, make_cfg):
    monkeypatch.setattr(build, "_root", write_tree(tmp_path, LAYOUTS[name][0]))
    with pytest.raises(ValueError) as error:
        DefaultTrainer.build_train_loader(make_cfg({"DATASETS.NAMES": (name,)}))
    assert f"{name} is a test set without training pictures" in str(error.value)
    assert "DATASETS.NAMES ('Market1501',)" in str(error.value)


def parts_of(name):
    """The folders that a layout needs."""
    places = {re.split(r"/\d+", path)[0] for path in LAYOUTS[name][0]}
    return sorted(place for place in places if not place.endswith(UNUSED.get(name, "-")))


@pytest.mark.parametrize(
    "name, part", [(name, part) for name in LAYOUTS for part in parts_of(name)]
)
def test_a_folder_that_is_missing_or_empty(name, part, tmp_path):
    root = write_tree(tmp_path, LAYOUTS[name][0])
    shutil.rmtree(tmp_path / part)
    with pytest.raises(RuntimeError) as error:
        DATASET_REGISTRY.get(name)(root=root)
    assert str(error.value).startswith(
        f'"{tmp_path / part}" is not found: {name} expects it there.'
    )
    (tmp_path / part).mkdir()
    with pytest.raises(ValueError, match=f"{name}: {re.escape(str(tmp_path / part))} "):
        DATASET_REGISTRY.get(name)(root=root)


@pytest.mark.parametrize("name, odd", [("OccludedREID", "copy of.jpg"), ("CUHK03NP", "IMG.jpg")])
def test_a_file_with_another_name(name, odd, tmp_path):
    names = LAYOUTS[name][0]
    root = write_tree(tmp_path, names)
    folder = os.path.dirname(next(n for n in names if "query" in n or WHOLE in n))
    write_picture(tmp_path / folder / odd.replace(".jpg", os.path.splitext(names[0])[1]))
    with pytest.raises(ValueError, match=f"{name}: the name of .*{odd.split('.')[0]}"):
        DATASET_REGISTRY.get(name)(root=root)


@pytest.mark.parametrize("name", ["OccludedREID", "POccludedDuke"])
def test_a_picture_in_the_folder_of_another(name, tmp_path):
    names = LAYOUTS[name][0]
    root = write_tree(tmp_path, names)
    moved = tmp_path / names[0]
    moved.rename(moved.parent / moved.name.replace("1", "9", 1))
    with pytest.raises(ValueError, match="the number of an identity, the one of its folder"):
        DATASET_REGISTRY.get(name)(root=root)


@pytest.mark.parametrize("name", LAYOUTS)
def test_other_places_and_endings(name, tmp_path):
    cls = DATASET_REGISTRY.get(name)
    names = LAYOUTS[name][0]
    expected = len(cls(root=write_tree(tmp_path / "first", names)).gallery)
    for number, place in enumerate(cls.folders[1:]):
        moved = [os.path.splitext(n.replace(cls.folders[0], place))[0] + ".PNG" for n in names]
        assert len(cls(root=write_tree(tmp_path / str(number), moved)).gallery) == expected


def test_a_project_s_data_set_of_the_same_name_is_taken(heard):
    said = heard(data.logger)
    entries = dict(DATASET_REGISTRY._obj_map)

    class PartialREID:
        """As projects/PartialReID of FastReID registers it."""

    try:
        DATASET_REGISTRY.register()(PartialREID)
        assert DATASET_REGISTRY.get("PartialREID") is PartialREID
        assert said() == [f"PartialREID of {__name__} is taken in place of fastreid-rib's."]
        data.register(entries["PartialREID"])  # loaded again: theirs stays
        assert DATASET_REGISTRY.get("PartialREID") is PartialREID
        with pytest.raises(AssertionError, match="already registered"):
            DATASET_REGISTRY.register(PartialREID)
    finally:
        DATASET_REGISTRY._obj_map.clear()
        DATASET_REGISTRY._obj_map.update(entries)
