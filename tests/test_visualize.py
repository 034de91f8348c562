"""The page of pictures: maps where they belong, ranks that are true, errors that say what to do."""

import base64
import io
import os
import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import torch
from fastreid.modeling import build_model
from fastreid.modeling.heads import EmbeddingHead
from fastreid.modeling.meta_arch import Baseline
from PIL import Image
from torch import nn

from fastreid_rib.attention import DCSAttention
from fastreid_rib.data.synthetic import SyntheticReIDTiny
from fastreid_rib.integration.attention import insertion

TOOLS = Path(__file__).resolve().parent.parent / "tools"
DCS = {
    "MODEL.ATTENTION.NAME": "DCS",
    "MODEL.ATTENTION.PLACEMENT": ("layer3", "head"),
    "MODEL.ATTENTION.WIDTH": 16,
}
VIT = {
    "MODEL.BACKBONE.NAME": "build_vit_backbone",
    "MODEL.BACKBONE.DEPTH": "small",
    "MODEL.BACKBONE.FEAT_DIM": 768,
    "MODEL.BACKBONE.STRIDE_SIZE": (16, 16),
    "MODEL.ATTENTION.NAME": "DCS",
    "MODEL.ATTENTION.PLACEMENT": ("blocks",),
    "MODEL.ATTENTION.MASK_BIAS": 1.0,
}
MGN = {
    "MODEL.META_ARCHITECTURE": "MGN",
    "MODEL.BACKBONE.DEPTH": "50x",
    "MODEL.BACKBONE.FEAT_DIM": 2048,
    "MODEL.HEADS.EMBEDDING_DIM": 16,
    "INPUT.SIZE_TEST": [96, 32],  # three stripes want a map of a height that three divides
}


@pytest.fixture(autouse=True)
def tools(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))


@pytest.fixture
def tool(tools):
    import visualize_attention

    return visualize_attention


@pytest.fixture
def saved(make_cfg, tmp_path):
    """Saves a seeded model of a config; returns it and its part of the command line."""

    def save(name, changes=None, change=None, extra=()):
        torch.manual_seed(0)
        cfg = make_cfg(changes)
        network = build_model(cfg).eval()
        if change is not None:
            change(network)
        config, weights = tmp_path / f"{name}.yml", tmp_path / f"{name}.pth"
        config.write_text(cfg.dump())
        torch.save({"model": dict(network.state_dict(), **dict(extra))}, str(weights))
        return network, ["--config-file", str(config), "--weights", str(weights)]

    return save


@pytest.fixture
def refused(tool, capsys):
    """The message that a command line ends with."""

    def run(*arguments):
        with pytest.raises(SystemExit) as exit_:
            tool.main([str(argument) for argument in arguments])
        message = exit_.value.code
        return capsys.readouterr().err if message == 2 else message

    return run


CELL = re.compile(
    r'<t[dh](?: class="(\w+)")?>(?:<img src="data:image/png;base64,([^"]+)"[^>]*>)?(.*?)</t[dh]>'
)


def read_page(path):
    """Of each picture of each row its kind, text and image; and the table of numbers."""
    rows, numbers = [], []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        cells = CELL.findall(line) if line.startswith("<tr") else []
        if any(data for _, data, _ in cells):
            shown = [(kind, unescape(text), data and decode(data)) for kind, data, text in cells]
            rows.append(shown)
        elif cells:
            numbers.append([unescape(text) for *_, text in cells])
    return rows, numbers


def decode(data):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def tiny_set():
    return SyntheticReIDTiny(root=os.environ["FASTREID_DATASETS"])


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"))


def embed(network, paths):
    """Embeddings of files that have the model's size already."""
    images = np.stack([pixels(path) for path in paths]).transpose(0, 3, 1, 2)
    with torch.no_grad():
        return nn.functional.normalize(network(torch.tensor(images).float())).numpy()


def person(path):
    """Identity and camera, from the name that FastReID's readers go by."""
    pid, camera = re.match(r"(\d+)_c(\d)", Path(path).name).groups()
    return int(pid), int(camera)


def test_baseline_and_rib_stand_together_and_the_marks_are_true(tool, saved, tmp_path, capsys):
    rib = dict(DCS, **{"MODEL.LOSSES.NAME": ("CrossEntropy", "RIB")})
    statistics = {"rib.centroids": torch.rand(8, 512)}  # of the training, and of no use here
    networks = {}
    command = ["--count", "3", "--top-k", "4", "--output", str(tmp_path / "out" / "page")]
    for name, changes, extra in (("baseline", None, ()), ("rib", rib, statistics)):
        networks[name], part = saved(name, changes, extra=extra)
        command += part
    tool.main(command)
    rows, numbers = read_page(tmp_path / "out" / "page.html")
    out, err = capsys.readouterr()
    assert "page.png" in out and "page.html" in out
    assert "100%" in err  # progress

    # One image after the other, a row a model; the galleries stand in one column, behind a gap.
    assert [row[0][1] for row in rows] == ["baseline", "rib"] * 3
    kinds = [[kind for kind, *_ in row[1:]] for row in rows]
    assert [k.count("map") for k in kinds] == [2, 6] * 3 and kinds[0][2:6] == [""] * 4
    titles = [text.split(" ")[0] for _, text, _ in rows[1][3:7]]
    assert titles == ["attention", "channels"] * 2

    data = tiny_set()
    queries, gallery = ([item[0] for item in part] for part in (data.query, data.gallery))
    shown = [queries[i * len(queries) // 3] for i in range(3)]
    rights = 0
    for i, row in enumerate(rows):
        query, network = shown[i // 2], networks[row[0][1]]
        assert np.array_equal(row[1][2], pixels(query))
        similarity = embed(network, gallery) @ embed(network, [query])[0]
        pid, camera = person(query)
        order = [gallery[j] for j in np.argsort(-similarity) if person(gallery[j]) != (pid, camera)]
        right = [person(path)[0] == pid for path in order]
        cells = row[-4:]
        assert [kind for kind, *_ in cells] == ["right" if r else "wrong" for r in right[:4]]
        for (kind, text, picture), path in zip(cells, order):
            assert np.array_equal(picture, pixels(path))
            assert text.startswith("\u2713" if kind == "right" else "\u2717")
            assert int(text.split()[1]) == person(path)[0]
        assert f"first right: {right.index(True) + 1}" in row[1][1]
        rights += sum(right[:4])
    assert 0 < rights < 24

    text = (tmp_path / "out" / "page.html").read_text()  # it refers to nothing outside it
    assert not re.search(r"<script|<link|@import|url\(|(src|href)=\"(?!data:)", text)
    assert [line[:2] for line in numbers[1:]] == [["rib", "layer3"], ["rib", "head"]]
    with Image.open(tmp_path / "out" / "page.png") as png:
        assert png.height > 6 * 2 * png.width / 11  # six rows of pictures twice as high as wide


def test_each_image_gets_its_own_maps_and_needs_no_data_set(tool, saved, tmp_path, monkeypatch):
    from visualize import page
    from visualize.maps import explain

    monkeypatch.setattr(tool, "BATCH", 2)
    network, part = saved("dcs", dict(DCS, **{"DATASETS.TESTS": ("Market1501",)}))
    paths = [item[0] for item in tiny_set().query[:3]]
    tool.main([*part, "--images", *paths, "--top-k", "0", "--output", str(tmp_path / "page")])
    for row, path in zip(read_page(tmp_path / "page.html")[0], paths):
        image = torch.tensor(pixels(path)).permute(2, 0, 1).float()
        maps = explain(network, image[None]).maps
        assert len(row) == 2 + len(maps) == 7
        for (_, text, drawn), shown in zip(row[2:], maps):
            assert shown.title in text
            expected = page.overlay(pixels(path), shown.values[0], shown.share)
            assert np.abs(drawn.astype(int) - expected).max() <= 2  # sums in another order


def test_a_checkpoint_of_the_zoo_loads(tool, saved, tmp_path):
    # Others' identities, constants that old versions saved, the prefix of a parallel model, and a
    # layer that knows GPUs only.
    network, part = saved("zoo", {"MODEL.BACKBONE.NORM": "BN"})
    weights = {f"module.{key}": value for key, value in network.state_dict().items()}
    weights["module.pixel_mean"] = network.pixel_mean
    weights["module.heads.weight"] = torch.rand(751, 512)
    torch.save({"model": weights}, part[-1])
    config = Path(part[1])
    config.write_text(config.read_text().replace("NORM: BN", "NORM: syncBN"))
    from visualize.models import load_config, load_model

    model = load_model("zoo", load_config(str(config)), part[-1])
    image = tiny_set().query[0][0]
    assert np.allclose(embed(model.network, [image]), embed(network, [image]), atol=1e-6)


class Looks(nn.Module):
    """A backbone that gives redness and a constant, in squares of 16 pixels."""

    def forward(self, images):
        red = nn.functional.avg_pool2d(images[:, :1], 16)
        return torch.cat((red, torch.zeros_like(red)), dim=1)


def made_by_hand():
    head = EmbeddingHead(
        feat_dim=2, embedding_dim=0, num_classes=3, neck_feat="after", pool_type="GlobalAvgPool",
        cls_type="Linear", scale=1, margin=0, with_bnneck=False, norm_type="BN",
    )  # fmt: skip
    backbone = Looks()
    backbone.register_parameter("scale", nn.Parameter(torch.ones(())))
    backbone.register_forward_hook(lambda module, args, output: output * module.scale)
    return Baseline(backbone=backbone, heads=head, pixel_mean=[0] * 3, pixel_std=[1] * 3).eval()


def one_red_square(row, column):
    images = torch.zeros(1, 3, 64, 32)
    images[:, 0, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = 1
    return images


def test_grad_cam_is_hot_where_the_model_looks():
    from visualize.maps import explain

    explained = explain(made_by_hand(), one_red_square(2, 1))
    assert explained.embeddings.tolist() == [[1 / 8, 0]]
    (shown,) = explained.maps
    assert shown.title == "Grad-CAM" and shown.values.shape == (1, 4, 2)
    # The length is the mean of the redness: each position's gradient is 1 / 8.
    expected = torch.zeros(4, 2)
    expected[2, 1] = 1 / 8
    assert torch.equal(shown.values[0], expected)


def test_channels_kept_are_shown_where_the_mask_keeps_them():
    from visualize.maps import explain

    model = made_by_hand()
    attention = DCSAttention(2, norm="none")
    with torch.no_grad():  # one channel is kept on red alone, the other nowhere
        attention.mask.logits.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
        attention.mask.logits.bias.copy_(torch.tensor([-0.5, -1.0]))
    model.backbone.add_module("attention", attention.eval())
    model.backbone.register_forward_hook(insertion.attend_last)
    explained = explain(model, one_red_square(2, 1))
    maps = {shown.title.split(" ")[0]: shown for shown in explained.maps}
    expected = torch.zeros(1, 4, 2)
    expected[0, 2, 1] = 0.5
    assert torch.equal(maps["channels"].values, expected)
    assert maps["channels"].share and not maps["attention"].share
    assert list(explained.kept.values()) == [1 / 16]
    # Other positions are empty and attend evenly; the red one prefers itself.
    received = maps["attention"].values
    weight = np.exp(4) / (np.exp(4) + 7)  # its cosine to itself, times COSINE_FACTOR
    assert received[0, 2, 1].item() == pytest.approx((7 / 8 + weight) / 8)
    assert received.sum().item() == pytest.approx(1)


def test_the_branches_of_mgn_are_apart(make_cfg):
    from visualize.maps import explain

    torch.manual_seed(0)
    explained = explain(build_model(make_cfg(dict(MGN, **DCS))).eval(), torch.rand(2, 3, 96, 32))
    assert [shown.title for shown in explained.maps[:3]] == [f"Grad-CAM b{i}" for i in (1, 2, 3)]
    assert list(explained.kept) == [f"{place} b{i}" for i in "123" for place in ("layer3", "head")]
    first, second, third = (shown.values for shown in explained.maps[:3])
    assert not torch.allclose(first, second, rtol=0.01) and not torch.allclose(second, third)


def test_a_vit_shows_patches_class_token_and_masks(saved, refused):
    from visualize.maps import explain

    def half_in_the_first_block(network):
        with torch.no_grad():
            network.backbone.blocks[0].attn.qkv.attention.logits.bias[:384] = -1

    network, part = saved("vit", VIT, half_in_the_first_block)
    images = torch.rand(2, 3, 64, 32) * 255
    kept_inputs = []
    last = network.backbone.blocks[-1].attn
    hook = last.qkv.register_forward_hook(lambda m, args, output: kept_inputs.append(output))
    explained = explain(network, images)
    hook.remove()
    cam, attention, kept = explained.maps
    assert cam.title == "Grad-CAM" and cam.values.shape == (2, 4, 2) and cam.values.min() >= 0
    assert cam.values.max() > 0

    queries, keys, _ = kept_inputs[0].detach().reshape(2, 9, 3, 8, 96).permute(2, 0, 3, 1, 4)
    weights = (queries[:, :, :1] @ keys.transpose(2, 3) * last.scale).softmax(dim=3)
    assert attention.title == "attention of the class token"
    assert torch.allclose(attention.values.flatten(1), weights[:, :, 0, 1:].mean(dim=1), atol=1e-6)
    assert kept.title == "channels kept in 8 blocks" and kept.share
    assert torch.allclose(kept.values, torch.full((2, 4, 2), (0.5 + 7) / 8))
    assert list(explained.kept.values()) == [0.5] + [1.0] * 7

    message = refused(*part, "--opts", "INPUT.SIZE_TEST", "(32, 32)")
    assert "INPUT.SIZE_TEST 32 x 32 (trained with SIZE_TRAIN 64 x 32)" in message


def test_ranks_leave_out_what_the_evaluation_leaves_out(tool):
    from visualize.ranking import Shot, rank, spread

    gallery = [Shot("a", 1, 0), Shot("b", 1, 1), Shot("c", 2, 0), Shot("d", 3, 1)]
    row = np.array([0.0, 0.3, 0.2, 0.1])
    nearest, first = rank(Shot("q", 1, 0), row, gallery, 2)
    assert [(item.shot.path, item.right) for item in nearest] == [("d", False), ("c", False)]
    assert nearest[0].distance == pytest.approx(0.1) and first == 3
    nearest, first = rank(Shot("d"), row, gallery, 4)  # not its own neighbour
    assert [(item.shot.path, item.right) for item in nearest] == [(p, None) for p in "acb"]
    assert first is None
    assert spread(range(10), 4) == [0, 2, 5, 7] and spread(range(3), 8) == [0, 1, 2]
    assert tool.distinct_names(["a/rib.yml", "b/rib.yml"]) == ["a/rib", "b/rib"]
    assert tool.distinct_names(["x/a.yml", "x/b.yml"]) == ["a", "b"]


def test_a_checkpoint_of_another_config(saved, refused):
    _, stock = saved("stock")
    _, dcs = saved("dcs", DCS)
    message = refused(*stock[:3], dcs[3])
    assert "stock: the checkpoint is one of another config" in message
    assert "holds attention at backbone.layer3.1, heads that the config does not ask for" in message
    message = refused(*dcs[:3], stock[3])
    assert "asks for attention at backbone.layer3.1, heads, which the checkpoint was" in message


def test_what_is_missing_or_unreadable(saved, refused, tmp_path):
    _, stock = saved("stock")
    _, other = saved("other", {"DATASETS.TESTS": ("SyntheticReID",)})
    config, text = stock[:2], tmp_path / "text.txt"
    text.write_text("no picture and no checkpoint")
    for command, message in (
        (["--config-file", "no.yml"], "There is no config file no.yml."),
        ([*config, "--weights", "no.pth"], "stock: there is no checkpoint no.pth."),
        ([*config, "--weights", text], "cannot be read as a checkpoint"),
        (["--config-file", text], "cannot be read as a FastReID config"),
        ([*stock, "--images", "no.jpg"], "There is no image no.jpg"),
        ([*stock, "--images", text], "text.txt cannot be read as an image"),
        ([*stock, "--dataset", "Market1501"], "The data set Market1501 is not under"),
        ([*stock, "--opts", "INPUT.SIZE_TEST", "(16, 16)"], "no map of more than one position"),
        ([*stock, "--config-file", other[1]], "2 --config-file, 1 --weights"),
        ([*stock, *other], "test on SyntheticReID, SyntheticReIDTiny"),
    ):
        assert message in refused(*command)
