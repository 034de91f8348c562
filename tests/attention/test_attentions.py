"""What holds for every attention module."""

import io
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastreid_rib.attention import ATTENTIONS, attention_settings, build_attention

C = 8
CASES = [
    ("DCS", {}),
    ("DCS", {"width": 4, "norm": "layer"}),
    ("SelfAttention", {"width": 4, "scale": "sqrt", "norm": "none"}),
    ("SE", {"reduction": 2}),
    ("CBAM", {"reduction": 2, "norm": "none"}),
    ("ECA", {}),
]
# Whatever else can be built, with its defaults.
CASES += [(name, {}) for name in ATTENTIONS if name not in dict(CASES)]
OF_TOKENS = [case for case in CASES if case[0] in ("DCS", "SelfAttention")]
every = pytest.mark.parametrize("name, options", CASES, ids=str)
each_module = pytest.mark.parametrize("name, options", dict(reversed(CASES)).items(), ids=str)


def build(name, options, seed=0):
    torch.manual_seed(seed)
    return build_attention(name, C, **options)


def trained(name, options, seed=0):
    """With every parameter moved, as after some training."""
    module = build(name, options, seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return module


def feature_map(height=3, width=5, images=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(images, C, height, width, generator=generator)


def seeded(module, x, seed=7):
    torch.manual_seed(seed)
    return module(x)


# Shapes and dtypes


@every
def test_several_processes_do_not_change_what_it_computes(name, options):
    """SyncBatchNorm takes the place of torch's own batch normalisations, and reads other axes."""
    module = trained(name, options)
    expected = module.eval()(feature_map())
    converted = torch.nn.SyncBatchNorm.convert_sync_batchnorm(module)
    assert torch.equal(converted(feature_map()), expected)


@given(
    case=st.sampled_from(CASES),
    size=st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    channels_last=st.booleans(),
    training=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_identity_at_step_0(case, size, dtype, channels_last, training):
    images, height, width = size
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = feature_map(height, width, images).to(dtype, memory_format=layout)
    module = build(*case).to(dtype).train(training)
    y = module(x)
    assert y.dtype == dtype and y.is_contiguous(memory_format=layout) and torch.equal(y, x)
    if case in OF_TOKENS:
        tokens = x.flatten(2).transpose(1, 2)
        assert torch.equal(module(tokens), tokens)


@every
def test_trained_it_changes_every_shape_of_map_and_not_its_input(name, options):
    module = trained(name, options)
    for height, width in [(1, 1), (1, 4), (4, 1), (3, 5)]:
        x = feature_map(height, width)
        before, y = x.clone(), module(x)
        assert y.shape == x.shape and y.isfinite().all() and torch.equal(x, before)
        assert (y != x).flatten(1).any(1).all()
    assert module(torch.zeros(0, C, 3, 2)).shape == (0, C, 3, 2)


@pytest.mark.parametrize("name, options", OF_TOKENS, ids=str)
def test_tokens(name, options):
    """The same as the map of them; one token takes from nothing but itself."""
    x, module = feature_map(), trained(name, options)
    one = torch.randn(2, 1, C)
    assert torch.allclose(module(one), one + module.project(module.norm(module.reduce(one))))
    expected = module.eval()(x).flatten(2).transpose(1, 2)
    assert torch.allclose(module(x.flatten(2).transpose(1, 2)), expected, atol=1e-6)


@every
def test_in_eval_images_do_not_mix_and_nothing_is_drawn(name, options):
    x, module = feature_map(images=3), trained(name, options).eval()
    state = torch.get_rng_state()
    output = module(x)
    assert torch.equal(module(x), output) and torch.equal(torch.get_rng_state(), state)
    alone = torch.cat([module(image[None]) for image in x])
    assert torch.allclose(output, alone, atol=1e-5)


@every
def test_training_follows_from_the_seed(name, options):
    x, module = feature_map(), trained(name, options)
    outputs = [seeded(module, x, seed) for seed in (0, 0, 1)]
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2]) == (name != "DCS")


# Gradients

# The only layers whose gradient passes through nothing that starts at zero.
LAST = ("project.", "excite.3.", "conv.")


@every
def test_every_parameter_gets_a_gradient(name, options):
    """In the graph from step 0 on (DDP), not zero from step 1 on; the input's is the identity's."""
    module, target = build(name, options), feature_map(seed=2)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for step in range(2):
        optimizer.zero_grad()
        x = feature_map(seed=step + 3).requires_grad_()
        (module(x) * target).sum().backward()
        assert all(p.grad is not None for p in module.parameters())
        reached = {n for n, p in module.named_parameters() if p.grad.abs().sum() > 0}
        names = {n for n, _ in module.named_parameters()}
        if step == 0:  # of a module without such layers at least one parameter
            names = {n for n in names if n.startswith(LAST)} or reached
            assert names and torch.allclose(x.grad, target, atol=1e-6)
        assert reached == names
        optimizer.step()


@pytest.mark.parametrize("name, options", [case for case in CASES if case[0] != "DCS"], ids=str)
def test_gradient_by_differences(name, options):
    module = trained(name, options).double()
    assert torch.autograd.gradcheck(module, feature_map(2, 2, 1).double().requires_grad_())


# Surroundings


@every
def test_autocast(name, options):
    x, module = feature_map(), trained(name, options)
    exact = seeded(module, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded, halves = seeded(module, x.requires_grad_()), seeded(module, x.bfloat16())
    (rounded.sum() + halves.float().sum()).backward()
    assert rounded.dtype == torch.float32 and halves.dtype == torch.bfloat16
    assert x.grad.isfinite().all() and all(p.grad.isfinite().all() for p in module.parameters())
    # bfloat16 has 8 bits; a mask entry whose logit is rounded to the other side moves more.
    for output in (rounded, halves.float()):
        assert (output - exact).abs().median() < 0.02 * exact.abs().mean()


# As in checkpoints of version 0.1 and 0.2; a norm over the batch adds its running statistics.
KEYS = {
    "DCS": {"project.weight", "project.bias", "mask.logits.weight", "mask.logits.bias"},
    "SelfAttention": {"project.weight", "project.bias"},
    "SE": {"excite.0.weight", "excite.3.weight"},
    "CBAM": {"excite.0.weight", "excite.3.weight"},
    "ECA": {"conv.weight"},
}


@every
def test_state_loads_into_a_new_module(name, options):
    x, module = feature_map(), trained(name, options)
    module(x)
    other = build(name, options, seed=9)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other.eval()(x), module.eval()(x))
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    names = {n for n in module.state_dict() if not n.endswith(statistics)}
    assert names == {n for n, _ in module.named_parameters()}
    if name in KEYS:
        assert names == KEYS[name] | ({"reduce.weight"} if "width" in options else set())


@pytest.mark.published
@each_module
def test_exported_it_gives_the_same(name, options):
    """Traced without a warning, for any size; by torch.export; and as ONNX, for any batch."""
    x, module = feature_map(), trained(name, options).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", torch.jit.TracerWarning)
        traced = torch.jit.trace(module, x)
    for other in (x, feature_map(4, 2, 3)):
        assert torch.allclose(traced(other), module(other), atol=1e-6)
    if hasattr(torch, "export"):  # it came with torch 2.1
        exported = torch.export.export(module, (x,)).module()
        assert torch.allclose(exported(x), module(x), atol=1e-6)
    reason = "ONNX models are exported (torch >= 2) and run with the packages onnx and onnxruntime"
    legacy = {"dynamo": False} if hasattr(torch, "compile") else {}
    if legacy:
        pytest.importorskip("onnx", reason=reason)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (x,),
            file,
            input_names=["x"],
            opset_version=13,
            dynamic_axes={"x": {0: "batch"}},
            **legacy,
        )
    onnxruntime = pytest.importorskip("onnxruntime", reason=reason)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    for batch in (x, torch.cat((x, x.flip(0), x))):
        (y,) = session.run(None, {"x": batch.numpy()})
        assert torch.allclose(torch.from_numpy(y), module(batch), atol=1e-5)


@pytest.mark.today_only
@each_module
def test_compiled_it_gives_the_same(name, options):
    x, module = feature_map(), trained(name, options)
    torch._dynamo.reset()
    gradients = []
    for run in (module, torch.compile(module, fullgraph=True, backend="aot_eager")):
        module.zero_grad()
        seeded(run, x).square().sum().backward()
        gradients.append([p.grad.clone() for p in module.parameters()])
    for eager, ours in zip(*gradients):
        assert torch.allclose(eager, ours, rtol=1e-4, atol=1e-5)


@pytest.mark.today_only
def test_an_epochs_temperature_does_not_compile_anew():
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    module, counter = trained("DCS", {}), CompileCounter()
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    for epoch in range(6):
        module.set_progress(epoch / 6)
        compiled(feature_map())
    assert counter.frame_count <= 2  # the number, then any number


# Settings


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("DCS", {"width": 9}, "width must be in 0..8"),
        ("DCS", {"mask_bias": float("nan")}, "mask_bias must be between -20 and 20"),
        ("DCS", {"norm": "bn"}, "norm must be one of batch, layer, none, got 'bn'"),
        ("SE", {"reduction": 0}, "reduction must be in 1..8"),
        ("ECA", {"kernel_size": 4}, "kernel_size must be odd"),
    ],
)
def test_settings_out_of_range(name, options, message):
    with pytest.raises(ValueError, match=message):
        build_attention(name, C, **options)


@each_module
def test_wrong_sizes(name, options):
    with pytest.raises(ValueError, match="channels must be >= 1, got 0"):
        build_attention(name, 0)
    module = build(name, options)
    for x in (torch.zeros(2, C + 1, 3, 3), torch.zeros(2, C), torch.zeros(2, 3, C + 1)):
        with pytest.raises(ValueError, match=r"takes \(B, 8, H, W\) maps"):
            module(x)


def test_names_and_settings_that_are_not_there():
    for raised, name, options, message in [
        (KeyError, "selfatention", {}, "Did you mean 'SelfAttention'.*DCS, SelfAttention, SE"),
        (TypeError, "DCS", {"widht": 4}, "Did you mean 'width'.*It has width, temperature"),
        (KeyError, "CAM", {}, "CAM is gone: write SE, ECA or CBAM"),
        (TypeError, "DCS", {"rank": 4}, "no longer has the setting 'rank'.*write WIDTH"),
        (TypeError, "SelfAttention", {"depthwise": True}, "Leave it out"),
    ]:
        with pytest.raises(raised, match=message):
            build_attention(name, C, **options)


def test_a_class_put_into_the_registry_can_be_built(monkeypatch):
    class Mine(torch.nn.Module):
        def __init__(self, channels, *, strength=1.0):
            super().__init__()
            self.settings = (channels, strength)

    monkeypatch.setitem(ATTENTIONS, "Mine", Mine)
    assert attention_settings("Mine") == {"strength": 1.0}
    assert build_attention("Mine", 3, strength=2.0).settings == (3, 2.0)
