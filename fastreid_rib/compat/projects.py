"""The projects and the demo beside FastReID in its repository, most of them for CUDA alone.

They are scripts with modules of their own, which they find in the folder they are started from.
"""

import importlib
import importlib.util
import inspect
import sys
from types import ModuleType, SimpleNamespace
from typing import Any, Iterator

from fastreid_rib.base.patching import overlay
from fastreid_rib.compat.cpu import no_cuda
from fastreid_rib.compat.repairs import Stock, repair


@repair(
    "fastretri.retri_evaluator",
    defect="projects/FastRetri searches on the GPU only",
    where="no CUDA, or faiss without GPU",
)
def retrieval_cpu(module: ModuleType) -> None:
    """Faiss searches on the CPU."""
    faiss = module.faiss
    if hasattr(faiss, "StandardGpuResources") and not no_cuda():
        return
    overlay(
        module,
        "faiss",
        StandardGpuResources=lambda: None,
        GpuIndexFlatConfig=SimpleNamespace,
        GpuIndexFlatIP=lambda resource, dimensions, config: faiss.IndexFlatIP(dimensions),
        GpuIndexFlatL2=lambda resource, dimensions, config: faiss.IndexFlatL2(dimensions),
    )


@repair(
    "partialreid.dsr_distance:compute_dsr_dist",
    "fastattr.modeling.bce_loss:cross_entropy_sigmoid_loss",
    defect="the distances of projects/PartialReID and the loss of projects/FastAttr need CUDA",
    where="no CUDA, or a model on the CPU",
)
def projects_cpu(stock: Stock, *args: Any, **kwargs: Any) -> Any:
    """They are computed on the CPU."""
    import torch
    from torch.overrides import TorchFunctionMode

    if not no_cuda() and getattr(args[0] if args else None, "is_cuda", True):
        return stock(*args, **kwargs)

    class OnCPU(TorchFunctionMode):  # in this thread: one of a data loader sees torch as it is
        def __torch_function__(self, func: Any, _: Any, args: Any = (), how: Any = None) -> Any:
            how = dict(how or {})
            if func is torch.Tensor.cuda:
                return args[0]
            if str(how.get("device")).startswith("cuda"):
                how["device"] = "cpu"
            return func(*args, **how)

    with OnCPU():
        return stock(*args, **kwargs)


@repair(
    "fastface.modeling.partial_fc:PartialFC.__init__",
    defect="the classifier of projects/FastFace needs CUDA, and fails without saying what to write",
    where="no CUDA",
)
def partial_fc_message(stock: Stock, self: Any, *args: Any, **kwargs: Any) -> None:
    """The error says MODEL.HEADS.PFC.ENABLED False."""
    if no_cuda():
        raise ValueError(
            "MODEL.HEADS.PFC.ENABLED True spreads the classifier over GPUs, and there is none; "
            "write MODEL.HEADS.PFC.ENABLED False"
        )
    stock(self, *args, **kwargs)


@repair(
    "fastclas",
    defect="projects/FastClas imports a data set that is not in FastReID's repository",
)
def clas_data_set() -> Iterator[None]:
    """An empty module is lent for it; the data sets that are there work."""
    name = "fastclas.distracted_driver"
    if importlib.util.find_spec(name) is None:
        sys.modules[name] = ModuleType(name)
    yield


@repair(
    "fastreid.evaluation",
    defect="demo/visualize_result.py imports evaluate_rank from where it is not",
)
def evaluate_rank(module: ModuleType) -> None:
    """The name is there too.

    Loaded when it is asked for: its module looks for the compiled ranking when it is
    imported, and the evaluator compiles that before.
    """

    def __getattr__(name: str) -> Any:  # noqa: N807 (a module's, PEP 562)
        if name == "evaluate_rank":
            return importlib.import_module("fastreid.evaluation.rank").evaluate_rank
        raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

    vars(module).setdefault("__getattr__", __getattr__)


@repair(
    "fastreid.utils.visualizer:Visualizer.vis_rank_list",
    defect="demo/visualize_result.py --max-rank 4 hands text to a function that adds numbers",
)
def visualizer_numbers(stock: Stock, self: Any, *args: Any, **kwargs: Any) -> Any:
    """Text becomes a number."""
    call = inspect.signature(stock).bind(self, *args, **kwargs)
    for name in {"num_vis", "max_rank"}.intersection(call.arguments):
        call.arguments[name] = int(call.arguments[name])
    return stock(*call.args, **call.kwargs)


@repair(
    "predictor:FeatureExtractionDemo.run_on_image",
    defect="the demo makes large pictures small without smoothing: their features are not those of "
    "the evaluation; --input FOLDER fails without saying what to write",
    essential=True,
)
def demo_pictures(stock: Stock, self: Any, original_image: Any) -> Any:
    """They are resized as in the evaluation, by Pillow; the error says --input FOLDER/*.jpg."""
    import numpy
    from PIL import Image

    if original_image is None:
        raise ValueError(
            "a picture of --input could not be read: it is a folder, is missing or is no picture. "
            "Write the pictures, --input FOLDER/*.jpg, without quotation marks"
        )
    if getattr(original_image, "dtype", None) == numpy.uint8:
        height, width = self.cfg.INPUT.SIZE_TEST
        picture = Image.fromarray(original_image).resize((width, height), Image.Resampling.BICUBIC)
        original_image = numpy.asarray(picture)  # FastReID resizes it once more, to the same size
    return stock(self, original_image)
