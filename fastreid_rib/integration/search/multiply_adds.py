"""Multiply-adds of a module, counted by fvcore on what it really computes."""

from typing import Any, Dict

from torch import nn

from fastreid_rib.base.evaluating import evaluated

COUNTED = ("conv", "linear", "addmm", "matmul", "bmm", "baddbmm", "einsum")
"""Operations of fvcore that are multiply-adds; norms and activations are a percent beside them."""


def counted(module: nn.Module, *inputs: Any) -> float:
    """Multiply-adds of one evaluation.

    Args:
        module: any; its modes are as before, after.
        inputs: what it is called with.

    Raises:
        ImportError: fvcore is not installed; the message says what to write.
    """
    return counted_by_module(module, *inputs)[""]


def counted_by_module(module: nn.Module, *inputs: Any) -> Dict[str, float]:
    """The same of every submodule, by its path; "": of the whole."""
    analysis = _fvcore().FlopCountAnalysis(module, inputs)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    with evaluated(module):
        found = analysis.by_module_and_operator()
    return {
        path: float(sum(operators[name] for name in COUNTED)) for path, operators in found.items()
    }


def _fvcore() -> Any:
    try:
        import fvcore.nn
    except ImportError as error:
        raise ImportError(
            "FLOPs are counted by fvcore, which is not installed. Write: pip install fvcore"
        ) from error
    return fvcore.nn
