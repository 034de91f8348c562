"""The command ``doctor``: would a training run work here, and what is at work?"""

import importlib
import os
import shutil
import sys
from importlib import util
from typing import Callable, List, Optional, Sequence, Tuple

import fastreid_rib
from fastreid_rib import compat
from fastreid_rib.base.switches import disabled
from fastreid_rib.base.version import __version__
from fastreid_rib.commands.finding import Finding


def main(config_file: Optional[str] = None, opts: Sequence[str] = ()) -> int:
    """Prints the report; 0 if training can work here, 1 if not.

    Args:
        config_file: of a training that is to be looked at as well; None: none.
        opts: keys and values that change it, as FastReID's scripts take them.
    """
    findings = [finding for check in CHECKS for finding in _run(check)]
    if config_file is not None and all(finding.status != "FAIL" for finding in findings):
        from fastreid_rib.commands.examination import examine  # FastReID loads by now

        findings += examine(config_file, opts)
    for finding in findings:
        print(f"{finding.status:4}  {finding.subject:18} {finding.text}")
    failed = [finding.subject for finding in findings if finding.status == "FAIL"]
    names = ", ".join(dict.fromkeys(failed))
    print(f"\ntraining cannot work here: {names}" if failed else "\nready to train")
    return 1 if failed else 0


def _run(check: Callable[[], List[Finding]]) -> List[Finding]:
    try:
        return check()
    except Exception as error:  # a check that fails is a finding, not the end of the report
        return [Finding("FAIL", check.__name__.strip("_"), f"{type(error).__name__}: {error}")]


def plugin() -> List[Finding]:
    """The plugin itself, and how it is activated."""
    findings = [
        Finding(
            "ok", "fastreid-rib", f"{__version__} from {os.path.dirname(fastreid_rib.__file__)}"
        )
    ]
    off = disabled()
    if "all" in off:
        text = "FASTREID_RIB_DISABLE switches the plugin off: RIB in a config has no effect"
        return [*findings, Finding("FAIL", "activation", text)]
    if "register" in off:
        text = "FASTREID_RIB_DISABLE=register: repairs only, RIB is not registered"
        return [*findings, Finding("FAIL", "activation", text)]
    pth = [p for p in sys.path if os.path.isfile(os.path.join(p, "fastreid_rib.pth"))]
    if pth:
        findings.append(Finding("ok", "activation", "at interpreter start (fastreid_rib.pth)"))
    else:
        text = "no .pth file (editable install?): write `import fastreid_rib` before `get_cfg()`"
        findings.append(Finding("note", "activation", text))
    return findings


def versions() -> List[Finding]:
    """Python, torch and NumPy."""
    import numpy
    import torch

    findings = [
        Finding("ok", "Python", sys.version.split()[0]),
        Finding("ok", "torch", torch.__version__),
        Finding("ok", "NumPy", numpy.__version__),
    ]
    if torch.cuda.is_available():
        findings.append(Finding("ok", "CUDA", torch.cuda.get_device_name(0)))
    else:
        text = "no GPU: write MODEL.DEVICE cpu and SOLVER.AMP.ENABLED False"
        findings.append(Finding("note", "CUDA", text))
    return findings


def kernels() -> List[Finding]:
    """What computes the loss on each device of this machine, and why."""
    import torch

    from fastreid_rib.ops import backends

    findings = []
    for kind in ("cuda", "cpu") if torch.cuda.is_available() else ("cpu",):
        text = backends.explain("auto", torch.device(kind))
        status = "note" if text.startswith("torch") else "ok"
        findings.append(Finding(status, f"loss on {kind}", text))
    return findings


def fastreid() -> List[Finding]:
    """FastReID: which one, whether it loads, what is repaired."""
    if util.find_spec("fastreid") is None:
        text = "not found: `pip install --no-deps fastreid==1.4.0`, or run inside its checkout"
        return [Finding("FAIL", "fastreid", text)]
    home = importlib.import_module("fastreid").__file__
    findings = [Finding("ok", "fastreid", str(home))]
    for module in ("fastreid.config", "fastreid.engine", "fastreid.evaluation"):
        try:
            importlib.import_module(module)
        except ImportError as error:
            text = f"does not load: {error}; what FastReID needs comes with fastreid-rib[fastreid]"
            return [*findings, Finding("FAIL", module, text)]
    active = compat.active()
    off = disabled()
    for repair in compat.REPAIRS:
        if repair.name in active:
            findings.append(Finding("ok", "repaired", f"{repair.name}: {repair.defect}"))
        elif repair.name in off and repair.present():
            findings.append(Finding("note", "not repaired", f"{repair.name}: {repair.defect}"))
    return findings


def learns() -> List[Finding]:
    """Whether one step of FastReID's optimizer changes a weight (it did not on torch 2)."""
    import torch
    from fastreid.config import get_cfg
    from fastreid.solver import build_optimizer

    layer = torch.nn.Linear(2, 1)
    before = layer.weight.detach().clone()
    optimizer, _ = build_optimizer(get_cfg(), layer)
    for _ in range(2):
        loss = layer(torch.ones(1, 2)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if torch.equal(before, layer.weight.detach()):
        return [Finding("FAIL", "optimizer", "FastReID's optimizer does not change the weights")]
    return [Finding("ok", "optimizer", "a step changes the weights")]


def evaluator() -> List[Finding]:
    """The fast evaluator of FastReID, which it compiles on first use."""
    if util.find_spec("fastreid") is None:
        return []
    if util.find_spec("fastreid.evaluation.rank_cylib.rank_cy") is not None:
        return [Finding("ok", "evaluator", "compiled")]
    missing = [name for name in ("Cython", "setuptools") if util.find_spec(name) is None]
    if not any(shutil.which(compiler) for compiler in ("cc", "gcc", "clang")):
        missing.append("a C compiler")
    if missing:
        text = f"pure Python, slow on large galleries; to compile it needs {', '.join(missing)}"
        return [Finding("note", "evaluator", text)]
    return [Finding("ok", "evaluator", "will be compiled at the first evaluation")]


def data_root() -> List[Finding]:
    """The folder that FastReID reads data sets from."""
    root = os.environ.get("FASTREID_DATASETS", "datasets")
    where = os.path.abspath(root)
    if os.path.isdir(root):
        found = ", ".join(sorted(os.listdir(root))) or "empty"
        return [Finding("ok", "data root", f"{where}: {found}")]
    parent = where
    while not os.path.exists(parent):
        parent = os.path.dirname(parent)
    if not (os.path.isdir(parent) and os.access(parent, os.W_OK)):
        text = f"{where} is not there and cannot be made: set FASTREID_DATASETS to your folder"
        return [Finding("FAIL", "data root", text)]
    text = f"{where} is not there (SyntheticReID makes it); FASTREID_DATASETS names another"
    return [Finding("note", "data root", text)]


CHECKS: Tuple[Callable[[], List[Finding]], ...] = (
    plugin,
    versions,
    kernels,
    fastreid,
    learns,
    evaluator,
    data_root,
)
