"""The search itself: a choice for each group, masks over a network, and the term of the cost."""

from typing import Any, Dict, List, Optional, Sequence

import torch
from torch import Tensor, nn

from fastreid_rib.base.ranks import exchange
from fastreid_rib.search.cost import Cost, all_choices, derive
from fastreid_rib.settings.declaration import SettingError
from fastreid_rib.settings.search import SearchSettings


class WidthChoice(nn.Module):
    """A learnable choice of one width.

    With widths c_1 > ... > c_H and logits theta, a step draws the gates
    ``g = softmax((theta + Gumbel noise) / tau)``. The mask of channel j is the sum of g_h over the
    widths with c_h > j, so that the sum of the mask is the effective width ``sum_h g_h c_h``, and a
    one-hot g keeps the first c_h channels (FBNetV2, arXiv 2004.05565, section 3.1; the paper of RIB
    searches its backbones so). In evaluation g is the one-hot of the most probable width.

    Args:
        widths: channels of each option, the widest first.
    """

    options: Tensor
    covers: Tensor

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.logits = nn.Parameter(torch.zeros(len(widths)))
        options = torch.tensor(widths, dtype=torch.float32)
        self.register_buffer("options", options, persistent=False)
        # (H, c_1): whether an option keeps a channel.
        covers = (torch.arange(widths[0]) < options[:, None]).float()
        self.register_buffer("covers", covers, persistent=False)
        self._drawn: Optional[Tensor] = None

    def draw(self, noise: Tensor, temperature: float) -> None:
        """Draws the gates of a training step.

        Args:
            noise: (H,) Gumbel noise.
            temperature: tau > 0.
        """
        noise = noise.to(self.logits.device, non_blocking=True)
        self._drawn = torch.softmax((self.logits + noise) / temperature, dim=0)

    @property
    def gates(self) -> Tensor:
        """(H,) float32: what was drawn last in training mode.

        Else the one-hot of the most probable width, the widest of equals.
        """
        if self.training and self._drawn is not None:
            return self._drawn
        best = torch.argmax(self.logits.detach())
        return torch.zeros_like(self.options).scatter_(0, best[None], 1.0)

    def probabilities(self) -> Tensor:
        """(H,) softmax of the logits, detached."""
        return torch.softmax(self.logits.detach(), dim=0)

    def effective_width(self) -> Tensor:
        """``sum_h g_h c_h``, a scalar; it passes gradients to the logits in training mode."""
        return torch.dot(self.gates, self.options)

    def mask(self, times: int = 1) -> Tensor:
        """The mask of ``times`` channels for each of the group.

        Returns:
            (times * c_1,) float32, in [0, 1], falling; its sum is ``times`` effective widths.
        """
        return torch.repeat_interleave(self.gates @ self.covers, times)

    def __getstate__(self) -> Dict[str, Any]:
        """Without what was drawn: torch does not copy what has a gradient's history."""
        return {**self.__dict__, "_drawn": None}


class WidthSearch(nn.Module):
    """Learns how wide each group of a network's channels should be (differentiable search).

    Put it beside the network, in one module; then, at each training step::

        search.draw()                    # gates of this step, the same on every process
        loss = task_loss(network(images)) + search.cost_loss()
        loss.backward()
        (weights if search.step_is_for_weights() else logits).step()

    where ``logits`` is an optimizer over ``search.parameters()`` and ``weights`` one over the
    network's. In evaluation mode the network is the one of the most probable widths.

    Args:
        network: the widest network; gets masks after the layers that the space says.
        cost: of that network, with its space.
        settings: what is aimed at, and how.
        seed: of the Gumbel noise; -1: a random one. The noise of a step depends on the seed and
            its number alone.

    Raises:
        SettingError: the target is under the narrowest network.
        ValueError: the space is too large.
    """

    choices: Any
    seed: Tensor
    steps: Tensor

    def __init__(
        self, network: nn.Module, cost: Cost, settings: SearchSettings, seed: int = -1
    ) -> None:
        super().__init__()
        least = cost.narrowest / cost.widest
        if settings.target < least:
            expected = f">= {least:.3f} (the narrowest network)"
            raise SettingError("target", expected, settings.target)
        all_choices(cost)  # what cannot be derived in the end is not begun
        self.cost, self.settings = cost, settings
        self.target = settings.target * cost.widest
        """Multiply-adds an image that are aimed at."""
        self.choices = nn.ModuleDict(
            {group: WidthChoice(widths) for group, widths in cost.space.groups.items()}
        )
        first = seed if seed >= 0 else int(torch.randint(2**31, ()))
        # Of the first rank. On the host, which draws; the buffers are for checkpoints.
        self._seed, self._step = exchange(first)[0][0], 0
        self.register_buffer("seed", torch.tensor(self._seed))
        self.register_buffer("steps", torch.tensor(self._step))
        self._warm = settings.warmup_share > 0
        self.temperature = settings.temperature
        for layer in cost.space.layers:
            if layer.masked:
                choice = self.choices[layer.outputs.group]
                mask_after(network.get_submodule(layer.path), choice, layer.outputs.times)

    def set_progress(self, progress: float) -> None:
        """Tells how far the training has come: gates cool, and the warm-up ends.

        Args:
            progress: 0 in the first epoch, 1 in the last.
        """
        self._warm = progress < self.settings.warmup_share
        first, last = self.settings.temperature, self.settings.final_temperature
        self.temperature = first * (last / first) ** progress

    def draw(self) -> None:
        """Draws the gates of a step, and counts it where gradients are recorded."""
        if torch.is_grad_enabled():
            self._step += 1
            self.steps += 1
        # A generator for each step: nothing of it has to be in a checkpoint but the number.
        generator = torch.Generator().manual_seed(_mixed(self._seed, self._step))
        for choice in self.choices.values():
            choice.draw(gumbel(len(choice.widths), generator), self.temperature)

    def _load_from_state_dict(self, *args: object, **kwargs: object) -> None:
        super()._load_from_state_dict(*args, **kwargs)  # type: ignore[arg-type]
        self._seed, self._step = int(self.seed), int(self.steps)

    def step_is_for_weights(self) -> bool:
        """Whether the step that was drawn last trains the weights, or else the architecture.

        After the warm-up the steps of the architecture are spread evenly over the others.
        """
        others = 1.0 - self.settings.weights_share
        return self._warm or _whole(self._step * others) == _whole((self._step - 1) * others)

    def cost_loss(self) -> Tensor:
        """``cost_scale * |log(cost / target)|``, a scalar.

        Of the log alone the target would be a constant without influence: its gradient is that of
        log(cost), whatever is aimed at. The absolute value draws from both sides.
        """
        widths = {group: choice.effective_width() for group, choice in self.choices.items()}
        cost = torch.as_tensor(self.cost.of(widths))
        return self.settings.cost_scale * torch.log(cost / self.target).abs()

    def probabilities(self) -> Dict[str, List[float]]:
        """Of each group's widths."""
        return {group: each.probabilities().tolist() for group, each in self.choices.items()}

    def derive(self) -> Dict[str, int]:
        """The widths nearest to those that are drawn, that cost at most the target."""
        return derive(self.cost, self.probabilities(), self.target)

    def report(self) -> Dict[str, float]:
        """Numbers to watch: they wait for the device.

        Returns:
            ``cost``: of the most probable widths, as a share of the widest network's;
            ``temperature``; and for each group ``width/GROUP`` (expected by its probabilities),
            ``entropy/GROUP`` in nats, at most log H, and ``probability/GROUP/WIDTH``.
        """
        numbers = {"temperature": self.temperature}
        widths = {}
        for group, choice in self.choices.items():
            probabilities = choice.probabilities()
            widths[group] = choice.widths[int(torch.argmax(probabilities))]
            numbers[f"width/{group}"] = float(torch.dot(probabilities, choice.options))
            numbers[f"entropy/{group}"] = float(torch.special.entr(probabilities).sum())
            for width, probability in zip(choice.widths, probabilities.tolist()):
                numbers[f"probability/{group}/{width}"] = probability
        numbers["cost"] = float(self.cost.of(widths)) / self.cost.widest
        return numbers


def _whole(number: float) -> int:
    return int(number + 1e-9)  # 5 * (1 - 0.8) is a little less than 1


def _mixed(seed: int, step: int) -> int:
    """A seed of 63 bits from two numbers; near ones give far ones (SplitMix64)."""
    mask = 2**64 - 1
    mixed = (seed * 0x9E3779B97F4A7C15 + step + 1) * 0xBF58476D1CE4E5B9 & mask
    mixed ^= mixed >> 30
    mixed = mixed * 0x94D049BB133111EB & mask
    return (mixed ^ (mixed >> 31)) & (2**63 - 1)


def gumbel(count: int, generator: torch.Generator) -> Tensor:
    """(count,) standard Gumbel noise, float32, from a generator of the CPU."""
    uniform = torch.rand(count, generator=generator, dtype=torch.float64)
    return -torch.log(-torch.log(uniform.clamp(2**-60, 1 - 2**-53))).float()


def mask_after(module: nn.Module, choice: WidthChoice, times: int = 1) -> None:
    """Multiplies what a module gives, (B, C, ...), by a mask over its channels.

    Args:
        module: a part of the network that ``choice`` is in, too: a deep copy of both belongs
            together then.
        choice: of the group.
        times: channels for each of the group.
    """
    # In a tuple: it is not a submodule of this one.
    module.width_mask = (choice, times)  # type: ignore[assignment]
    module.register_forward_hook(_mask_output)


def _mask_output(module: nn.Module, args: object, output: Tensor) -> Tensor:
    choice, times = module.width_mask  # type: ignore[misc]
    mask = choice.mask(times).to(output.dtype)
    return output * mask.view(-1, *(1,) * (output.dim() - 2))
