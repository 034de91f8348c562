"""The command ``doctor``: would a training run work here, and what is at work?

Of a config and its data it says what would stop or spoil a training, all of it, by the checks that
a training makes at its start.
"""

import importlib
import logging
import os
import subprocess
import sys
from collections import Counter
from importlib import util
from typing import Any, Callable, Iterator, List, NamedTuple, Optional, Sequence

import fastreid_rib
from fastreid_rib import compat
from fastreid_rib.base import __version__, disabled
from fastreid_rib.base.safe_reads import read_checkpoint, read_safely
from fastreid_rib.commands import read_config
from fastreid_rib.compat.cpu import refuse_missing_gpu
from fastreid_rib.integration import config, own_keys


class Finding(NamedTuple):
    """One line of the report."""

    status: str
    """``ok``, ``note`` (works, but you may want to know) or ``FAIL`` (training cannot work)."""
    subject: str
    text: str


def main(config_file: Optional[str] = None, opts: Sequence[str] = ()) -> int:
    """Prints the report; 0 if training can work here, 1 if not."""
    findings = [finding for check in CHECKS for finding in _found(check.__name__, check)]
    if config_file is not None and all(finding.status != "FAIL" for finding in findings):
        findings += examine(config_file, opts)  # FastReID loads by now
    for finding in findings:
        print(f"{finding.status:4}  {finding.subject:18} {finding.text}")
    failed = [finding.subject for finding in findings if finding.status == "FAIL"]
    names = ", ".join(dict.fromkeys(failed))
    print(f"\ntraining cannot work here: {names}" if failed else "\nready to train")
    return 1 if failed else 0


def _found(subject: str, check: Callable[..., Any], *args: Any) -> Iterator[Finding]:
    """What a check yields, if it does; one that fails is a finding, not the end of the report."""
    try:
        yield from check(*args) or ()
    except Exception as error:
        yield _failure(subject, error)


def _failure(subject: str, error: BaseException) -> Finding:
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    return Finding("FAIL", subject, text or type(error).__name__)


def plugin() -> Iterator[Finding]:
    """The plugin itself, and how it is activated."""
    home = os.path.dirname(fastreid_rib.__file__)
    yield Finding("ok", "fastreid-rib", f"{__version__} from {home}")
    off = disabled()
    loaded = "import sys; sys.exit('fastreid_rib' not in sys.modules)"
    if "all" in off:
        text = "FASTREID_RIB_DISABLE switches the plugin off: RIB in a config has no effect"
        yield Finding("FAIL", "activation", text)
    elif "register" in off:
        text = "FASTREID_RIB_DISABLE=register: repairs only, RIB is not registered"
        yield Finding("FAIL", "activation", text)
    elif subprocess.run([sys.executable, "-c", loaded]).returncode == 0:  # as a training starts one
        yield Finding("ok", "activation", "at interpreter start (fastreid_rib.pth)")
    else:
        there = any(os.path.isfile(os.path.join(p, "fastreid_rib.pth")) for p in sys.path)
        why = "fastreid_rib.pth did not load" if there else "no .pth file (editable install?)"
        text = (
            f"{why}: write `import fastreid_rib` before `get_cfg()`. Without it a config with RIB "
            "beside FastReID's long names of losses (CrossEntropyLoss) trains without RIB, and "
            "says nothing"
        )
        yield Finding("FAIL" if there else "note", "activation", text)


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
    for repair in compat.REPAIRS:
        text = f"{repair.name}: {repair.defect}"
        if repair.name in compat.active():
            yield Finding("ok", "repaired", text)
        elif repair.name in disabled():
            yield Finding("note", "not repaired", text)


def optimizer() -> Iterator[Finding]:
    """Whether one step of FastReID's optimizer changes a weight (it did not on torch 2)."""
    import torch
    from fastreid.config import get_cfg
    from fastreid.solver import build_optimizer

    layer = torch.nn.Linear(2, 1)
    before = layer.weight.detach().clone()
    built, _ = build_optimizer(get_cfg(), layer)
    for _ in range(2):
        loss = layer(torch.ones(1, 2)).sum()
        built.zero_grad()
        loss.backward()
        built.step()
    if torch.equal(before, layer.weight.detach()):
        yield Finding("FAIL", "optimizer", "FastReID's optimizer does not change the weights")
    else:
        yield Finding("ok", "optimizer", "a step changes the weights")


def data_root() -> Iterator[Finding]:
    """The folder that FastReID reads data sets from."""
    where = parent = os.path.abspath(os.environ.get("FASTREID_DATASETS", "datasets"))
    while not os.path.exists(parent):
        parent = os.path.dirname(parent)
    if os.path.isdir(where):
        found = ", ".join(sorted(os.listdir(where))) or "empty"
        yield Finding("ok", "data root", f"{where}: {found}")
    elif os.path.isdir(parent) and os.access(parent, os.W_OK):
        text = f"{where} is not there (SyntheticReID makes it); FASTREID_DATASETS names another"
        yield Finding("note", "data root", text)
    else:
        text = f"{where} is not there and cannot be made: set FASTREID_DATASETS to your folder"
        yield Finding("FAIL", "data root", text)


CHECKS = (plugin, versions, kernels, fastreid, optimizer, data_root)


def examine(config_file: str, opts: Sequence[str] = ()) -> List[Finding]:
    """Examines a config and its data.

    Pictures are counted, not read; a network is built without pretrained weights, and nothing is
    trained. Drawn data sets are made, as a training would.

    Returns:
        "FAIL" for what a training would stop at, "note" for what may spoil one, "ok" for counts.
    """
    try:
        cfg = read_config(config_file, opts)
    except Exception as error:  # yacs has several
        return [_failure("config", error)]
    findings = list(_found("config", _keys, cfg))
    understood = findings[0].status != "FAIL"
    findings += [*_found("device", refuse_missing_gpu, cfg), *_files(cfg)]
    logging.disable(logging.INFO)  # FastReID's tables of the data sets
    try:
        data: List[Any] = []
        findings += _found("training set", _training_set, cfg, data)
        for name in cfg.DATASETS.TESTS:
            findings += _found("test set", _test_set, cfg, name)
        findings += _schedule(cfg, *data) if understood else []
        if all(finding.status != "FAIL" for finding in findings):
            findings += _found("network", _network, cfg, *data)
    finally:
        logging.disable(logging.NOTSET)
    return findings


def _keys(cfg: Any) -> Iterator[Finding]:
    config.check(cfg)  # the rules ask for the names of the losses, which are known then
    refusals = [Finding("FAIL", "config", str(refusal)) for refusal in own_keys.refusals(cfg)]
    yield from refusals or [Finding("ok", "config", "its keys are what they can be")]


def _files(cfg: Any) -> Iterator[Finding]:
    backbone = cfg.MODEL.BACKBONE
    pretrained = backbone.PRETRAIN_PATH if backbone.PRETRAIN else ""
    files = {"MODEL.WEIGHTS": cfg.MODEL.WEIGHTS, "MODEL.BACKBONE.PRETRAIN_PATH": pretrained}
    for key, path in files.items():
        if path and "://" not in path:
            yield from _found("weights", _file, key, path)
    if backbone.PRETRAIN and not pretrained:
        text = "MODEL.BACKBONE.PRETRAIN True without PRETRAIN_PATH: fetched at the first start"
        yield Finding("note", "weights", text)
    if os.path.isfile(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint")):
        text = f"{cfg.OUTPUT_DIR} holds a training: --resume continues it, another replaces it"
        yield Finding("note", "output folder", text)


def _file(key: str, path: str) -> None:
    if not os.path.isfile(path):
        raise ValueError(f"{key} is {path!r}, which is not there: name a file, or write ''")
    read = read_checkpoint if key == "MODEL.WEIGHTS" else read_safely
    read(path)


def _training_set(cfg: Any, data: List[Any]) -> Iterator[Finding]:
    """Puts the data set of the training loader into `data`, if it can be loaded."""
    from fastreid.data import build_reid_train_loader

    cfg = config.changed(cfg, {"DATALOADER.NUM_WORKERS": 0})
    found = build_reid_train_loader(cfg, combineall=cfg.DATASETS.COMBINEALL).dataset
    data.append(found)
    text = f"{len(found)} pictures of {found.num_classes} identities by {found.num_cameras} cameras"
    yield Finding("ok", "training set", text)
    pictures = Counter(item[1] for item in found.img_items)
    alone = sum(count == 1 for count in pictures.values())
    if alone:
        text = f"{alone} of {found.num_classes} identities have one picture: they have no positive"
        yield Finding("note", "training set", text)
    own_keys.check_identities(cfg, found.num_classes)


def _test_set(cfg: Any, name: str) -> Iterator[Finding]:
    from fastreid.engine import DefaultTrainer

    loader, queries = DefaultTrainer.build_test_loader(cfg, name)  # refuses, as at a start
    items = loader.dataset.img_items
    text = f"{name}: {queries} queries, {len(items) - queries} pictures in the gallery"
    yield Finding("ok", "test set", f"{text}, {len({item[2] for item in items})} cameras")


def _schedule(cfg: Any, training: Optional[Any] = None) -> Iterator[Finding]:
    epochs, batch = cfg.SOLVER.MAX_EPOCH, cfg.SOLVER.IMS_PER_BATCH
    if config.late_rib(cfg):
        yield Finding("note", "RIB", config.late_rib(cfg))
    if cfg.SOLVER.SCHED == "MultiStepLR" and min(cfg.SOLVER.STEPS, default=0) >= epochs:
        text = f"SOLVER.STEPS {tuple(cfg.SOLVER.STEPS)} are beyond {epochs} epochs: it never falls"
        yield Finding("note", "learning rate", text)
    if training is None:
        return
    steps = len(training) // batch
    if steps == 0:
        text = (
            f"SOLVER.IMS_PER_BATCH is {batch}, and there are {len(training)} pictures: no batch is "
            "ever full. Write a smaller one"
        )
        yield Finding("FAIL", "training set", text)
    elif steps * epochs <= cfg.SOLVER.WARMUP_ITERS:
        text = (
            f"SOLVER.WARMUP_ITERS is {cfg.SOLVER.WARMUP_ITERS}, and the training has "
            f"{steps * epochs} steps: SOLVER.BASE_LR is never reached"
        )
        yield Finding("note", "learning rate", text)


def _network(cfg: Any, training: Any) -> Iterator[Finding]:
    from fastreid.modeling import build_model

    classes = cfg.MODEL.HEADS.NUM_CLASSES or training.num_classes
    changes = {"MODEL.BACKBONE.PRETRAIN": False, "MODEL.HEADS.NUM_CLASSES": classes}
    cfg = config.changed(cfg, changes)
    model = build_model(cfg)
    own_keys.check_network(cfg, model)
    count = sum(parameter.numel() for parameter in model.parameters())
    yield Finding("ok", "network", f"{type(model).__name__}, {count / 1e6:.1f} million parameters")
