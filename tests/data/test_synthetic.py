import os
import subprocess
import sys

import numpy as np
import pytest
from fastreid.data.common import CommDataset
from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.data.datasets.market1501 import Market1501

import fastreid_rib  # noqa: F401  arms the repairs that importing fastreid.data needs today
from fastreid_rib.data.synthetic import SyntheticReID, SyntheticReIDLarge, SyntheticReIDTiny
from fastreid_rib.data.synthetic_folder import TRAIN, plan


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return str(tmp_path_factory.mktemp("datasets"))


@pytest.fixture(scope="module")
def tiny(root):
    return DATASET_REGISTRY.get("SyntheticReIDTiny")(root=root, combineall=False)


def test_all_are_registered_once():
    for dataset in (SyntheticReID, SyntheticReIDTiny, SyntheticReIDLarge):
        assert DATASET_REGISTRY.get(dataset.__name__) is dataset


def test_the_large_one_trains_on_the_same_pictures():
    def training(dataset):
        return [shot for shot in plan(dataset.spec) if shot.subset == TRAIN]

    assert training(SyntheticReIDLarge) == training(SyntheticReID)
    assert len(plan(SyntheticReIDLarge.spec)) == 2400 + 400 * (3 + 8) + 200


def test_importing_the_module_alone_is_enough_and_harmless_twice():
    # it is what loads FastReID here, so the hook meets the module half made
    code = (
        "import importlib, fastreid_rib.data.synthetic as synthetic\n"
        "importlib.reload(synthetic)\n"
        "from fastreid.data.datasets import DATASET_REGISTRY\n"
        "print(DATASET_REGISTRY.get('SyntheticReID').__name__)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True
    )
    assert out.stdout.split()[-1] == "SyntheticReID"


def test_training_items_carry_names(tiny):
    assert len(tiny.train) == 8 * 8
    path, pid, camera = tiny.train[0]
    assert os.path.exists(path)
    assert (pid, camera[:-1]) == ("SyntheticReIDTiny_1", "SyntheticReIDTiny_")
    assert tiny.get_num_pids(tiny.train) == 8


def test_queries_and_gallery_carry_numbers(tiny):
    assert (len(tiny.query), len(tiny.gallery)) == (6 * 2, 6 * 4 + 4)
    assert {pid for _, pid, _ in tiny.query} == set(range(9, 15))
    assert {pid for _, pid, _ in tiny.gallery} == {0, *range(9, 15)}
    assert {camera for _, _, camera in tiny.query + tiny.gallery} <= set(range(6))


def test_fastreid_reads_the_pictures(tiny):
    item = CommDataset(tiny.train, relabel=True)[5]
    assert np.asarray(item["images"]).shape == (64, 32, 3)
    assert (item["targets"], item["img_paths"]) == (0, tiny.train[5][0])


def test_combineall_leaves_the_distractors_out(root, tiny):
    combined = SyntheticReIDTiny(root=root, combineall=True)
    assert len(combined.train) == len(tiny.train) + len(tiny.query) + 6 * 4


def test_market1501_of_fastreid_reads_the_folder(root, tiny, tmp_path):
    os.symlink(os.path.abspath(tiny.data_dir), str(tmp_path / "Market-1501-v15.09.15"))
    market = Market1501(root=str(tmp_path))

    def facts(items):
        return sorted(
            (os.path.basename(path), str(pid).split("_")[-1], str(camera).split("_")[-1])
            for path, pid, camera in items
        )

    for subset in ("train", "query", "gallery"):
        assert facts(getattr(market, subset)) == facts(getattr(tiny, subset))
