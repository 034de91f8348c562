"""The projects and the demo beside FastReID in its repository, most of them for CUDA alone.

They are scripts with modules of their own, which they find in the folder they are started from.
"""

import sys
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any, Callable, Iterator, List

from fastreid_rib.base.patching import overlay, wrap
from fastreid_rib.compat.cpu import no_cuda


def search_features_on_cpu(module: ModuleType) -> None:
    """FastRetri searches with faiss on the CPU where there is no GPU, or faiss is built for none.

    Args:
        module: ``fastretri.retri_evaluator``.
    """
    faiss = module.faiss

    def on_gpu() -> bool:
        return hasattr(faiss, "StandardGpuResources") and not no_cuda()

    def resources() -> Any:
        return faiss.StandardGpuResources() if on_gpu() else None

    def settings() -> Any:
        return faiss.GpuIndexFlatConfig() if on_gpu() else SimpleNamespace()

    def index(name: str) -> Callable[..., Any]:
        def build(resource: Any, dimensions: int, config: Any) -> Any:
            if on_gpu():
                return getattr(faiss, "Gpu" + name)(resource, dimensions, config)
            return getattr(faiss, name)(dimensions)

        return build

    overlay(
        module,
        "faiss",
        StandardGpuResources=resources,
        GpuIndexFlatConfig=settings,
        GpuIndexFlatIP=index("IndexFlatIP"),
        GpuIndexFlatL2=index("IndexFlatL2"),
    )


def reconstruct_on_cpu(module: ModuleType) -> None:
    """PartialReID computes the distances of DSR on the CPU where there is no GPU.

    Args:
        module: ``partialreid.dsr_distance``.
    """
    import torch

    def distances(stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not no_cuda():
            return stock(*args, **kwargs)
        moves = torch.Tensor.cuda
        torch.Tensor.cuda = lambda self: self  # type: ignore[method-assign,assignment,misc]
        try:
            return stock(*args, **kwargs)
        finally:
            torch.Tensor.cuda = moves  # type: ignore[method-assign]

    wrap(module, "compute_dsr_dist", distances)


def weigh_where_logits_are(module: ModuleType) -> None:
    """FastAttr makes the weights of its loss on the device of the logits, not on the GPU.

    Args:
        module: ``fastattr.modeling.bce_loss``.
    """
    import torch

    devices: List[torch.device] = []

    def makes(make: Callable[..., Any]) -> Callable[..., Any]:
        def build(*size: Any, device: Any = None, **kwargs: Any) -> Any:
            return make(*size, device=devices[-1] if devices else device, **kwargs)

        return build

    def loss(stock: Callable[..., Any], logits: Any, *args: Any, **kwargs: Any) -> Any:
        devices.append(logits.device)
        try:
            return stock(logits, *args, **kwargs)
        finally:
            devices.pop()

    overlay(module, "torch", ones=makes(torch.ones), zeros=makes(torch.zeros))
    wrap(module, "cross_entropy_sigmoid_loss", loss)


def classifier_on_gpus(module: ModuleType) -> None:
    """FastFace's classifier over several GPUs says so where there is none.

    Args:
        module: ``fastface.modeling.partial_fc``.
    """

    def init(stock: Callable[..., None], self: Any, *args: Any, **kwargs: Any) -> None:
        if no_cuda():
            raise ValueError(
                "MODEL.HEADS.PFC.ENABLED True spreads the classifier over GPUs, and there is none; "
                "write MODEL.HEADS.PFC.ENABLED False"
            )
        stock(self, *args, **kwargs)

    wrap(module.PartialFC, "__init__", init)


@contextmanager
def data_set_that_was_left_out() -> Iterator[None]:
    """Lends FastClas the module ``distracted_driver``, which its repository lacks: an empty one."""
    import importlib.util

    name = "fastclas.distracted_driver"
    if importlib.util.find_spec(name) is None:
        sys.modules[name] = ModuleType(name)
    yield


def accept_retired_keys(module: ModuleType) -> None:
    """Keys that FastReID took away, and configs in its repository still have, warn and are ignored.

    Args:
        module: ``fastreid.config.defaults``.
    """
    if "FREEZE_FC_ITERS" not in module._C.SOLVER:
        module._C.register_deprecated_key("SOLVER.FREEZE_FC_ITERS")


def pictures_that_cannot_be_read(module: ModuleType) -> None:
    """FastReID's demo says what to write when a picture could not be read.

    Args:
        module: ``predictor``, the demo's; another module of that name is left alone.
    """

    def run(stock: Callable[..., Any], self: Any, image: Any) -> Any:
        if image is None:
            raise ValueError(
                "a picture of --input could not be read: it is a folder, is missing or is no "
                "picture. Write the pictures, --input FOLDER/*.jpg, without quotation marks"
            )
        return stock(self, image)

    if hasattr(module, "FeatureExtractionDemo"):
        wrap(module.FeatureExtractionDemo, "run_on_image", run)
