"""A checkpoint for FastReID without the plugin."""

import os
import re
import shutil

import pytest
import torch
from fastreid.config import get_cfg
from fastreid.modeling import build_model
from fastreid.utils.checkpoint import Checkpointer
from fastreid.utils.events import EventStorage

from fastreid_rib.__main__ import main
from fastreid_rib.commands import read_config
from fastreid_rib.integration.attention import part_head
from fastreid_rib.integration.training_set import in_batches, training_pictures
from fastreid_rib.losses import gaussian_bottleneck

RIB = {
    "MODEL.LOSSES.NAME": ("CrossEntropy", "Triplet", "RIB"),
    "MODEL.LOSSES.RIB.WARMUP_EPOCHS": 1,
    "MODEL.BACKBONE.PRETRAIN": False,
    "MODEL.LOSSES.RIB.BETA": 30.0,
    "SEED": 3,
}
STOCK = """
import sys
import torch
from fastreid.config import get_cfg
from fastreid.modeling import build_model
from fastreid.utils.checkpoint import Checkpointer
asleep = {"fastreid_rib." + name for name in ("activation", "base")}
assert {name for name in sys.modules if name.startswith("fastreid_rib.")} <= asleep
folder, images, embeddings = sys.argv[1:]
cfg = get_cfg()
cfg.merge_from_file(folder + "/config.yaml")
model = build_model(cfg).eval()
incompatible = []
Checkpointer._log_incompatible_keys = lambda self, keys: incompatible.append(keys)
Checkpointer(model).load(folder + "/model_final.pth")
assert not any(incompatible[0]), incompatible
with torch.no_grad():
    torch.save(model({"images": torch.load(images)}), embeddings)
"""


def images(seed=0):
    return torch.rand(8, 3, 64, 32, generator=torch.Generator().manual_seed(seed)) * 255


@pytest.fixture
def trained(make_cfg, tmp_path):
    """A training's output folder: model_final.pth and config.yaml. And its model."""

    def train(changes=None):
        cfg = make_cfg({**RIB, **(changes or {})})
        model = build_model(cfg).train()
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        with EventStorage() as storage:
            for epoch in (0, 1):
                storage.epoch = epoch
                losses = model({"images": images(epoch), "targets": torch.arange(8) // 2})
                sum(losses.values()).backward()
                optimizer.step()
        folder = tmp_path / "trained"
        folder.mkdir()
        Checkpointer(model, str(folder), optimizer=optimizer).save("model_final", epoch=1)
        (folder / "config.yaml").write_text(cfg.dump())
        return folder, model.eval()

    return train


def test_fastreid_alone_gives_the_same_embeddings(trained, tmp_path, run_script, capsys):
    folder, model = trained()
    out = tmp_path / "exported"
    assert main(["export", str(folder / "model_final.pth"), "--output", str(out)]) == 0
    said = capsys.readouterr().out
    size = sum(v.numel() * v.element_size() for v in model.rib.state_dict().values())
    tensors = len(model.rib.state_dict())
    assert f"left out: RIB's state, {size / 1e6:.1f} MB in {tensors} tensors" in said
    assert "('CrossEntropyLoss', 'TripletLoss')" in said and "warning" not in said
    written = (out / "config.yaml").read_text()
    assert "RIB" not in written and "SEED" not in written and "ATTENTION" not in written
    content = torch.load(out / "model_final.pth")
    assert set(content) == {"model", "optimizer", "epoch"}
    assert list(content["model"]) == [k for k in model.state_dict() if not k.startswith("rib.")]

    with torch.no_grad():
        expected = model({"images": images(9)})
    assert torch.equal(by_fastreid_alone(out, tmp_path, run_script), expected)


def by_fastreid_alone(out, folder, run_script):
    """What FastReID without the plugin gives for ``images(9)`` from what was exported."""
    torch.save(images(9), folder / "images.pth")
    arguments = [out, folder / "images.pth", folder / "embeddings.pth"]
    run_script("-W", "ignore", "-c", STOCK, *arguments, env={"FASTREID_RIB_DISABLE": "1"})
    return torch.load(folder / "embeddings.pth")


def test_the_vector_before_the_neck_is_what_fastreid_alone_gives(
    trained, tmp_path, run_script, capsys
):
    folder, model = trained({"TEST.NECK_FEAT": "before"})
    out = tmp_path / "exported"
    assert main(["export", str(folder / "model_final.pth"), "--output", str(out)]) == 0
    assert "the neck is left out" in capsys.readouterr().out
    assert set(torch.load(out / "model_final.pth")) == {"model"}  # an optimizer's does not fit
    with torch.no_grad():
        expected = model({"images": images(9)})
    assert torch.equal(by_fastreid_alone(out, tmp_path, run_script), expected)


@pytest.mark.parametrize("dim", [0, 256])
def test_a_projection_is_what_fastreid_alone_gives(dim, trained, tmp_path, run_script, capsys):
    """Of the pooled map, or of what a neck has made of it already."""
    folder, model = trained({"MODEL.HEADS.EMBEDDING_DIM": dim, "TEST.NECK_FEAT": "before"})
    out = tmp_path / "exported"
    command = ["export", str(folder / "model_final.pth"), "--output", str(out)]
    assert main([*command, "--embedding-dim", "6"]) == 0
    assert f"embedding: 6 numbers, a projection of {dim or 512}" in capsys.readouterr().out
    found = by_fastreid_alone(out, tmp_path, run_script)

    cfg = read_config(str(folder / "config.yaml"))
    batches = list(in_batches(training_pictures(cfg), cfg))
    convolution = model.heads.bottleneck[0] if dim else torch.nn.Identity()

    def before_norm(batch):
        with torch.no_grad():
            return convolution(model(batch)[..., None, None]).flatten(1)

    rows = torch.cat([before_norm(batch) for batch in batches])
    labels = torch.cat([batch["targets"] for batch in batches])
    mean, projection = gaussian_bottleneck(rows, labels, 6)
    expected = (before_norm({"images": images(9)}) - mean) @ projection
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_a_projection_of_another_classifier_and_another_norm(trained, tmp_path, run_script, capsys):
    """Of 20 classes, of which the pictures show 8; FastReID's own neck holds a batch norm."""
    folder, _ = trained({"MODEL.HEADS.NUM_CLASSES": 20, "MODEL.HEADS.NORM": "GN"})
    out = tmp_path / "exported"
    command = ["export", str(folder / "model_final.pth"), "--output", str(out)]
    assert main([*command, "--embedding-dim", "0"]) == 0
    embedded = by_fastreid_alone(out, tmp_path, run_script)
    assert embedded.shape == (8, 512)
    content = torch.load(out / "model_final.pth")["model"]
    assert content["heads.weight"].shape == (8, 512)
    assert "NORM: BN" in (out / "config.yaml").read_text()


def test_a_projection_of_own_pictures(trained, tmp_path, capsys):
    from fastreid_rib.data.synthetic import SyntheticReIDTiny

    pictures = tmp_path / "people"
    for path, *_ in SyntheticReIDTiny(root=os.environ["FASTREID_DATASETS"]).train:
        person, name = os.path.basename(path).split("_", 1)
        (pictures / person).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, pictures / person / name)
    own = {"DATASETS.NAMES": ("FolderReID",), "DATASETS.TESTS": ("FolderReID",)}
    folder, _ = trained({**own, "DATASETS.FOLDER.PATH": str(pictures)})
    out = tmp_path / "exported"
    command = ["export", str(folder / "model_final.pth"), "--output", str(out)]
    assert main([*command, "--embedding-dim", "0"]) == 0
    assert "embedding: 512 numbers" in capsys.readouterr().out
    assert "FOLDER:" not in (out / "config.yaml").read_text()


def test_parts_stay_with_the_plugin_or_become_a_projection(trained, tmp_path, run_script, capsys):
    folder, model = trained({"MODEL.HEADS.NAME": "PartHead", "TEST.NECK_FEAT": "before"})
    cfg = read_config(str(folder / "config.yaml"))
    part_head.fit(cfg, model)
    path = str(folder / "model_final.pth")
    Checkpointer(model, str(folder)).save("model_final")
    out = tmp_path / "with the plugin"
    assert main(["export", path, "--output", str(out)]) == 0
    said = capsys.readouterr().out
    assert "warning: the head is PartHead" in said and "the neck is left out" not in said
    again = build_model(read_config(str(out / "config.yaml"))).eval()
    again.load_state_dict(torch.load(out / "model_final.pth")["model"])
    with torch.no_grad():
        assert torch.equal(again({"images": images(9)}), model({"images": images(9)}))

    out = tmp_path / "without"
    assert main(["export", path, "--output", str(out), "--embedding-dim", "0"]) == 0
    assert "PartHead" not in capsys.readouterr().out + (out / "config.yaml").read_text()
    assert by_fastreid_alone(out, tmp_path, run_script).shape == (8, 512)


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, ["--embedding-dim", "8"], r"dim must be in 0\.\.7, as 8 identities .*, got 8"),
        ({"MODEL.HEADS.NAME": "ClasHead"}, ["--embedding-dim", "6"], "one EmbeddingHead, and"),
        (
            {"MODEL.HEADS.EMBEDDING_DIM": 256, "TEST.NECK_FEAT": "before"},
            [],
            "Write TEST.NECK_FEAT 'after'",
        ),
    ],
)
def test_a_neck_that_cannot_be_made(changes, options, message, trained, tmp_path, capsys):
    folder, _ = trained(changes)
    out = tmp_path / "exported"
    command = ["export", str(folder / "model_final.pth"), "--output", str(out)]
    assert main([*command, *options]) == 1
    assert re.search(message, capsys.readouterr().out) and not out.exists()


def test_attention_stays_and_is_told(trained, tmp_path, capsys):
    se = {"MODEL.ATTENTION.NAME": "SE", "MODEL.ATTENTION.REDUCTION": 8}
    folder, model = trained({**se, "MODEL.LOSSES.NAME": ("RIB",)})
    out = tmp_path / "exported"
    assert main(["export", str(folder / "model_final.pth"), "--output", str(out)]) == 0
    said = capsys.readouterr().out
    assert "warning: the network has attention (SE at head)" in said and "plugin only" in said
    assert "note: RIB was the only loss" in said
    written = (out / "config.yaml").read_text()
    assert "NAME: SE" in written and "REDUCTION: 8" in written and "RIB" not in written
    assert any(".attention." in key for key in torch.load(out / "model_final.pth")["model"])


NARROW = {
    "MODEL.BACKBONE.NAME": "build_searched_backbone",
    "MODEL.BACKBONE.DEPTH": "0.25x",
    "MODEL.SEARCH.WIDTHS": (20, 32, 96, 136),
}


def test_a_searched_network_keeps_its_widths_and_is_told(trained, tmp_path, capsys):
    folder, model = trained(NARROW)
    out = tmp_path / "exported"
    assert main(["export", str(folder / "model_final.pth"), "--output", str(out)]) == 0
    assert "warning: the network is one of MODEL.SEARCH" in capsys.readouterr().out
    cfg = get_cfg()
    cfg.merge_from_file(str(out / "config.yaml"))
    again = build_model(cfg).eval()
    again.load_state_dict(torch.load(out / "model_final.pth")["model"])
    with torch.no_grad():
        assert torch.equal(again({"images": images(9)}), model({"images": images(9)}))


def test_a_supernet_is_not_exported(trained, tmp_path, capsys):
    folder, _ = trained({**NARROW, "MODEL.SEARCH.WIDTHS": (), "MODEL.SEARCH.ENABLED": True})
    out = tmp_path / "exported"
    assert main(["export", str(folder / "model_final.pth"), "--output", str(out)]) == 1
    assert "is of a search" in capsys.readouterr().out and not out.exists()


def test_nothing_is_overwritten(trained, tmp_path, capsys):
    folder, _ = trained()
    out, path = tmp_path / "exported", folder / "model_final.pth"
    out.mkdir()
    (out / "config.yaml").write_text("mine")
    assert main(["export", str(path), "--output", str(out)]) == 1
    assert f"{out / 'config.yaml'} is there already" in capsys.readouterr().out
    assert os.listdir(out) == ["config.yaml"] and (out / "config.yaml").read_text() == "mine"
    # Nor the training's own, which has the same names.
    before = path.read_bytes()
    assert main(["export", str(path), "--output", str(folder)]) == 1
    assert path.read_bytes() == before


def test_what_cannot_be_exported_is_named(trained, tmp_path, capsys):
    folder, _ = trained()
    checkpoint, out = folder / "model_final.pth", str(tmp_path / "exported")

    def fails(*arguments):
        assert main(["export", *map(str, arguments), "--output", out]) == 1
        assert not os.path.exists(out)
        return capsys.readouterr().out

    assert "no.pth" in fails(tmp_path / "no.pth", "--config-file", folder / "config.yaml")
    assert "nowhere.yaml" in fails(checkpoint, "--config-file", tmp_path / "nowhere.yaml")
    os.truncate(checkpoint, 10000)
    assert "truncated" in fails(checkpoint)
    torch.save({"weights": torch.zeros(2)}, checkpoint)
    assert "no checkpoint of FastReID" in fails(checkpoint)
