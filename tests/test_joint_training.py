"""Training on several data sets at once, in one process and in several."""

import json
import math

import pytest
import torch
from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.engine import DefaultTrainer

from fastreid_rib.data.synthetic import SyntheticReIDTiny
from fastreid_rib.data.synthetic_folder import generate

RIB = {
    "MODEL.LOSSES.NAME": ("CrossEntropy", "RIB"),
    "MODEL.LOSSES.RIB.WARMUP_EPOCHS": 1,
    "MODEL.HEADS.NUM_CLASSES": 0,
    "SOLVER.MAX_EPOCH": 2,
    "TEST.EVAL_PERIOD": 2,
    "DATALOADER.NUM_INSTANCE": 4,
}
BOTH = {"DATASETS.NAMES": ("SyntheticReIDTiny", "Market1501")}


@pytest.fixture(scope="module")
def market(tmp_path_factory):
    """A data root with a folder in Market-1501's layout, beside the other set."""
    root = tmp_path_factory.mktemp("joint")
    generate(str(root / "Market-1501-v15.09.15"), SyntheticReIDTiny.spec)
    return {"FASTREID_DATASETS": str(root)}


class _OneOfSeveral(SyntheticReIDTiny):
    """SetReWeightSampler takes the third field of an item for the number of its set."""

    number = 0

    def _train_items(self):
        items = super()._train_items()
        return [(path, f"set{self.number}_{pid}", self.number) for path, pid, _ in items]


@pytest.fixture
def numbered_sets():
    names = []
    for number in range(2):
        name = f"SyntheticSet{number}"
        DATASET_REGISTRY.register(
            type(name, (_OneOfSeveral,), {"number": number, "dataset_name": name})
        )
        names.append(name)
    yield tuple(names)
    for name in names:
        del DATASET_REGISTRY._obj_map[name]


def logged(folder, key):
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return [line[key] for line in lines if key in line]


def check(rib, identities, folder):
    assert rib.num_classes == identities
    assert len(rib.log_q) == len(rib.centroids) == identities
    assert (rib.class_counts > 0).sum() > identities / 2
    bounds = logged(folder, "loss_rib")
    # What is logged is FastReID's median over the last steps, half of which are without RIB.
    assert bounds[0] == 0 and -10 < bounds[-1] < 100
    assert -math.log(identities) <= logged(folder, "rib/bound")[-1] < 0
    assert logged(folder, "rib/mutual_information")[-1] > 0


def test_two_sets_weighted(make_small_cfg, numbered_sets, tmp_path):
    changes = {
        "DATASETS.NAMES": numbered_sets,
        "DATALOADER.SAMPLER_TRAIN": "SetReWeightSampler",
        "DATALOADER.SET_WEIGHT": [1, 1],
    }
    (tmp_path / "logs").mkdir()
    trainer = DefaultTrainer(make_small_cfg({**RIB, **changes}))
    trainer.train()
    check(trainer.model.rib, 16, tmp_path / "logs")


@pytest.mark.parametrize(
    ("ranks", "sampler"),
    [
        (2, "BalancedIdentitySampler"),
        pytest.param(4, "NaiveIdentitySampler", marks=pytest.mark.all_only),
    ],
)
def test_several_processes_train_on_all_of_two_sets(
    run_script, make_small_cfg, market, tmp_path, ranks, sampler
):
    """With the test identities of both; all ranks end with the same state."""
    changes = {
        "MODEL.LOSSES.NAME": ("CrossEntropy", "Triplet", "RIB"),
        **BOTH,
        "DATASETS.COMBINEALL": True,
        "DATALOADER.SAMPLER_TRAIN": sampler,
        "SOLVER.IMS_PER_BATCH": 32,
    }
    config = tmp_path / "config.yml"
    config.write_text(make_small_cfg({**RIB, **changes}).dump())
    run_script(
        "train_two_processes.py",
        "--config-file",
        config,
        "--num-gpus",
        ranks,
        env=dict(market, DUMP=str(tmp_path)),
    )
    states = [torch.load(tmp_path / f"rank{rank}.pth") for rank in range(ranks)]
    for state in states[1:]:
        assert state.keys() == states[0].keys()
        assert [key for key in state if not torch.equal(state[key], states[0][key])] == []
    # 8 identities for training and 6 for testing of each set.
    assert states[0]["rib.centroids"].shape[0] == 28
    # A row for each identity, and for each of its cameras where there are several.
    rows = int(states[0]["rib.camera_rows"].max()) + 1
    assert states[0]["rib.log_q"].shape == (rows, 28)
    assert rows > 28 and states[0]["rib.camera_rows"].shape == (28, len(states[0]["rib.cameras"]))
    assert states[0]["rib.bank_rows"].isfinite().all()
    assert logged(tmp_path / "logs", "rib/bound")[-1] != 0
