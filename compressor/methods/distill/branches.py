"""The layers of an unmodified network after a tap, as a module: with its own weights, or as a branch with new ones.

rest = Rest(model, "layer2", inputs)         rest(answer.features[1]) equals model(images)
branch = Branch(model, anatomy, "layer2")    the same layers with new weights, trained beside the network
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from compressor.errors import UsageError
from compressor.methods.distill.taps import Anatomy, Answer, Outline, ask
from compressor.network.copying import clone_network
from compressor.network.inputs import AnyInputs, Inputs
from compressor.network.meta_device import evaluating
from compressor.network.outputs import logits_of
from compressor.network.replacements import replaced

SAME = 1e-4  # largest difference between the logits of a network and of its rest, over the largest logit


class Blank(nn.Module):
    """Replaces a module whose output is not needed: returns zeros of its shape, for one image."""

    zeros: Tensor

    def __init__(self, shape: Sequence[int], like: Tensor) -> None:
        super().__init__()
        self.register_buffer("zeros", torch.zeros(1, *shape, dtype=like.dtype, device=like.device), persistent=False)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.zeros


class Given(nn.Module):
    """Replaces a tap: returns the features that were assigned to it."""

    features: Tensor | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Tensor | None:
        return self.features


class Rest(nn.Module):
    """A copy of the layers of `model` after `tap`: features [n, ...] of the tap -> the output of the network.

    The network's own `forward` runs: modules that it calls before the tap return zeros for one image, at no cost, and the tap
    returns the features. Code that cannot be traced works, too. Raises UsageError if the layers after the tap need more than
    its output.
    """

    blank: Tensor

    def __init__(self, model: nn.Module, tap: str, inputs: AnyInputs, outline: Outline | None = None) -> None:
        super().__init__()
        inputs = Inputs.of(inputs)
        outline = outline or Outline(model, inputs)
        outline.check(tap)
        end, weight = outline.calls[tap], next(model.parameters())
        before = [c for c in outline.calls.values() if c.ended < end.began]
        outermost = [c for c in before if not any(c.name.startswith(f"{other.name}.") for other in before)]
        stand_ins: dict[str, nn.Module] = {c.name: Blank(c.gives, weight) for c in outermost}
        self.given, self.head = Given(), outline.head()
        self.network = replaced(clone_network(model), {**stand_ins, tap: self.given})
        self.register_buffer("blank", torch.zeros_like(inputs.random(1, like=model)[0]), persistent=False)
        self._check(model, tap, inputs)

    def forward(self, features: Tensor) -> Any:
        with self._given(features):
            return self.network(self.blank)

    def ask(self, features: Tensor, taps: Sequence[str] = ()) -> Answer:
        """The same, with the input of the head and the features at later `taps`."""
        with self._given(features):
            return ask(self.network, self.blank, taps, self.head)

    @contextmanager
    def _given(self, features: Tensor) -> Iterator[None]:
        self.given.features = features
        try:
            yield
        finally:
            self.given.features = None

    def _check(self, model: nn.Module, tap: str, inputs: Inputs) -> None:
        """Raise UsageError unless its logits equal those of the whole network."""
        images = inputs.random(3, like=model)[0]
        with evaluating(model), evaluating(self), torch.no_grad():
            wanted = ask(model, images, [tap])
            try:
                found = logits_of(self(wanted.features[0])).float()
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, ValueError, TypeError, AttributeError):
                found = torch.full_like(wanted.logits, math.nan)
        if found.shape != wanted.logits.shape or not (found - wanted.logits).abs().max() <= SAME * wanted.logits.abs().max():
            raise UsageError(f"--taps {tap}: the layers after this module need more than its output. Name other modules.")


class Separable(nn.Sequential):
    """Two depthwise separable convolutions, [n, inputs, h, w] -> [n, outputs, h / stride, w / stride]."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        layers: list[nn.Module] = []
        for i, o, s in ((inputs, inputs, stride), (inputs, outputs, 1)):
            layers += [nn.Conv2d(i, i, 3, s, 1, groups=i, bias=False), nn.BatchNorm2d(i), nn.ReLU()]
            layers += [nn.Conv2d(i, o, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU()]
        super().__init__(*layers)


class Tail(nn.Module):
    """Replaces `Rest` where it cannot be used: separable convolutions down to the spatial size of the last stage."""

    def __init__(self, gives: Sequence[int], last: Sequence[int], anatomy: Anatomy) -> None:
        super().__init__()
        (width, height, _), (final, bottom, _) = gives, last
        halvings = max(1, round(math.log2(height / bottom)))
        widths = [width] * halvings + [final]
        self.layers = nn.Sequential(*(Separable(i, o, 2) for i, o in pairwise(widths)))
        self.embed, self.head = nn.Linear(final, anatomy.width), nn.Linear(anatomy.width, anatomy.classes)

    def forward(self, features: Tensor) -> Tensor:
        return self.ask(features).logits

    def ask(self, features: Tensor, taps: Sequence[str] = ()) -> Answer:
        found = self.layers(features)
        embedding = self.embed(found.mean((2, 3)))
        logits = self.head(embedding).float()
        return Answer(logits, logits, embedding, [found for _ in taps])


class Branch(nn.Module):
    """A copy of the layers after `tap` with new weights: features [n, ...] of the tap -> Answer.

    `outputs` replaces the head by one with this number of classes. `deeper` appends this number of blocks to the last stage,
    copies of its last block whose input and output have the same shape. `Answer.features` is the output of the last stage.

    With `trained`, the weights start near those of the network, except for a new head and appended blocks.

    Interpretation: where the layers after the tap need more than its output, or no block can be repeated, separable
    convolutions are used instead. Raises UsageError for a module that is not a tap in the strict sense.
    """

    def __init__(
        self,
        model: nn.Module,
        anatomy: Anatomy,
        tap: str,
        outputs: int | None = None,
        deeper: int = 0,
        trained: bool = False,
    ) -> None:
        super().__init__()
        outline, self.last = Outline(model, anatomy.inputs), anatomy.taps[-1]
        outline.check(tap)
        gives = outline.calls[self.last].gives
        self.rest: Rest | Tail
        try:
            self.rest = Rest(model, tap, anatomy.inputs, outline)
            (near if trained else fresh)(self.rest)
        except UsageError:
            if len(gives) != 3:
                raise
            self.rest = Tail(outline.calls[tap].gives, gives, anatomy)
            fresh(self.rest)
        self.more = nn.Sequential(*(_block(model, outline, self.last) for _ in range(deeper)))
        fresh(self.more)
        if isinstance(self.rest, Tail):
            self.rest.layers.extend(self.more)
            self.more = nn.Sequential()
        self.head: nn.Linear | None = None
        if outputs is not None:
            self._take_head(nn.Linear(anatomy.width, outputs))
        self.to(next(model.parameters()).device)

    def forward(self, features: Tensor) -> Answer:
        with self._deeper() if len(self.more) else nullcontext():
            answer = self.rest.ask(features, [self.last])
        if self.head is None:
            return answer
        logits = self.head(answer.embedding).float()
        return answer._replace(output=logits, logits=logits)

    def _take_head(self, head: nn.Linear) -> None:
        """Replace the head of the network, or apply the new one to the logits where there is no head."""
        fresh(head)
        if isinstance(self.rest, Tail):
            self.rest.head = head
        elif self.rest.head is not None:
            replaced(self.rest.network, {self.rest.head: head})
        else:
            self.head = head

    @contextmanager
    def _deeper(self) -> Iterator[None]:
        """Append the new blocks to the last stage."""
        assert isinstance(self.rest, Rest)
        stage = self.rest.network.get_submodule(self.last)
        handle = stage.register_forward_hook(lambda module, args, output: self.more(output).clone())  # for in-place layers
        try:
            yield
        finally:
            handle.remove()


def _block(model: nn.Module, outline: Outline, tap: str) -> nn.Module:
    """A block to append to the stage that ends at `tap`."""
    if (name := outline.block(tap)) is not None:
        return clone_network(model.get_submodule(name))
    gives = outline.calls[tap].gives
    if len(gives) != 3:
        raise UsageError(f"{tap}: no block of this network keeps the shape {list(gives)}, so none can be repeated there.")
    return Separable(gives[0], gives[0], 1)


def fresh(model: nn.Module) -> nn.Module:
    """Initialise the weights of `model` at random, in place, from torch's random number generator.

    Convolutions: N(0, 2 / (kernel area x output channels)). Other layers: their own `reset_parameters`, which sets norms to
    weight 1 and bias 0. Biases of convolutions and linear layers: 0.
    Interpretation: tensors outside of such layers (position embeddings, class tokens) are N(0, 0.02^2) if they have two or
    more dimensions, and are unchanged otherwise.
    """
    for module in nn.Module.modules(model):
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif callable(reset := getattr(module, "reset_parameters", None)):
            reset()
        else:
            for parameter in module.parameters(recurse=False):
                if parameter.dim() > 1:
                    nn.init.normal_(parameter, std=0.02)
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    return model


def near(model: nn.Module, by: float = 0.1) -> nn.Module:
    """Add noise N(0, (by x standard deviation of the tensor)^2) to the weights of `model`, in place; not to norms and biases.

    This makes a peer of a trained network; an exact copy would make the same predictions and get the same gradients.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.add_(by * parameter.std() * torch.randn_like(parameter))
    return model
