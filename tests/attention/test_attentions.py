"""What holds for every attention module."""

import copy
import io
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastreid_rib import attention
from fastreid_rib.attention import ATTENTIONS, attention_settings, build_attention

C = 8
CASES = [
    ("DCS", {}),
    ("DCS", {"width": 4}),
    ("DCS", {"scale": "sqrt"}),
    ("DCS", {"norm": "none"}),
    ("DCS", {"rank": 2}),
    ("DCS", {"groups": 4}),
    ("DCS", {"width": 4, "groups": 2, "depthwise": True}),
    ("SelfAttention", {}),
    ("SelfAttention", {"norm": "layer"}),
    ("SelfAttention", {"width": 4, "scale": "sqrt"}),
    ("SelfAttention", {"width": 4, "rank": 2}),
    ("SelfAttention", {"groups": 2}),
    ("SelfAttention", {"rank": 3, "depthwise": True}),
    ("SE", {"reduction": 2}),
    ("SE", {"reduction": 2, "norm": "none"}),
    ("CBAM", {"reduction": 2}),
    ("ECA", {}),
    ("CAM", {}),
]
# Whatever else can be built, with its defaults.
CASES += [(name, {}) for name in ATTENTIONS if name not in dict(CASES)]
TAKES_TOKENS = [
    (name, options)
    for name, options in CASES
    if name in ("DCS", "SelfAttention") and not options.get("depthwise")
]
every = pytest.mark.parametrize("name, options", CASES, ids=str)
every_of_tokens = pytest.mark.parametrize("name, options", TAKES_TOKENS, ids=str)


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


def feature_map(height=3, width=5, images=2, seed=1, **options):
    return torch.randn(
        images, C, height, width, generator=torch.Generator().manual_seed(seed), **options
    )


# Shapes and dtypes


@given(
    case=st.sampled_from(CASES),
    size=st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    channels_last=st.booleans(),
    training=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_identity_at_step_0_for_any_map(case, size, dtype, channels_last, training):
    images, height, width = size
    x = feature_map(height, width, images).to(dtype)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = x.contiguous(memory_format=layout)
    y = build(*case).to(dtype).train(training)(x)
    assert y.dtype == dtype and y.is_contiguous(memory_format=layout) and torch.equal(y, x)


@given(
    case=st.sampled_from(TAKES_TOKENS),
    size=st.tuples(st.integers(1, 3), st.integers(1, 9)),
    training=st.booleans(),
)
@settings(max_examples=30, deadline=None)
def test_identity_at_step_0_for_any_tokens(case, size, training):
    x = torch.randn(*size, C)
    assert torch.equal(build(*case).train(training)(x), x)


@every
@pytest.mark.parametrize("height, width", [(1, 1), (1, 4), (4, 1), (3, 5)])
def test_trained_it_changes_every_shape_of_map(name, options, height, width):
    x = feature_map(height, width)
    y = trained(name, options)(x)
    assert y.shape == x.shape and y.isfinite().all()
    assert (y != x).flatten(1).any(1).all()


@every_of_tokens
def test_tokens_equal_the_map(name, options):
    x, module = feature_map(), trained(name, options).eval()
    tokens = x.permute(0, 2, 3, 1).reshape(2, 15, C)
    expected = module(x).permute(0, 2, 3, 1).reshape(2, 15, C)
    assert torch.allclose(module(tokens), expected, atol=1e-6)


@every_of_tokens
def test_one_token(name, options):
    """It takes from nothing but itself."""
    x, module = torch.randn(2, 1, C), trained(name, options)
    assert torch.allclose(module(x), x + module.project(module.norm(module.reduce(x))), atol=1e-6)


@every
def test_images_do_not_mix(name, options):
    x, module = feature_map(images=3), trained(name, options).eval()
    alone = torch.cat([module(image[None]) for image in x])
    assert torch.allclose(module(x), alone, atol=1e-5)


@every
def test_no_images(name, options):
    x = torch.zeros(0, C, 3, 2)
    assert trained(name, options)(x).shape == x.shape


@every
def test_the_input_stays_as_it_was(name, options):
    x = feature_map()
    before = x.clone()
    trained(name, options)(x)
    assert torch.equal(x, before)


# Chance


@every
def test_eval_is_deterministic_and_draws_nothing(name, options):
    x, module = feature_map(), trained(name, options).eval()
    state = torch.get_rng_state()
    assert torch.equal(module(x), module(x)) and torch.equal(torch.get_rng_state(), state)


@every
def test_training_follows_from_the_seed(name, options):
    x, module = feature_map(), trained(name, options)
    outputs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        outputs.append(module(x))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2]) == (name != "DCS")


# Gradients

# The only parameters whose gradient passes through nothing that starts at zero.
LEARNS_AT_ONCE = {
    "DCS": {"project.weight", "project.bias", "project.widen.weight", "project.widen.bias"},
    "SelfAttention": {
        "project.weight",
        "project.bias",
        "project.widen.weight",
        "project.widen.bias",
    },
    "SE": {"excite.3.weight"},
    "CBAM": {"excite.3.weight"},
    "ECA": {"conv.weight"},
    "CAM": {"gamma"},
}


@every
def test_every_parameter_gets_a_gradient(name, options):
    """In the graph from step 0 on (DDP), not zero from step 1 on.

    But for the first factor of a mask of low rank: behind the projection, which moves in step 0,
    its second factor has to move.
    """
    module, target = build(name, options), feature_map(seed=2)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for step in range(3):
        optimizer.zero_grad()
        (module(feature_map(seed=step + 3)) * target).sum().backward()
        missing = {n for n, p in module.named_parameters() if p.grad is None}
        reached = {n for n, p in module.named_parameters() if p.grad.abs().sum() > 0}
        assert not missing
        names = {n for n, _ in module.named_parameters()}
        if step == 0:  # of a module that is not listed at least one
            names &= LEARNS_AT_ONCE.get(name, reached)
            assert names
        elif step == 1:
            names -= {"mask.logits.narrow.weight"}
        assert reached == names
        optimizer.step()


@every
def test_the_input_gets_the_gradient_of_the_identity_at_step_0(name, options):
    x, module = feature_map().requires_grad_(), build(name, options)
    weight = feature_map(seed=2)
    (module(x) * weight).sum().backward()
    assert torch.allclose(x.grad, weight, atol=1e-6)


@pytest.mark.parametrize("name, options", [case for case in CASES if case[0] != "DCS"], ids=str)
def test_gradient_by_differences(name, options):
    module = trained(name, options).double()
    assert torch.autograd.gradcheck(module, feature_map(2, 2, 1).double().requires_grad_())


# Surroundings


@every
@pytest.mark.parametrize("training", [True, False])
def test_autocast(name, options, training):
    x, module = feature_map(), trained(name, options).train(training)

    def run(x):
        torch.manual_seed(7)
        return module(x)

    exact = run(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded, halves = run(x.requires_grad_()), run(x.bfloat16())
    (rounded.sum() + halves.float().sum()).backward()
    assert rounded.dtype == torch.float32 and halves.dtype == torch.bfloat16
    assert x.grad.isfinite().all() and all(p.grad.isfinite().all() for p in module.parameters())
    # bfloat16 has 8 bits; a mask entry whose logit is rounded to the other side moves more.
    for output in (rounded, halves.float()):
        assert (output - exact).abs().median() < 0.02 * exact.abs().mean()


@every
def test_deep_copies_are_independent(name, options):
    x, module = feature_map(), trained(name, options)
    if name == "DCS":
        module.set_progress(0.5)
    twin = copy.deepcopy(module)
    torch.manual_seed(0)
    first = module(x)
    torch.manual_seed(0)
    assert torch.equal(twin(x), first)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    if name == "DCS":
        module.set_progress(1.0)
        assert twin.mask.temperature != module.mask.temperature
    torch.manual_seed(0)
    assert torch.equal(twin(x), first) and not torch.equal(module(x), first)


@every
def test_state_loads_into_a_new_module(name, options):
    x, module = feature_map(), trained(name, options).eval()
    other = build(name, options, seed=9).eval()
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(x), module(x))
    # Running statistics of the norm, and nothing else besides the parameters.
    names = {n for n, _ in module.named_parameters()}
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert {n for n in module.state_dict() if not n.endswith(statistics)} == names


@every
def test_traced_it_gives_the_same_without_a_warning(name, options):
    x, module = feature_map(), trained(name, options).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            traced = torch.jit.trace(module, x)
    assert torch.allclose(traced(x), module(x), atol=1e-6)
    other = feature_map(4, 2, 3)  # sizes are not baked in
    assert torch.allclose(traced(other), module(other), atol=1e-6)


@every
def test_onnx(name, options):
    """Exported in eval; run where onnxruntime is there."""
    x, module = feature_map(), trained(name, options).eval()
    legacy = {"dynamo": False} if hasattr(torch, "compile") else {}
    if legacy:
        pytest.importorskip("onnx", reason="torch >= 2 exports with the package onnx only")
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (x,), file, input_names=["x"], output_names=["y"], opset_version=13, **legacy
        )
    assert file.tell() > 0
    try:
        import onnxruntime
    except ImportError:
        return
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": x.numpy()})
    assert torch.allclose(torch.from_numpy(y), module(x), atol=1e-5)


@pytest.mark.today_only
@every
def test_compiled_it_gives_the_same(name, options):
    x, module = feature_map(), trained(name, options)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    gradients = []
    for run in (module, compiled):
        module.train().zero_grad()
        torch.manual_seed(3)
        run(x).square().sum().backward()
        gradients.append([p.grad.clone() for p in module.parameters()])
    for eager, ours in zip(*gradients):
        assert torch.allclose(eager, ours, rtol=1e-4, atol=1e-5)
    module.eval()
    assert torch.allclose(compiled(x), module(x), atol=1e-6)


@pytest.mark.today_only
def test_an_epochs_temperature_does_not_compile_anew():
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    module, counter = trained("DCS", {}), CompileCounter()
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    for epoch in range(12):
        module.set_progress(epoch / 12)
        compiled(feature_map())
    assert counter.frame_count <= 2  # the number, then any number


# Settings


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("DCS", {"width": -1}, "width must be in 0..8"),
        ("DCS", {"width": 9}, "width must be in 0..8"),
        ("DCS", {"temperature": 0.0}, "temperature must be > 0"),
        ("DCS", {"final_temperature": float("inf")}, "final_temperature must be > 0, got inf"),
        ("DCS", {"mask_bias": float("nan")}, "mask_bias must be between -20 and 20"),
        ("DCS", {"scale": "sqr"}, "scale must be one of cosine, sqrt, got 'sqr'"),
        ("DCS", {"norm": "bn"}, "norm must be one of batch, layer, none, got 'bn'"),
        ("DCS", {"rank": -1}, "rank must be in 0..8, the channels .0: full., got -1"),
        ("SelfAttention", {"width": 4, "rank": 5}, "rank must be in 0..4"),
        ("DCS", {"groups": 0}, "groups must divide the 8 channels .1: full., got 0"),
        ("SelfAttention", {"width": 6, "groups": 4}, "groups must divide the 8 and the 6 channels"),
        ("DCS", {"rank": 2, "groups": 2}, "got 2 and 2; write one of the two"),
        ("SelfAttention", {"cosine_factor": -1.0}, "cosine_factor must be > 0"),
        ("SE", {"reduction": 0}, "reduction must be in 1..8"),
        ("CBAM", {"reduction": 9}, "reduction must be in 1..8"),
        ("SE", {"start": "zero"}, "start must be one of identity, published, got 'zero'"),
        ("ECA", {"kernel_size": 4}, "kernel_size must be odd"),
        ("ECA", {"kernel_size": -3}, "kernel_size must be odd"),
    ],
)
def test_settings_out_of_range(name, options, message):
    with pytest.raises(ValueError, match=message):
        build_attention(name, C, **options)


@pytest.mark.parametrize("name", ATTENTIONS)
def test_no_channels(name):
    with pytest.raises(ValueError, match="channels must be > 0"):
        build_attention(name, 0)


def test_names_and_settings_that_are_not_there():
    with pytest.raises(KeyError, match="Did you mean 'SelfAttention'.*DCS, SelfAttention, SE"):
        build_attention("selfatention", C)
    with pytest.raises(TypeError, match="Did you mean 'width'.*It has width, temperature"):
        build_attention("DCS", C, widht=4)
    with pytest.raises(TypeError, match="'CAM' has no setting 'width'. It has none"):
        build_attention("CAM", C, width=4)


def test_settings_and_their_defaults():
    assert attention_settings("SE") == {"reduction": 16, "start": "identity", "norm": "batch"}
    assert attention_settings("CAM") == {}
    assert set(attention_settings("DCS")) - set(attention_settings("SelfAttention")) == {
        "temperature",
        "final_temperature",
        "mask_bias",
    }


def test_a_class_put_into_the_registry_can_be_built(monkeypatch):
    class Mine(torch.nn.Module):
        def __init__(self, channels, *, strength=1.0):
            super().__init__()
            self.settings = (channels, strength)

    monkeypatch.setitem(ATTENTIONS, "Mine", Mine)
    assert build_attention("Mine", 3, strength=2.0).settings == (3, 2.0)


@every
def test_input_of_another_shape(name, options):
    module = build(name, options)
    takes = r"takes \(B, 8, H, W\) maps"
    for x in (torch.zeros(2, C + 1, 3, 3), torch.zeros(2, C), torch.zeros(2, 3, C + 1)):
        with pytest.raises(ValueError, match=takes):
            module(x)


@pytest.mark.parametrize("name", ["DCS", "SelfAttention"])
def test_a_convolution_needs_a_map(name):
    module = build(name, {"depthwise": True})
    with pytest.raises(ValueError, match=r"takes \(B, 8, H, W\) maps, got \(2, 3, 8\)"):
        module(torch.zeros(2, 3, C))


def test_the_package_needs_no_toolkit(run_script):
    code = (
        "import sys\n"
        "sys.modules['fastreid'] = sys.modules['yacs'] = None\n"
        "import torch\n"
        "from fastreid_rib.attention import ATTENTIONS, build_attention\n"
        "x = torch.randn(1, 16, 2, 2)\n"
        "print([bool((build_attention(name, 16)(x) == x).all()) for name in ATTENTIONS])\n"
    )
    assert str([True] * len(ATTENTIONS)) in run_script("-c", code).stdout


def test_public_names():
    assert all(getattr(attention, name).__doc__ for name in attention.__all__)
