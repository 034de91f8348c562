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
from PIL import Image

from fastreid_rib import activation, compat
from fastreid_rib.compat import projects


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Writes a module of a project, its packages empty, and imports it through the hook."""
    activation.arm()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(projects, "no_cuda", lambda: True)
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


def test_retrieval_searches_on_the_cpu(project):
    module = project("fastretri.retri_evaluator", RETRIEVAL)
    rng = np.random.default_rng(0)
    queries, gallery = (rng.normal(size=(n, 5)).astype("float32") for n in (3, 7))
    distances = -((queries[:, None] - gallery) ** 2).sum(-1)
    for cosine, every in ((True, queries @ gallery.T), (False, distances)):
        _, places = module.nearest(queries, gallery, cosine)
        assert (places == np.argsort(-every, axis=1)[:, :2]).all()


DSR = """
import torch

def compute_dsr_dist(features, meanwhile):
    meanwhile()
    return 2 * torch.as_tensor(features).cuda().cpu().numpy()
"""


def test_dsr_computes_on_the_cpu_and_leaves_tensors_as_they_are(project):
    module, seen = project("partialreid.dsr_distance", DSR), []

    def move():
        try:
            seen.append(torch.zeros(1).cuda().device.type)
        except (RuntimeError, AssertionError):
            seen.append("cuda")  # asked for, and there is none

    def in_another_thread():
        """A loader's thread may be at work meanwhile."""
        other = threading.Thread(target=move)
        other.start()
        other.join()

    found = module.compute_dsr_dist([1.0, 3.0], in_another_thread)
    np.testing.assert_array_equal(found, [2.0, 6.0])
    assert seen == ["cuda"]


ATTRIBUTES = """
import torch

def cross_entropy_sigmoid_loss(pred_class_logits, gt_classes):
    on, off = torch.ones(1, device="cuda"), torch.zeros(1, device="cuda")
    return (pred_class_logits * torch.where(gt_classes > 0.5, on, off)).sum()
"""


def test_weights_of_attributes_are_made_on_the_cpu_for_a_model_there(project, monkeypatch):
    loss = project("fastattr.modeling.bce_loss", ATTRIBUTES).cross_entropy_sigmoid_loss
    monkeypatch.setattr(projects, "no_cuda", lambda: False)
    assert loss(torch.tensor([3.0, 5.0]), torch.tensor([1.0, 0.0])) == 3


PARTIAL_FC = """
class PartialFC:
    def __init__(self, size):
        self.size = size
"""


def test_a_classifier_over_gpus_says_what_to_write(project, monkeypatch):
    module = project("fastface.modeling.partial_fc", PARTIAL_FC)
    with pytest.raises(ValueError, match="write MODEL.HEADS.PFC.ENABLED False"):
        module.PartialFC(8)
    monkeypatch.setattr(projects, "no_cuda", lambda: False)
    assert module.PartialFC(8).size == 8


def test_the_data_set_that_was_left_out_is_lent(tmp_path, project):
    (tmp_path / "fastclas").mkdir()
    source = "from .distracted_driver import *\nfrom .bee_ant import *\n"
    (tmp_path / "fastclas" / "__init__.py").write_text(source)
    assert project("fastclas.bee_ant", "Bees = 3").Bees == 3
    for name in [name for name in sys.modules if name.startswith("fastclas")]:
        del sys.modules[name]
    # One that is there is not replaced.
    assert project("fastclas.distracted_driver", "Drivers = 2").Drivers == 2


DEMO = """
from fastreid.engine import *
class FeatureExtractionDemo:
    def run_on_image(self, original_image):
        return original_image[::-1]
"""


def test_the_demo_resizes_as_the_evaluation_does_and_says_what_to_write_for_a_folder(project):
    """FastReID's demo, or a copy of it in another folder."""
    from fastreid.data.transforms import build_transforms

    demo = project("predictor", DEMO).FeatureExtractionDemo()
    demo.cfg = get_cfg()
    demo.cfg.INPUT.SIZE_TEST = [32, 16]
    large = np.random.RandomState(0).randint(0, 256, (300, 100, 3), np.uint8)
    expected = build_transforms(demo.cfg, is_train=False)(Image.fromarray(large))
    shown = demo.run_on_image(large)[::-1]  # the one that stands for it turns it around
    assert shown.transpose(2, 0, 1).tolist() == expected.tolist()
    with pytest.raises(ValueError, match=r"Write the pictures, --input FOLDER/\*\.jpg"):
        demo.run_on_image(None)


def test_other_modules_of_the_demos_name_are_left_alone(project, caplog):
    """They are common: nothing of ours is loaded for them, and nothing of theirs is changed."""
    source = DEMO.replace("from fastreid.engine", "from types")
    demo = project("predictor", source).FeatureExtractionDemo
    assert not hasattr(demo.run_on_image, "__stock__")
    assert project("predictors.big", "answer = 42").answer == 42
    assert "does not fit" not in caplog.text


@pytest.mark.parametrize("name", ["fastretri.retri_evaluator", "fastface.face_evaluator"])
def test_a_project_says_what_to_install(project, name):
    with pytest.raises(ModuleNotFoundError, match="pip install mat4py"):
        project(name, "raise ModuleNotFoundError('No module named mat4py', name='mat4py')")


def test_the_visualizer_of_the_demo(monkeypatch):
    """It imports a name from where it is not, and hands on numbers as text."""
    import fastreid.evaluation
    from fastreid.evaluation import evaluate_rank
    from fastreid.evaluation.rank import evaluate_rank as original
    from fastreid.utils import visualizer

    assert evaluate_rank is original
    with pytest.raises(AttributeError, match="no attribute 'evaluate_rnak'"):
        fastreid.evaluation.evaluate_rnak  # noqa: B018

    def draw(self, queries, output, ranks, *rest):
        drawn.extend((query, rank) for query in queries for rank in range(1 + ranks))

    drawn = []
    monkeypatch.setattr(visualizer.Visualizer, "save_rank_result", draw)
    shown = visualizer.Visualizer.__new__(visualizer.Visualizer)
    shown.all_ap = np.array([0.5, 0.2, 0.9])
    shown.vis_rank_list("folder", False, "2", max_rank="4")
    assert len(drawn) == 2 * 5
