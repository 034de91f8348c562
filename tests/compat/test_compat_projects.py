"""The projects beside FastReID are on no package index: modules of the tests' own stand for theirs.

They have the projects' names, and call what the projects call.
"""

import importlib
import sys
import threading

import numpy as np
import pytest
import torch
from fastreid.config import get_cfg
from of_itself import outcome
from PIL import Image

from fastreid_rib import activation, compat
from fastreid_rib.compat import imports, projects

only_without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Writes a module of a project, its packages empty, and imports it through the hook."""
    activation.arm()
    monkeypatch.syspath_prepend(str(tmp_path))
    for repair in compat.REPAIRS:
        monkeypatch.setattr(repair, "acted", repair.acted)
    before = set(sys.modules)

    def load(name, source):
        path = tmp_path.joinpath(*name.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        for package in path.relative_to(tmp_path).parents:
            if package.name:
                (tmp_path / package / "__init__.py").touch()
        path.write_text(source)
        importlib.invalidate_caches()
        return importlib.import_module(name)

    yield load
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in activation.ROOTS - {"fastreid"}:
            del sys.modules[name]


RETRIEVAL = """
import faiss

def nearest(queries, gallery, cosine):
    resource = faiss.StandardGpuResources()
    config = faiss.GpuIndexFlatConfig()
    config.device = 0
    kind = faiss.GpuIndexFlatIP if cosine else faiss.GpuIndexFlatL2
    index = kind(resource, gallery.shape[1], config)
    index.add(gallery)
    return index.search(queries, 2)
"""


@only_without_cuda
def test_retrieval_searches_on_the_cpu(project):
    module = project("fastretri.retri_evaluator", RETRIEVAL)
    rng = np.random.default_rng(0)
    queries, gallery = (rng.normal(size=(n, 5)).astype("float32") for n in (3, 7))
    distances = -((queries[:, None] - gallery) ** 2).sum(-1)
    for cosine, every in ((True, queries @ gallery.T), (False, distances)):
        found, places = module.nearest(queries, gallery, cosine)
        order = np.argsort(-every, axis=1)[:, :2]
        assert (places == order).all()
        np.testing.assert_allclose(np.abs(found), np.abs(np.take_along_axis(every, order, 1)), 1e-4)


DSR = """
import torch

def compute_dsr_dist(features, meanwhile=lambda: None):
    meanwhile()
    return 2 * torch.as_tensor(features).cuda().cpu().numpy()
"""


@only_without_cuda
def test_dsr_computes_on_the_cpu_and_leaves_tensors_as_they_are(project):
    module = project("partialreid.dsr_distance", DSR)
    needs_cuda = pytest.raises((RuntimeError, AssertionError))
    seen = []

    def in_another_thread():
        """A loader's thread may be at work meanwhile."""
        other = threading.Thread(target=lambda: seen.append(outcome(torch.zeros(1).cuda)))
        other.start()
        other.join()

    stock = torch.Tensor.cuda
    found = module.compute_dsr_dist([1.0, 3.0], in_another_thread)
    np.testing.assert_array_equal(found, [2.0, 6.0])
    assert "Error" in seen[0] and torch.Tensor.cuda is stock
    with pytest.raises(TypeError):
        module.compute_dsr_dist([1.0], 2.0, 3)
    with needs_cuda:
        torch.zeros(1).cuda()


ATTRIBUTES = """
import torch
import torch.nn.functional as F

def cross_entropy_sigmoid_loss(pred_class_logits, gt_classes, sample_weight=None):
    loss = F.binary_cross_entropy_with_logits(pred_class_logits, gt_classes, reduction="none")
    if sample_weight is not None:
        on, off = torch.ones(1, device="cuda"), torch.zeros(1, device="cuda")
        mask = torch.where(gt_classes.detach() > 0.5, on, off)
        loss = loss * (mask * (1 - sample_weight) + (1 - mask) * sample_weight)
    return loss.sum()
"""


def test_weights_of_attributes_are_made_where_the_logits_are(project):
    loss = project("fastattr.modeling.bce_loss", ATTRIBUTES).cross_entropy_sigmoid_loss
    logits = torch.tensor([[0.3, -1.0]])
    targets, weights = torch.tensor([[1.0, 0.0]]), torch.tensor([0.25, 0.5])
    each = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    expected = (each * torch.tensor([[0.75, 0.5]])).sum()
    torch.testing.assert_close(loss(logits, targets, weights), expected)
    torch.testing.assert_close(loss(logits, targets), each.sum())
    assert torch.ones(2, device="meta").device.type == "meta"  # as it was asked for, outside of it


SIX = """
from torch._six import container_abcs

kinds = container_abcs.Iterable
"""


@pytest.mark.skipif(not imports.torch_lacks_containers(), reason="torch has them here")
def test_faces_find_what_torch_took_away(project):
    found = sys.modules.get("torch._six")
    assert isinstance([], project("fastface.utils_amp", SIX).kinds)
    assert sys.modules.get("torch._six") is found


PARTIAL_FC = """
class PartialFC:
    def __init__(self, size):
        self.size = size
"""


def test_a_classifier_over_gpus_says_what_to_write(project, monkeypatch):
    module = project("fastface.modeling.partial_fc", PARTIAL_FC)
    monkeypatch.setattr(projects, "no_cuda", lambda: True)
    with pytest.raises(ValueError, match="write MODEL.HEADS.PFC.ENABLED False"):
        module.PartialFC(8)
    monkeypatch.setattr(projects, "no_cuda", lambda: False)
    assert module.PartialFC(8).size == 8


def test_the_data_set_that_was_left_out_is_lent(tmp_path, project):
    (tmp_path / "fastclas").mkdir()
    source = "from .distracted_driver import *\nfrom .bee_ant import *\n"
    (tmp_path / "fastclas" / "__init__.py").write_text(source)
    assert project("fastclas.bee_ant", "Bees = 3").Bees == 3
    assert importlib.import_module("fastclas").Bees == 3
    for name in [name for name in sys.modules if name.startswith("fastclas")]:
        del sys.modules[name]
    # One that is there is not replaced.
    assert project("fastclas.distracted_driver", "Drivers = 2").Drivers == 2
    assert importlib.import_module("fastclas").Drivers == 2


def test_a_retired_key_warns_and_is_ignored(tmp_path, caplog):
    (tmp_path / "old.yml").write_text("SOLVER:\n  FREEZE_FC_ITERS: 5\n  MAX_EPOCH: 3\n")
    for merge in (
        lambda cfg: cfg.merge_from_file(str(tmp_path / "old.yml")),
        lambda cfg: cfg.merge_from_list(["SOLVER.FREEZE_FC_ITERS", 5, "SOLVER.MAX_EPOCH", 3]),
    ):
        cfg = get_cfg()
        caplog.clear()
        merge(cfg)
        assert cfg.SOLVER.MAX_EPOCH == 3 and "FREEZE_FC_ITERS" not in cfg.SOLVER
        assert "SOLVER.FREEZE_FC_ITERS" in caplog.text
    with pytest.raises((KeyError, AssertionError), match="Non-existent"):
        cfg.merge_from_list(["SOLVER.FREEZE_FC_ITER", 5])


DEMO = """
from fastreid.engine import *
class FeatureExtractionDemo:
    def run_on_image(self, original_image):
        return original_image[::-1]
"""


def test_the_demo_says_what_to_write_for_a_folder(project):
    """FastReID's demo, or a copy of it in another folder."""
    demo = project("predictor", DEMO).FeatureExtractionDemo()
    assert demo.run_on_image([1, 2]) == [2, 1]
    with pytest.raises(ValueError, match=r"Write the pictures, --input FOLDER/\*\.jpg"):
        demo.run_on_image(None)


def test_the_demo_resizes_as_the_evaluation_does(project):
    from fastreid.data.transforms import build_transforms

    demo = project("predictor", DEMO).FeatureExtractionDemo()
    demo.cfg = get_cfg()
    demo.cfg.INPUT.SIZE_TEST = [32, 16]
    large = np.random.RandomState(0).randint(0, 256, (300, 100, 3), np.uint8)
    expected = build_transforms(demo.cfg, is_train=False)(Image.fromarray(large))
    shown = demo.run_on_image(large)[::-1]  # the one that stands for it turns it around
    assert shown.transpose(2, 0, 1).tolist() == expected.tolist()


def test_other_modules_of_the_demos_name_are_left_alone(project, caplog):
    """They are common: nothing of ours is loaded for them, and nothing of theirs is changed."""
    demo = project(
        "predictor", DEMO.replace("from fastreid.engine", "from types")
    ).FeatureExtractionDemo
    assert not hasattr(demo.run_on_image, "__stock__")
    assert project("predictors.big", "answer = 42").answer == 42
    assert "does not fit" not in caplog.text


@pytest.mark.parametrize("name", ["fastretri.retri_evaluator", "fastface.face_evaluator"])
def test_a_project_says_what_to_install(project, name):
    with pytest.raises(ModuleNotFoundError, match="pip install mat4py"):
        project(name, "raise ModuleNotFoundError('No module named mat4py', name='mat4py')")


def test_each_can_be_switched_off(run_script, tmp_path):
    (tmp_path / "fastclas.py").write_text("import fastclas.distracted_driver")
    said = run_script(
        "-c",
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import fastreid_rib, fastclas",
        env={"FASTREID_RIB_DISABLE": "clas-data-set"},
        check=False,
    )
    assert "No module named 'fastclas.distracted_driver'" in said.stdout
