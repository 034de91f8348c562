"""The projects and the demo beside FastReID in its repository, most of them for CUDA alone.

They are scripts with modules of their own, which they find in the folder they are started from.
"""

from types import ModuleType, SimpleNamespace
from typing import Any, Callable, ContextManager, Dict

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

    def on_gpu() -> bool:
        return hasattr(faiss, "StandardGpuResources") and not no_cuda()

    def index(name: str) -> Callable[..., Any]:
        def build(resource: Any, dimensions: int, config: Any) -> Any:
            if on_gpu():
                return getattr(faiss, "Gpu" + name)(resource, dimensions, config)
            return getattr(faiss, name)(dimensions)

        return build

    overlay(
        module,
        "faiss",
        StandardGpuResources=lambda: faiss.StandardGpuResources() if on_gpu() else None,
        GpuIndexFlatConfig=lambda: faiss.GpuIndexFlatConfig() if on_gpu() else SimpleNamespace(),
        GpuIndexFlatIP=index("IndexFlatIP"),
        GpuIndexFlatL2=index("IndexFlatL2"),
    )


def _with_others(others: Dict[Any, Callable[..., Any]]) -> ContextManager[Any]:
    """Calls other functions than torch's, in this thread and while the context lasts.

    A thread of a data loader that is at work beside it sees torch as it is.

    Args:
        others: for each function of torch, what is called in its place.
    """
    from torch.overrides import TorchFunctionMode

    class Mode(TorchFunctionMode):
        def __torch_function__(self, func: Any, _: Any, args: Any = (), how: Any = None) -> Any:
            return others.get(func, func)(*args, **(how or {}))

    return Mode()


@repair(
    "partialreid.dsr_distance:compute_dsr_dist",
    defect="projects/PartialReID computes the distances of DSR on the GPU only",
    where="no CUDA",
    present=no_cuda,
    at_run_time=True,
)
def dsr_cpu(stock: Stock, *args: Any, **kwargs: Any) -> Any:
    """They are computed on the CPU."""
    import torch

    if not no_cuda():
        return stock(*args, **kwargs)
    with _with_others({torch.Tensor.cuda: lambda tensor, *where, **how: tensor}):
        return stock(*args, **kwargs)


@repair(
    "fastattr.modeling.bce_loss:cross_entropy_sigmoid_loss",
    defect="projects/FastAttr makes the weights of its loss on the GPU, wherever the logits are",
)
def attributes_cpu(stock: Stock, pred_class_logits: Any, *args: Any, **kwargs: Any) -> Any:
    """On the device of the logits."""
    import torch

    there = pred_class_logits.device

    def made_by(make: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *size, **how: make(*size, **{**how, "device": there})

    with _with_others({make: made_by(make) for make in (torch.ones, torch.zeros)}):
        return stock(pred_class_logits, *args, **kwargs)


@repair(
    "fastface.modeling.partial_fc:PartialFC.__init__",
    defect="the classifier of projects/FastFace needs CUDA, and fails without saying what to write",
    where="no CUDA",
    present=no_cuda,
    at_run_time=True,
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
    "predictor:FeatureExtractionDemo.run_on_image",
    defect="the demo makes large pictures small without smoothing: their features are not those of "
    "the evaluation",
    essential=True,
)
def demo_resizing(stock: Stock, self: Any, original_image: Any) -> Any:
    """They are resized as in the evaluation, by Pillow."""
    import numpy
    from PIL import Image

    if getattr(original_image, "dtype", None) == numpy.uint8:
        height, width = self.cfg.INPUT.SIZE_TEST
        picture = Image.fromarray(original_image).resize((width, height), Image.Resampling.BICUBIC)
        original_image = numpy.asarray(picture)  # FastReID resizes it once more, to the same size
    return stock(self, original_image)


@repair(  # after the one above: it looks at what comes first
    "predictor:FeatureExtractionDemo.run_on_image",
    defect="demo/demo.py --input FOLDER, or a file that is no picture, fails without saying what "
    "to write",
)
def demo_pictures(stock: Stock, self: Any, original_image: Any) -> Any:
    """The error says --input FOLDER/*.jpg."""
    if original_image is None:
        raise ValueError(
            "a picture of --input could not be read: it is a folder, is missing or is no picture. "
            "Write the pictures, --input FOLDER/*.jpg, without quotation marks"
        )
    return stock(self, original_image)
