"""RIBLoss inside a model that others copy, average, save, compile and run twice."""

import copy
import functools
import io

import pytest
import torch
from kinds import RIBLoss
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

CLASSES, DIM, WIDTH = 7, 16, 10
compiling = pytest.mark.skipif(not hasattr(torch, "compiler"), reason="needs torch.compile")


class Net(nn.Module):
    """RIB in the middle: by position, what stands behind it would be averaged with its tensors."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(DIM, WIDTH)
        self.rib = RIBLoss(CLASSES)
        self.neck = nn.BatchNorm1d(WIDTH, affine=False)

    def forward(self, images, labels, cameras=None):
        embeddings = self.body(images)
        return self.rib(embeddings, labels, cameras) + self.neck(embeddings).square().mean()


def batch(seed, size=21):
    labels = torch.arange(size) % CLASSES
    images = torch.randn(size, DIM, generator=torch.Generator().manual_seed(seed))
    return images + 2 * torch.eye(CLASSES, DIM)[labels], labels


def train(net, step=None, epochs=3, steps=4, after=lambda: None):
    """The losses, and the gradients of each step."""
    optimizer, found, gradients = torch.optim.SGD(net.parameters(), 0.05), [], []
    for epoch in range(epochs):
        net.rib.start_epoch(epoch)
        for number in range(steps):
            loss = (net if step is None else step)(*batch(10 * epoch + number))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.detach())
            gradients.append(net.body.weight.grad.clone())
            after()
    return torch.stack(found), torch.stack(gradients)


def own(model):
    """The network's parameters and buffers, by name."""
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: value.detach().clone() for name, value in named.items()}


def by_position(average, net):
    """As timm's ModelEmaV2."""
    with torch.no_grad():
        for mine, theirs in zip(average.state_dict().values(), net.state_dict().values()):
            mine.copy_(0.9 * mine + 0.1 * theirs)


def by_name(average, net):
    """As timm's ModelEmaV3, which loads what it averaged."""
    theirs = net.state_dict()
    mine = {key: 0.9 * value + 0.1 * theirs[key] for key, value in average.state_dict().items()}
    average.load_state_dict(mine)


def moving(values):
    average = values[0]
    for value in values[1:]:
        average = 0.9 * average + 0.1 * value
    return average


def mean(values):
    return torch.stack(values[1:]).mean(0)


def last(values):
    return values[-1]


AVERAGES = {
    "by position": (copy.deepcopy, by_position, moving, moving),
    "by name": (copy.deepcopy, by_name, moving, moving),
    "AveragedModel": (AveragedModel, AveragedModel.update_parameters, mean, last),
    "AveragedModel with buffers": (
        functools.partial(AveragedModel, use_buffers=True),
        AveragedModel.update_parameters,
        mean,
        mean,
    ),
}


@pytest.mark.published
@pytest.mark.parametrize("kind", AVERAGES)
def test_averages_are_those_of_the_network(kind):
    make, update, of_parameters, of_buffers = AVERAGES[kind]
    if "Averaged" in kind and not hasattr(torch, "compiler"):
        of_buffers = mean if "with" in kind else lambda values: values[0]  # torch 1.13
    net = Net()
    average, steps = make(net), [own(net)]

    def after():
        update(average, net)
        steps.append(own(net))

    train(net, after=after)
    assert net.rib.active and net.rib.bank.filled
    found = own(getattr(average, "module", average))
    assert found.keys() == steps[0].keys() == {*dict(net.named_parameters()), *BATCH_NORM}
    for name in set(found) - {"neck.num_batches_tracked"}:
        expected = (of_buffers if name in BATCH_NORM else of_parameters)([s[name] for s in steps])
        assert torch.allclose(found[name], expected, atol=1e-5), name


BATCH_NORM = ["neck.running_mean", "neck.running_var", "neck.num_batches_tracked"]


@pytest.mark.published
def test_the_state_dict_of_a_model_is_the_same_all_along_and_each_tensor_has_its_own_memory():
    """What safetensors asks for, and every average by position."""
    net = Net()
    shapes = [(key, value.shape) for key, value in net.state_dict().items()]
    buffers = [name for name, _ in net.named_buffers()]
    assert buffers == BATCH_NORM  # DistributedDataParallel broadcasts these at every step

    def after():
        assert [(key, value.shape) for key, value in net.state_dict().items()] == shapes
        assert [name for name, _ in net.named_buffers()] == buffers

    train(net, after=after)
    net(*batch(9), cameras=torch.arange(21) % 3)
    for state in (net.state_dict(), net.rib.state_dict()):
        assert all(value.is_contiguous() for value in state.values())
        assert len({value.data_ptr() for value in state.values()}) == len(state)


@pytest.mark.published
@pytest.mark.parametrize("how", ["deepcopy", "torch.save"])
def test_a_copy_goes_on_by_itself(how):
    net = Net()
    train(net)
    if how == "deepcopy":
        other = copy.deepcopy(net)
    else:
        file = io.BytesIO()
        torch.save(net, file)
        file.seek(0)
        other = torch.load(file, **({"weights_only": False} if torch.__version__[0] > "1" else {}))
    for epoch in (3, 4):
        reports = [one.rib.start_epoch(epoch) for one in (net, other)]
        assert reports[0] == reports[1] != {}
        for number in range(3):
            assert torch.equal(net(*batch(number)), other(*batch(number)))


@pytest.mark.published
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
@pytest.mark.parametrize("full", [False, True])
def test_what_is_held_keeps_its_precision(dtype, full):
    """As an evaluation in half precision in mid-epoch asks for, also of a full reservoir."""
    losses = []
    for change in (False, True):
        net = Net()
        net.rib = RIBLoss(CLASSES, warmup_epochs=1, bank_size=30 if full else 1000)
        train(net, epochs=2)
        if change:
            with torch.inference_mode():
                net.rib.to(dtype).float()
        losses.append(train(net)[0])
    assert torch.equal(*losses) and losses[0].abs().min() > 0


@pytest.mark.published
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("changes", [{}, {"bank_size": 84}, {"bank_size": 30}])
def test_a_step_that_checkpointing_runs_twice_counts_once(reentrant, changes):
    results = []
    for twice in (False, True):
        net = Net()
        net.rib, net.neck = RIBLoss(CLASSES, **changes), nn.Identity()
        step = functools.partial(checkpoint, net, use_reentrant=reentrant) if twice else net

        def on_leaves(images, labels, step=step):
            return step(images.requires_grad_(), labels)  # the reentrant kind asks for one

        results.append([*train(net, on_leaves), net.rib.bank.seen])
    for once, again in zip(*results):
        assert torch.equal(torch.as_tensor(once), torch.as_tensor(again))
    assert results[0][2] == 4 * 21 and results[0][0][4:].abs().min() > 0.01


def test_steps_without_gradients_do_not_make_a_repetition_count():
    net = Net()
    net.rib.start_epoch(0)
    for number in range(3):
        with torch.no_grad():
            net(*batch(number))
        checkpoint(net, *batch(number), use_reentrant=False).backward()
    assert net.rib.bank.seen == 3 * 21


@compiling
@pytest.mark.parametrize("whole", [False, True])
def test_a_compiled_step_is_compiled_once_and_gives_the_same(whole):
    from torch._dynamo.testing import CompileCounterWithBackend

    expected = train(Net())
    net, counter = Net(), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(net if whole else net.forward, backend=counter)
    seen = []
    losses, gradients = train(net, compiled, after=lambda: seen.append(counter.frame_count))
    assert seen[0] > 0 and seen == seen[:1] * len(seen)
    assert torch.allclose(losses, expected[0], atol=1e-5)
    assert torch.allclose(gradients, expected[1], atol=1e-5)
    assert net.rib.bank.seen == 4 * 21


@pytest.mark.published
@pytest.mark.parametrize("what", ["start_epoch", "load"])
def test_what_is_made_in_inference_mode_takes_part_in_the_next_step(what):
    """As hooks of a validation run do."""
    results = []
    for mode in (False, True):
        net = Net()
        train(net, epochs=2)
        with torch.inference_mode(mode):
            if what == "load":
                net.rib.load_state_dict(net.rib.state_dict())
            else:
                net.rib.start_epoch(2)
        loss = net(*batch(0))
        loss.backward()
        results.append((loss.detach(), net.body.weight.grad))
    for expected, found in zip(*results):
        assert torch.equal(expected, found)
    assert net.rib.active
