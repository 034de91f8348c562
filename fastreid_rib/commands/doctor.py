"""The command ``doctor``: would a training run work here, and what is at work?"""

import importlib
import os
import shutil
import subprocess
import sys
from importlib import util
from typing import Callable, Iterator, Optional, Sequence

import fastreid_rib
from fastreid_rib import compat
from fastreid_rib.base import __version__, disabled
from fastreid_rib.commands.examination import Finding, examine


def main(config_file: Optional[str] = None, opts: Sequence[str] = ()) -> int:
    """Prints the report; 0 if training can work here, 1 if not.

    Args:
        config_file: of a training that is to be looked at as well; None: none.
        opts: keys and values that change it, as FastReID's scripts take them.
    """
    findings = [finding for check in CHECKS for finding in _run(check)]
    if config_file is not None and all(finding.status != "FAIL" for finding in findings):
        findings += examine(config_file, opts)  # FastReID loads by now
    for finding in findings:
        print(f"{finding.status:4}  {finding.subject:18} {finding.text}")
    failed = [finding.subject for finding in findings if finding.status == "FAIL"]
    names = ", ".join(dict.fromkeys(failed))
    print(f"\ntraining cannot work here: {names}" if failed else "\nready to train")
    return 1 if failed else 0


def _run(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from check()
    except Exception as error:  # a check that fails is a finding, not the end of the report
        yield Finding("FAIL", check.__name__, f"{type(error).__name__}: {error}")


def plugin() -> Iterator[Finding]:
    """The plugin itself, and how it is activated."""
    home = os.path.dirname(fastreid_rib.__file__)
    yield Finding("ok", "fastreid-rib", f"{__version__} from {home}")
    off = disabled()
    if "all" in off:
        text = "FASTREID_RIB_DISABLE switches the plugin off: RIB in a config has no effect"
        yield Finding("FAIL", "activation", text)
    elif "register" in off:
        text = "FASTREID_RIB_DISABLE=register: repairs only, RIB is not registered"
        yield Finding("FAIL", "activation", text)
    else:
        yield _activation()


def _activation() -> Finding:
    """Whether a new interpreter, as a training starts one, knows RIB without an import."""
    loaded = "import sys; sys.exit('fastreid_rib' not in sys.modules)"
    if subprocess.run([sys.executable, "-c", loaded]).returncode == 0:
        return Finding("ok", "activation", "at interpreter start (fastreid_rib.pth)")
    there = any(os.path.isfile(os.path.join(p, "fastreid_rib.pth")) for p in sys.path)
    why = "fastreid_rib.pth did not load" if there else "no .pth file (editable install?)"
    text = (
        f"{why}: write `import fastreid_rib` before `get_cfg()`. Without it a config with RIB "
        "beside FastReID's long names of losses (CrossEntropyLoss) trains without RIB, and says "
        "nothing"
    )
    return Finding("FAIL" if there else "note", "activation", text)


def versions() -> Iterator[Finding]:
    """Python, torch and NumPy."""
    import numpy
    import torch

    yield Finding("ok", "Python", sys.version.split()[0])
    yield Finding("ok", "torch", torch.__version__)
    yield Finding("ok", "NumPy", numpy.__version__)
    if torch.cuda.is_available():
        yield Finding("ok", "CUDA", torch.cuda.get_device_name(0))
    else:
        text = "no GPU: write MODEL.DEVICE cpu and SOLVER.AMP.ENABLED False"
        yield Finding("note", "CUDA", text)


def kernels() -> Iterator[Finding]:
    """What computes the loss on each device of this machine, and why; the kernels are tried."""
    import torch

    from fastreid_rib.ops import backends

    for device in (*(f"cuda:{index}" for index in range(torch.cuda.device_count())), "cpu"):
        text = backends.explain("auto", torch.device(device))
        status = "note" if text.startswith("torch") else "ok"
        yield Finding(status, f"loss on {device}", text)


def fastreid() -> Iterator[Finding]:
    """FastReID: which one, whether it loads, what is repaired."""
    if util.find_spec("fastreid") is None:
        text = "not found: `pip install --no-deps fastreid==1.4.0`, or run inside its checkout"
        yield Finding("FAIL", "fastreid", text)
        return
    yield Finding("ok", "fastreid", str(importlib.import_module("fastreid").__file__))
    for module in ("fastreid.config", "fastreid.engine", "fastreid.evaluation"):
        try:
            importlib.import_module(module)
        except ImportError as error:
            text = f"does not load: {error}; what FastReID needs comes with fastreid-rib[fastreid]"
            yield Finding("FAIL", module, text)
            return
    active, off = compat.active(), disabled()
    for repair in compat.REPAIRS:
        text = f"{repair.name}: {repair.defect}"
        if repair.name in active:
            yield Finding("ok", "repaired", text)
        elif repair.name in off:
            yield Finding("note", "not repaired", text)


def learns() -> Iterator[Finding]:
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
        yield Finding("FAIL", "optimizer", "FastReID's optimizer does not change the weights")
    else:
        yield Finding("ok", "optimizer", "a step changes the weights")


def evaluator() -> Iterator[Finding]:
    """The fast evaluator of FastReID, which it compiles on first use."""
    if util.find_spec("fastreid") is None:
        return
    missing = [name for name in ("Cython", "setuptools") if util.find_spec(name) is None]
    if not any(shutil.which(compiler) for compiler in ("cc", "gcc", "clang")):
        missing.append("a C compiler")
    if util.find_spec("fastreid.evaluation.rank_cylib.rank_cy") is not None:
        yield Finding("ok", "evaluator", "compiled")
    elif missing:
        text = f"pure Python, slow on large galleries; to compile it needs {', '.join(missing)}"
        yield Finding("note", "evaluator", text)
    else:
        yield Finding("ok", "evaluator", "will be compiled at the first evaluation")


def data_root() -> Iterator[Finding]:
    """The folder that FastReID reads data sets from."""
    where = os.path.abspath(os.environ.get("FASTREID_DATASETS", "datasets"))
    if os.path.isdir(where):
        found = ", ".join(sorted(os.listdir(where))) or "empty"
        yield Finding("ok", "data root", f"{where}: {found}")
        return
    parent = where
    while not os.path.exists(parent):
        parent = os.path.dirname(parent)
    if os.path.isdir(parent) and os.access(parent, os.W_OK):
        text = f"{where} is not there (SyntheticReID makes it); FASTREID_DATASETS names another"
        yield Finding("note", "data root", text)
    else:
        text = f"{where} is not there and cannot be made: set FASTREID_DATASETS to your folder"
        yield Finding("FAIL", "data root", text)


CHECKS = (plugin, versions, kernels, fastreid, learns, evaluator, data_root)
