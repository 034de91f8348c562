"""The optimizer that FastReID builds over flat parameters, and what happens after an error."""

import copy
import threading

import pytest
import torch
from cases import learned, pair_as_optimizer, small_batch, small_cfg, small_model, steps
from fastreid.solver import build_optimizer

from fastreid_rib.compat.training import zero_grad_drops_gradients

pytestmark = pytest.mark.published


def plain(optimizer=torch.optim.SGD, count=5, **kwargs):
    """The same five steps in plain torch, with the numbers of FastReID's defaults."""
    model = small_model()
    cfg = small_cfg()
    groups = [
        {
            "params": [p],
            "lr": cfg.SOLVER.BASE_LR * (cfg.SOLVER.BIAS_LR_FACTOR if "bias" in name else 1.0),
            "weight_decay": cfg.SOLVER.WEIGHT_DECAY_BIAS
            if "bias" in name
            else cfg.SOLVER.WEIGHT_DECAY,
        }
        for name, p in model.named_parameters()
    ]
    return steps(model, optimizer(groups, **kwargs), count), model


def same(model, other):
    return all(
        torch.allclose(p, q, atol=1e-6) for p, q in zip(model.parameters(), other.parameters())
    )


def test_the_steps_are_those_of_plain_torch():
    losses, model = plain(momentum=small_cfg().SOLVER.MOMENTUM)
    ours = small_model()
    optimizer, params = build_optimizer(small_cfg(), ours)
    assert steps(ours, optimizer) == pytest.approx(losses, abs=1e-6)
    assert losses[-1] < losses[0]
    assert same(ours, model)
    assert params.buffer_is_valid()


def test_other_optimizers():
    for name in ("Adam", "AdamW", "RMSprop"):
        losses, _ = plain(getattr(torch.optim, name))
        ours = small_model()
        optimizer = build_optimizer(small_cfg(OPT=name), ours)[0]
        assert steps(ours, optimizer) == pytest.approx(losses, abs=1e-5), name


def test_zero_grad_keeps_the_flat_gradient_however_it_is_called():
    model = small_model()
    optimizer, params = build_optimizer(small_cfg(), model)
    images, labels = small_batch()
    hows = [{}, {"set_to_none": False}]
    if zero_grad_drops_gradients():  # torch 1 stays as it is: there nobody asks for None by default
        hows.append({"set_to_none": True})
    for how in hows:
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        buffers = [p.grad for group in optimizer.param_groups for p in group["params"]]
        assert all(b.abs().sum() > 0 for b in buffers)
        optimizer.zero_grad(**how)
        after = [p.grad for group in optimizer.param_groups for p in group["params"]]
        assert all(b is a and not a.any() for b, a in zip(buffers, after))
        assert params.buffer_is_valid()


def test_clipping_and_frozen_layers_still_act():
    cfg = small_cfg(FREEZE_ITERS=2)
    cfg.MODEL.FREEZE_LAYERS = ["0"]
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 1e-4
    model = small_model()
    before = copy.deepcopy(model)
    optimizer = build_optimizer(cfg, model)[0]
    assert type(optimizer).__name__ == "SGDWithGradientClipWithFreezeLayer"
    steps(model, optimizer, count=2)
    assert torch.equal(model[0].weight, before[0].weight)
    # Two steps of momentum 0.9 with gradients clipped to 1e-4, plus a weight decay of 5e-4:
    moved = (model[2].weight - before[2].weight).abs()
    most = 0.1 * (1 + 1.9) * (1e-4 + 5e-4 * before[2].weight.abs().max())
    assert 0 < moved.max() <= most
    steps(model, optimizer, count=1)
    assert not torch.equal(model[0].weight, before[0].weight)


def test_ordinary_parameters_keep_torchs_behaviour():
    model = small_model()
    optimizer = build_optimizer(small_cfg(), model, contiguous=False)[0]
    steps(model, optimizer)
    optimizer.zero_grad()
    assert all((p.grad is None) == zero_grad_drops_gradients() for p in model.parameters())


def test_swa_wrapper_learns():
    from fastreid.solver.optim import SWA

    losses, _ = plain(momentum=small_cfg().SOLVER.MOMENTUM)
    model = small_model()
    wrapped = SWA(build_optimizer(small_cfg(), model)[0], swa_freq=2, swa_lr_factor=1.0)
    assert steps(model, wrapped) == pytest.approx(losses, abs=1e-6)


def test_the_swa_hook_reaches_the_trainer():
    import types

    from fastreid.engine import DefaultTrainer, hooks
    from fastreid.solver.optim import SWA

    trainer = DefaultTrainer.__new__(DefaultTrainer)
    trainer._trainer = types.SimpleNamespace(optimizer=build_optimizer(small_cfg(), small_model()))
    trainer.iter = 5
    hook = hooks.SWA(swa_start=5, swa_freq=2, swa_lr_factor=0.5, eta_min=0.0)
    hook.trainer = trainer
    hook.before_step()
    assert isinstance(trainer.optimizer, SWA)
    assert trainer.optimizer is trainer._trainer.optimizer


@pytest.mark.skipif(not hasattr(torch.amp, "GradScaler"), reason="no GradScaler for the CPU")
def test_grad_scaler_finds_the_gradients():
    model = small_model()
    optimizer = build_optimizer(small_cfg(), model)[0]
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    before = copy.deepcopy(model)
    images, labels = small_batch()
    optimizer.zero_grad()
    scaler.scale(torch.nn.functional.cross_entropy(model(images), labels)).backward()
    scaler.step(optimizer)
    scaler.update()
    assert not same(model, before)


def test_the_result_of_build_optimizer_is_optimizer_and_pair():
    losses = pair_as_optimizer()
    assert losses[-1] < losses[0] == learned()[0]
    built = build_optimizer(small_cfg(), small_model())
    optimizer, params = built
    assert optimizer is built
    assert (built[0], built[1]) == (optimizer, params)
    assert isinstance(built, torch.optim.SGD)
    assert set(built.state_dict()) == {"state", "param_groups"}


def test_an_optimizer_gets_one_class_of_its_own():
    """However many repairs give it methods; torch's, and other optimizers', are as they were."""
    first, second = (build_optimizer(small_cfg(), small_model())[0] for _ in range(2))
    for optimizer in (first, second):
        assert type(optimizer).__mro__[1] is torch.optim.SGD
        assert type(optimizer).__name__ == "SGD"
    assert type(first) is not type(second)
    assert not hasattr(torch.optim.SGD, "__iter__")
    assert not hasattr(torch.optim.SGD.zero_grad, "__stock__")


def test_nothing_is_evaluated_after_a_failure():
    from fastreid.engine.hooks import EvalHook

    class Trainer:
        epoch, max_epoch = 0, 1

    called = threading.Event()
    for fails in (True, False):
        hook = EvalHook(2, lambda: called.set())
        hook.trainer = Trainer
        try:
            try:
                if fails:
                    raise RuntimeError("training failed")
            finally:
                hook.after_train()
        except RuntimeError:
            assert not called.is_set()
    assert called.is_set()


@pytest.mark.parametrize("key, choices", [("POOL_LAYER", "GlobalAvgPool"), ("CLS_LAYER", "Linear")])
def test_an_unknown_layer_of_a_head_names_its_key(make_small_cfg, key, choices):
    from fastreid.engine import DefaultTrainer

    with pytest.raises(ValueError, match=f"MODEL.HEADS.{key} is not right.*{choices}.* got Nope"):
        DefaultTrainer.build_model(make_small_cfg({f"MODEL.HEADS.{key}": "Nope"}))


def test_a_teacher_of_other_identities_names_the_key(make_small_cfg, tmp_path):
    from fastreid.engine import DefaultTrainer

    others, file, weights = make_small_cfg({"MODEL.HEADS.NUM_CLASSES": 5}), "t.yml", "t.pth"
    (tmp_path / file).write_text(others.dump())
    state = DefaultTrainer.build_model(others).state_dict()
    torch.save({"model": state}, str(tmp_path / weights))
    distills = {
        "MODEL.META_ARCHITECTURE": "Distiller",
        "KD.MODEL_CONFIG": (str(tmp_path / file),),
        "KD.MODEL_WEIGHTS": (str(tmp_path / weights),),
    }
    with pytest.raises(ValueError, match=r"t.yml has MODEL.HEADS.NUM_CLASSES 5, and the student 8"):
        DefaultTrainer.build_model(make_small_cfg(distills))
    built = DefaultTrainer.build_model(make_small_cfg({**distills, "MODEL.HEADS.NUM_CLASSES": 5}))
    assert len(built.model_ts) == 1
