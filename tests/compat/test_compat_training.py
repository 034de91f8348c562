"""The optimizer that FastReID builds over flat parameters, and what happens after an error."""

import pytest
import torch
from fastreid.solver import build_lr_scheduler, build_optimizer
from small_uses import small_batch, small_model, solver_cfg, steps

pytestmark = pytest.mark.published


def plain(optimizer=torch.optim.SGD, **kwargs):
    """The same five steps in plain torch, with the numbers of FastReID's defaults."""
    model = small_model()
    cfg = solver_cfg()
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
    return steps(model, optimizer(groups, **kwargs))


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_the_steps_are_those_of_plain_torch(name):
    momentum = {"momentum": solver_cfg().SOLVER.MOMENTUM} if name == "SGD" else {}
    losses = plain(getattr(torch.optim, name), **momentum)
    ours = small_model()
    optimizer, params = build_optimizer(solver_cfg(OPT=name), ours)
    assert steps(ours, optimizer) == pytest.approx(losses, abs=1e-5)
    assert losses[-1] < losses[0]
    assert params.buffer_is_valid()


def test_zero_grad_keeps_the_flat_gradient_however_it_is_called():
    model = small_model()
    optimizer, params = build_optimizer(solver_cfg(), model)
    images, labels = small_batch()
    for how in ({}, {"set_to_none": False}, {"set_to_none": True}):
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        buffers = [p.grad for group in optimizer.param_groups for p in group["params"]]
        assert all(b.abs().sum() > 0 for b in buffers)
        optimizer.zero_grad(**how)
        after = [p.grad for group in optimizer.param_groups for p in group["params"]]
        assert all(b is a and not a.any() for b, a in zip(buffers, after))
        assert params.buffer_is_valid()


def test_ordinary_parameters_keep_torchs_behaviour():
    model = small_model()
    optimizer = build_optimizer(solver_cfg(), model, contiguous=False)[0]
    steps(model, optimizer)
    optimizer.zero_grad(set_to_none=True)
    assert all(p.grad is None for p in model.parameters())


def test_swa_wrapper_learns():
    from fastreid.solver.optim import SWA

    losses = plain(momentum=solver_cfg().SOLVER.MOMENTUM)
    model = small_model()
    wrapped = SWA(build_optimizer(solver_cfg(), model)[0], swa_freq=2, swa_lr_factor=1.0)
    assert steps(model, wrapped) == pytest.approx(losses, abs=1e-6)


def test_the_swa_hook_reaches_the_trainer():
    import types

    from fastreid.engine import DefaultTrainer, hooks
    from fastreid.solver.optim import SWA

    trainer = DefaultTrainer.__new__(DefaultTrainer)
    trainer._trainer = types.SimpleNamespace(optimizer=build_optimizer(solver_cfg(), small_model()))
    trainer.iter = 5
    hook = hooks.SWA(swa_start=5, swa_freq=2, swa_lr_factor=0.5, eta_min=0.0)
    hook.trainer = trainer
    hook.before_step()
    assert isinstance(trainer.optimizer, SWA)
    assert trainer.optimizer is trainer._trainer.optimizer


def test_the_result_of_build_optimizer_is_optimizer_and_pair():
    """The first is what tools/plain_train_net.py takes it for."""
    built = build_optimizer(solver_cfg(), small_model())
    build_lr_scheduler(solver_cfg(WARMUP_ITERS=2, MAX_EPOCH=3), built, 2)
    optimizer, params = built
    assert optimizer is built
    assert (built[0], built[1]) == (optimizer, params)
    assert isinstance(built, torch.optim.SGD)
    assert set(built.state_dict()) == {"state", "param_groups"}


def test_an_optimizer_gets_one_class_of_its_own():
    """However many repairs give it methods; torch's, and other optimizers', are as they were."""
    first, second = (build_optimizer(solver_cfg(), small_model())[0] for _ in range(2))
    for optimizer in (first, second):
        assert type(optimizer).__mro__[1] is torch.optim.SGD
        assert type(optimizer).__name__ == "SGD"
    assert type(first) is not type(second)
    assert not hasattr(torch.optim.SGD, "__iter__")
    assert not hasattr(torch.optim.SGD.zero_grad, "__stock__")


def test_a_cosine_after_a_warm_up_as_long_as_the_training():
    """Three epochs of two steps, five of which warm up."""
    cfg = solver_cfg(SCHED="CosineAnnealingLR", WARMUP_ITERS=5, MAX_EPOCH=3)
    optimizer = build_optimizer(cfg, small_model())[0]
    schedulers = build_lr_scheduler(cfg, optimizer, 2)
    for _ in range(6):
        schedulers["warmup_sched"].step()
    schedulers["lr_sched"].step()  # as the trainer does after the last epoch
    assert 0 < optimizer.param_groups[0]["lr"] < 1e-3


def test_a_nan_says_whose_it_is(monkeypatch):
    """FastReID's trainer writes the losses of two processes, one of them NaN in the second."""
    from fastreid.engine import train_loop
    from fastreid.utils import comm
    from fastreid.utils.events import EventStorage

    trainer = train_loop.SimpleTrainer(small_model(), [], None, None)
    trainer.iter, gather = 7, comm.gather
    other = {"loss_cls": float("nan"), "loss_rib": 0.5, "data_time": 0.0}
    monkeypatch.setattr(comm, "gather", lambda data: [*gather(data), other])
    terms = {"loss_cls": torch.tensor(1.0), "loss_rib": torch.tensor(0.25)}
    told = "^loss_cls is nan on rank 1, at iteration 7"
    with EventStorage(), pytest.raises(FloatingPointError, match=told):
        trainer._write_metrics(terms, data_time=0.0)


@pytest.mark.parametrize("name, depth", [("regnet", "200x"), ("effnet", "b0")])
def test_backbones_find_their_settings_outside_a_checkout(name, depth, tmp_path, monkeypatch):
    from fastreid.modeling.backbones import build_backbone

    monkeypatch.chdir(tmp_path)
    cfg = solver_cfg()
    cfg.MODEL.BACKBONE.PRETRAIN = False
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.DEPTH = f"build_{name}_backbone", depth
    assert len(list(build_backbone(cfg).parameters())) > 100


@pytest.mark.parametrize("key, choices", [("POOL_LAYER", "GlobalAvgPool"), ("CLS_LAYER", "Linear")])
def test_an_unknown_layer_of_a_head_names_its_key(make_small_cfg, key, choices):
    from fastreid.engine import DefaultTrainer

    with pytest.raises(ValueError, match=f"MODEL.HEADS.{key} is not right.*{choices}.* got Nope"):
        DefaultTrainer.build_model(make_small_cfg({f"MODEL.HEADS.{key}": "Nope"}))


@pytest.fixture
def distiller(make_small_cfg, tmp_path):
    """``distiller(student, teacher, weights)``: one with these numbers of identities."""
    from fastreid.engine import DefaultTrainer

    def build(student=8, teacher=8, weights=8, **changes):
        config, checkpoint = str(tmp_path / "t.yml"), str(tmp_path / "t.pth")
        cfg = make_small_cfg({"MODEL.HEADS.NUM_CLASSES": weights})
        torch.save({"model": DefaultTrainer.build_model(cfg).state_dict()}, checkpoint)
        cfg.MODEL.HEADS.NUM_CLASSES, cfg.MODEL.DEVICE = teacher, "meta"
        (tmp_path / "t.yml").write_text(cfg.dump())
        distills = {
            "MODEL.META_ARCHITECTURE": "Distiller",
            "MODEL.HEADS.NUM_CLASSES": student,
            "KD.MODEL_CONFIG": (config,),
            "KD.MODEL_WEIGHTS": (checkpoint,),
        }
        return DefaultTrainer.build_model(make_small_cfg({**distills, **changes}))

    return build


def test_a_teacher_is_where_the_student_is(distiller):
    (teacher,) = distiller().model_ts
    assert {p.device.type for p in teacher.parameters()} == {"cpu"}


@pytest.mark.parametrize(
    "case, told",
    [
        ({"student": 5}, "t.yml has MODEL.HEADS.NUM_CLASSES 8, and the student 5"),
        (
            {"teacher": 0},
            r"t.pth does not fit KD.MODEL_CONFIG .*t.yml: heads.weight is \(8, 128\) there and "
            r"\(0, 128\) here.* Write MODEL.HEADS.NUM_CLASSES 8 in .*t.yml",
        ),
        ({"KD.MODEL_CONFIG": ("gone.yml",)}, "KD.MODEL_CONFIG gone.yml is not found"),
        ({"KD.MODEL_WEIGHTS": ("gone.pth",)}, "KD.MODEL_WEIGHTS gone.pth is not found"),
    ],
)
def test_a_teacher_that_does_not_fit_says_what_to_write(distiller, case, told):
    with pytest.raises((ValueError, FileNotFoundError), match=told):
        distiller(**case)


def test_a_teacher_without_a_head_is_refused(distiller, monkeypatch):
    """Such as the weights of ImageNet: it would be random, and so would what is distilled."""
    save = torch.save

    def without(content, path):
        state = {k: v for k, v in content["model"].items() if not k.startswith("heads.")}
        save({"model": state}, path)

    monkeypatch.setattr(torch, "save", without)
    with pytest.raises(ValueError, match="heads.* is not there.*config.yaml beside them"):
        distiller()
