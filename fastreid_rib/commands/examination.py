"""What in a config and in its data would stop or spoil a training, found before it begins.

All of it is found by the checks that a training makes at its start; here they are asked one after
the other, and all that they say is kept.
"""

import logging
import os
from collections import Counter
from typing import Any, Callable, Iterator, List, NamedTuple, Optional, Sequence

from fastreid_rib.base.kept import generators_kept
from fastreid_rib.base.safe_reads import checked, read_safely
from fastreid_rib.compat.datasets import refuse_unanswerable
from fastreid_rib.integration import config, own_keys

_MUCH = 2**30  # bytes of a class table that is worth a word


class Finding(NamedTuple):
    """One line of the report of ``doctor``."""

    status: str
    """``ok``, ``note`` (works, but you may want to know) or ``FAIL`` (training cannot work)."""
    subject: str
    text: str


def examine(config_file: str, opts: Sequence[str] = ()) -> List[Finding]:
    """Examines a config and its data.

    Pictures are counted, not read; a network is built without pretrained weights, and nothing is
    trained. Drawn data sets are made, as a training would.

    Args:
        config_file: a FastReID config.
        opts: keys and values that change it, as FastReID's scripts take them.

    Returns:
        "FAIL" for what a training would stop at, "note" for what may spoil one, "ok" for counts.
    """
    from fastreid.config import get_cfg

    cfg = get_cfg()
    try:
        cfg.merge_from_file(config_file)
        cfg.merge_from_list(list(opts))
    except Exception as error:  # yacs has several
        return [_failure("config", error)]
    keys = _keys(cfg)
    understood = all(finding.status != "FAIL" for finding in keys)
    findings = [*keys, *_machine(cfg), *_files(cfg)]
    logging.disable(logging.INFO)  # FastReID's tables of the data sets
    try:
        with generators_kept():
            training = _training_set(cfg, findings)
            findings += [finding for name in cfg.DATASETS.TESTS for finding in _test_set(name)]
            findings += _schedule(cfg, training) if understood else []
            if all(finding.status != "FAIL" for finding in findings):
                findings += _network(cfg, training)
    finally:
        logging.disable(logging.NOTSET)
    return findings


def _failure(subject: str, error: BaseException) -> Finding:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return Finding("FAIL", subject, text or type(error).__name__)


def _asked(subject: str, check: Callable[[], Any]) -> List[Finding]:
    try:
        check()
    except Exception as error:  # a check that fails is a finding
        return [_failure(subject, error)]
    return []


def _keys(cfg: Any) -> List[Finding]:
    found = _asked("config", lambda: config.check(cfg))
    if not found:  # the rules ask for the names of the losses, which are known then
        found += [_failure("config", refusal) for refusal in own_keys.refusals(cfg)]
    return found or [Finding("ok", "config", "its keys are what they can be")]


def _machine(cfg: Any) -> Iterator[Finding]:
    import torch

    cuda = cfg.MODEL.DEVICE.startswith("cuda")
    if cuda and not torch.cuda.is_available():
        text = f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r}, and there is no GPU: write cpu"
        yield Finding("FAIL", "device", text)
    if cfg.SOLVER.AMP.ENABLED and not torch.cuda.is_available():
        yield Finding("FAIL", "device", "SOLVER.AMP.ENABLED is True, and needs a GPU: write False")
    for key in ("BACKBONE", "HEADS"):
        if cfg.MODEL[key].NORM == "syncBN" and not cuda:
            text = f"MODEL.{key}.NORM syncBN is for processes with a GPU each: write BN"
            yield Finding("FAIL", "device", text)


def _files(cfg: Any) -> Iterator[Finding]:
    backbone = cfg.MODEL.BACKBONE
    weights, pretrained = cfg.MODEL.WEIGHTS, backbone.PRETRAIN_PATH if backbone.PRETRAIN else ""
    yield from _file("MODEL.WEIGHTS", weights, lambda: checked(weights, _read(weights)))
    yield from _file("MODEL.BACKBONE.PRETRAIN_PATH", pretrained, _read(pretrained))
    if backbone.PRETRAIN and not backbone.PRETRAIN_PATH:
        text = "MODEL.BACKBONE.PRETRAIN True without PRETRAIN_PATH: fetched at the first start"
        yield Finding("note", "weights", text)
    if os.path.isfile(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint")):
        text = f"{cfg.OUTPUT_DIR} holds a training: --resume continues it, another replaces it"
        yield Finding("note", "output folder", text)


def _read(path: str) -> Callable[[], Any]:
    return lambda: read_safely(path)


def _file(key: str, path: str, read: Callable[[], Any]) -> List[Finding]:
    if not path or "://" in path:
        return []
    if not os.path.isfile(path):
        text = f"{key} is {path!r}, which is not there: name a file, or write ''"
        return [Finding("FAIL", "weights", text)]
    return _asked("weights", read)


def _training_set(cfg: Any, findings: List[Finding]) -> Optional[Any]:
    """The data set of the training loader, with its findings; None if it cannot be loaded."""
    from fastreid.data import build_reid_train_loader

    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATALOADER.NUM_WORKERS = 0
    try:
        data = build_reid_train_loader(cfg, combineall=cfg.DATASETS.COMBINEALL).dataset
    except Exception as error:
        findings.append(_failure("training set", error))
        return None
    pictures = Counter(item[1] for item in data.img_items)
    text = f"{len(data)} pictures of {data.num_classes} identities by {data.num_cameras} cameras"
    findings.append(Finding("ok", "training set", text))
    alone = sum(count == 1 for count in pictures.values())
    if alone:
        text = f"{alone} of {data.num_classes} identities have one picture: they have no positive"
        findings.append(Finding("note", "training set", text))
    findings += _asked("training set", lambda: own_keys.check_identities(cfg, data.num_classes))
    return data


def _test_set(name: str) -> Iterator[Finding]:
    from fastreid.data.build import _root
    from fastreid.data.datasets import DATASET_REGISTRY

    try:
        data = DATASET_REGISTRY.get(name)(root=_root)
        refuse_unanswerable(name, data.query, data.gallery)
    except Exception as error:
        yield _failure("test set", error)
        return
    cameras = {item[2] for item in [*data.query, *data.gallery]}
    text = f"{name}: {len(data.query)} queries, {len(data.gallery)} pictures in the gallery"
    yield Finding("ok", "test set", f"{text}, {len(cameras)} cameras")


def _schedule(cfg: Any, training: Optional[Any]) -> Iterator[Finding]:
    epochs = cfg.SOLVER.MAX_EPOCH
    if config.late_rib(cfg):
        yield Finding("note", "RIB", config.late_rib(cfg))
    if cfg.SOLVER.SCHED == "MultiStepLR" and min(cfg.SOLVER.STEPS, default=0) >= epochs:
        text = f"SOLVER.STEPS {tuple(cfg.SOLVER.STEPS)} are beyond {epochs} epochs: it never falls"
        yield Finding("note", "learning rate", text)
    if training is None or cfg.SOLVER.IMS_PER_BATCH < 1:
        return
    steps = len(training) // cfg.SOLVER.IMS_PER_BATCH
    if steps == 0:
        text = (
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, and there are {len(training)} "
            "pictures: no batch is ever full. Write a smaller one"
        )
        yield Finding("FAIL", "training set", text)
    elif steps * epochs <= cfg.SOLVER.WARMUP_ITERS:
        text = (
            f"SOLVER.WARMUP_ITERS is {cfg.SOLVER.WARMUP_ITERS}, and the training has "
            f"{steps * epochs} steps: SOLVER.BASE_LR is never reached"
        )
        yield Finding("note", "learning rate", text)


def _network(cfg: Any, training: Optional[Any]) -> Iterator[Finding]:
    from fastreid.modeling import build_model

    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.BACKBONE.PRETRAIN = False
    identities = cfg.MODEL.HEADS.NUM_CLASSES or (training.num_classes if training else 1)
    cfg.MODEL.HEADS.NUM_CLASSES = identities
    try:
        model = build_model(cfg)
        own_keys.check_network(cfg, model)
    except Exception as error:
        yield _failure("network", error)
        return
    count = sum(parameter.numel() for parameter in model.parameters())
    yield Finding("ok", "network", f"{type(model).__name__}, {count / 1e6:.1f} million parameters")
    rib = getattr(model, "rib", None)
    if rib is not None:
        size = 4 * identities * rib.settings.num_clusters
        if size > _MUCH:
            text = (
                f"the class table takes {size / 2**30:.1f} GiB in every process; "
                "a smaller MODEL.LOSSES.RIB.NUM_CLUSTERS makes it smaller"
            )
            yield Finding("note", "RIB", text)
