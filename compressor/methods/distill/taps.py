"""Feature maps of an unmodified network: where its stages end, and forward hooks that record its output there.

    anatomy = Anatomy.of(model, inputs)          taps "layer1", "layer2", "layer3"; head "linear"
    answer = anatomy.ask(model, images)          logits, the embedding (the input of the head), the features at each tap

A tap is a module that every path from the input to the logits passes through: with its output detached, the logits do not
depend on the image. The last tap before a decrease of the spatial size ends a stage. Both are found by forward passes on
`meta`.

Dense networks, whose main output is a map, pass features on by skip connections and concatenations, so that hardly any module
is such a tap. Their features are compared at the last module of each resolution, before the last layer, whose output reaches
the main output by any path: of a U-Net the bottom and each level of the decoder. A network that works at one resolution alone
has three evenly spaced blocks instead; without blocks, layers. Branches need taps in the strict sense.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from compressor.errors import UsageError, did_you_mean
from compressor.network.inputs import AnyInputs, Inputs
from compressor.network.inputs import call as call_with
from compressor.network.meta_device import evaluating, meta_copy, separate_attention
from compressor.network.outputs import logits_of

MOST = 4  # stages, counted from the last; the layers before are the stem
GROUPS = 3  # taps of a network whose spatial size never decreases, such as a vision transformer


class Answer(NamedTuple):
    """The outputs of a network for n images."""

    output: Any  # as the network returns it: logits, or a tuple or mapping that contains them
    logits: Tensor  # float: the main output, [n, classes] of a classifier
    embedding: Tensor  # [n, width], the input of the head; the logits where there is no head
    features: list[Tensor]  # [n, ...] at each tap


@dataclass(frozen=True)
class Anatomy:
    """The names of a network's taps and of its head (None: it does not end in a fully-connected layer), and two sizes."""

    inputs: Inputs
    taps: tuple[str, ...]
    head: str | None
    classes: int  # channels of the main output
    width: int  # of the embedding

    @staticmethod
    def of(model: nn.Module, inputs: AnyInputs, taps: Sequence[str] = ()) -> Anatomy:
        """`taps` names modules; by default, the ends of the stages. Raises UsageError for a module that is not a tap."""
        inputs = Inputs.of(inputs)
        outline = Outline(model, inputs)
        for name in taps:
            outline.check(name, strict=not outline.is_dense)
        head = outline.head()
        with evaluating(model), torch.no_grad():
            answer = ask(model, inputs.random(2, like=model)[0], (), head)
        return Anatomy(inputs, tuple(taps or outline.stage_ends()), head, answer.logits.shape[1], answer.embedding.shape[1])

    def ask(self, model: nn.Module, images: Any) -> Answer:
        """The outputs of `model`, or another network of the same architecture, for the inputs of a batch."""
        return ask(model, images, self.taps, self.head)

    def depth(self, model: nn.Module) -> int:
        """The number of blocks in the last stage of the kind that `Branch` repeats there; 1 where none can be repeated."""
        return Outline(model, self.inputs).depth(*self.taps[-2:])

    def widths(self, model: nn.Module) -> list[int]:
        """Channels at each tap of `model`."""
        with evaluating(model), torch.no_grad():
            answer = self.ask(model, self.inputs.random(2, like=model)[0])
        return [by_channel(features).shape[1] for features in answer.features]


def ask(model: nn.Module, images: Any, taps: Sequence[str] = (), head: str | None = None) -> Answer:
    """The outputs of `model` for the inputs of a batch, with features at `taps` and the input of `head`."""
    features: dict[str, Tensor] = {}
    read: list[Tensor] = []
    with ExitStack() as stack:
        for name in taps:

            def hear(module: nn.Module, args: Any, output: Tensor, name: str = name) -> None:
                features[name] = output

            stack.callback(model.get_submodule(name).register_forward_hook(hear).remove)
        if head is not None:
            layer = model.get_submodule(head)
            stack.callback(layer.register_forward_pre_hook(lambda module, args: read.append(args[0])).remove)
        output = call_with(model, images)
    logits = logits_of(output).float()
    return Answer(output, logits, read[0] if read else logits, [features[name] for name in taps])


def by_channel(features: Tensor) -> Tensor:
    """[n, channels, positions] of maps [n, c, h, w] or [n, h, w, c], tokens [n, t, c] or vectors [n, c]."""
    if features.dim() == 2:
        return features[:, :, None]
    last = features.dim() == 3 or channels_last(features.shape[1:])
    return (features.movedim(-1, 1) if last else features).flatten(2)


def channels_last(shape: Sequence[int]) -> bool:
    """Whether a feature map of this shape is [height, width, channels], as in Swin."""
    return shape[0] == shape[1] != shape[2]


def positions_of(shape: Sequence[int]) -> int:
    """Pixels, or tokens: of [channels, height, width], [height, width, channels] or [tokens, width]."""
    if len(shape) == 3:
        return math.prod(shape[:2] if channels_last(shape) else shape[1:])
    return shape[0] if len(shape) == 2 else 1


# Where stages end -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Call:
    """A module that is called once and returns one tensor: start and end of the call, input and output shape per image."""

    name: str
    began: int
    ended: int
    reads: tuple[int, ...] | None
    gives: tuple[int, ...]
    varies: bool  # whether the output depends on the image

    @property
    def positions(self) -> int:
        return positions_of(self.gives)


def evenly_spaced(names: Sequence[str]) -> list[str]:
    """The last of each of GROUPS equal groups."""
    return [names[math.ceil((i + 1) * len(names) / GROUPS) - 1] for i in range(GROUPS)]


class Outline:
    """A copy of a network on `meta`, and the order in which its modules are called."""

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        self.model, self.inputs = meta_copy(model).eval().requires_grad_(False), inputs
        self.calls = self._record()

    @property
    def is_dense(self) -> bool:
        """Whether the main output is a map, and not one vector for each image."""
        shape = self._answer().shape[1:]
        return len(shape) == 3 and positions_of(shape) > 1

    def stage_ends(self) -> list[str]:
        """The last tap before each decrease of the spatial size; evenly spaced blocks where there is none."""
        if self.is_dense:
            return self._last_of_resolutions()
        by_size: dict[int, list[_Call]] = {}
        for call in self.calls.values():
            by_size.setdefault(call.positions, []).append(call)
        sizes = sorted((size for size in by_size if size > 1), reverse=True)
        ends = []
        for size, smaller in pairwise([*sizes, 0]):
            last_of_outermost = sorted(by_size[size], key=lambda call: (call.name.count("."), -call.ended))
            if smaller <= size / 2 and (end := next((c for c in last_of_outermost if self.is_tap(c.name)), None)):
                ends.append(end.name)
        return ends[-MOST:] if len(ends) > 1 else self._spaced(max(by_size.values(), key=len)) if sizes else []

    def head(self) -> str | None:
        """The last fully-connected layer, if its output is the logits."""
        for call in reversed(self.calls.values()):
            if isinstance(self.model.get_submodule(call.name), nn.Linear) and self.is_tap(call.name):
                return call.name if call.gives == tuple(self._answer().shape[1:]) else None
        return None

    def check(self, name: str, strict: bool = True) -> None:
        """Raise UsageError unless `name` is a tap; without `strict`, unless it is on a path from the image to the logits."""
        if name not in self.calls:
            near = did_you_mean(name, list(self.calls))
            raise UsageError(f"--taps {name}: no such module is called once per image and returns one tensor{near or '.'}")
        if not strict and not self.is_on_path(name):
            raise UsageError(f"--taps {name}: this module is not on a path from the image to the main output: name another.")
        if strict and not self.is_tap(name):
            raise UsageError(f"--taps {name}: another path bypasses this module: name the end of a whole block.")

    def is_tap(self, name: str) -> bool:
        """Whether all paths pass through this module: with its output detached, the logits do not depend on the image."""
        handle = self.model.get_submodule(name).register_forward_hook(lambda module, args, output: output.detach())
        try:
            return not self._answer().requires_grad
        finally:
            handle.remove()

    def is_on_path(self, name: str) -> bool:
        """Whether the module's output depends on the image, and the logits on that output."""

        def separate(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            return output.detach().requires_grad_().clone()  # later operators can work in place

        handle = self.model.get_submodule(name).register_forward_hook(separate)
        try:
            return self.calls[name].varies and self._answer(track=False).requires_grad
        finally:
            handle.remove()

    def block(self, tap: str) -> str | None:
        """The last block, up to the end of the tap, whose input and output have the shape of the tap's output."""
        end = self.calls[tap]
        for call in reversed(self.calls.values()):
            block, same = self.model.get_submodule(call.name), call.reads == call.gives == end.gives
            weighted = [m for m in nn.Module.modules(block) if next(m.parameters(recurse=False), None) is not None]
            is_stage = isinstance(block, nn.Sequential) and any(next(part.children(), None) is not None for part in block)
            if call.ended <= end.ended and same and len(weighted) > 1 and not is_stage and self.is_tap(call.name):
                return call.name
        return None

    def depth(self, *taps: str) -> int:
        """The number of modules of the same class and output shape as the block of the last tap, after the tap before it."""
        if (name := self.block(taps[-1])) is None:
            return 1
        began, end = self.calls[taps[0]].ended if len(taps) > 1 else 0, self.calls[taps[-1]]
        kind = type(self.model.get_submodule(name))
        stage = [c.name for c in self.calls.values() if began <= c.began and c.ended <= end.ended and c.gives == end.gives]
        return sum(type(self.model.get_submodule(c)) is kind and not name.startswith(f"{c}.") for c in stage)

    def _spaced(self, calls: list[_Call]) -> list[str]:
        """The ends of GROUPS equal groups of the most frequent kind of block; without such blocks, the last tap."""
        kinds = {call.name: type(self.model.get_submodule(call.name)) for call in calls if call.reads == call.gives}
        leaves = {type(module) for module in nn.Module.modules(self.model) if not list(module.children())}
        common = Counter(kind for kind in kinds.values() if kind not in leaves and kind is not nn.Sequential).most_common()
        for kind, many in common:
            names = [name for name in kinds if kinds[name] is kind]
            if many >= GROUPS and self.is_tap(names[0]):
                return evenly_spaced(names)
        return [call.name for call in reversed(calls) if self.is_tap(call.name)][:1]

    def _last_of_resolutions(self) -> list[str]:
        """The last module of each resolution, before the last layer; of one resolution alone, evenly spaced blocks."""
        weighted = [
            n for n, c in self.calls.items() if next(self.model.get_submodule(n).parameters(recurse=False), None) is not None
        ]
        last = next((self.calls[name].began for name in reversed(weighted) if self.is_on_path(name)), 0)
        before = [call for call in self.calls.values() if call.ended < last and call.varies and call.positions > 1]
        levels: dict[int, list[_Call]] = {}
        for call in before:
            level = self._level(call.gives)
            if not any(self._leaves(outer, level) for outer in self._around(call)):
                levels.setdefault(level, []).append(call)
        ends = [next((c for c in reversed(calls) if self.is_on_path(c.name)), None) for calls in levels.values()]
        found = sorted((call for call in ends if call is not None), key=lambda call: call.ended)
        return [call.name for call in found[-MOST:]] if len(found) != 1 else self._spaced_on_path(before)

    def _around(self, call: _Call) -> list[_Call]:
        """The modules that contain this one."""
        parts = call.name.split(".")
        return [self.calls[name] for i in range(1, len(parts)) if (name := ".".join(parts[:i])) in self.calls]

    def _leaves(self, call: _Call, level: int) -> bool:
        """Whether a module changes this resolution to another one, as the first block of a stage does."""
        return call.reads is not None and self._level(call.reads) == level != self._level(call.gives)

    def _level(self, shape: Sequence[int]) -> int:
        """A resolution, in halvings of the largest area. Rounded, because convolutions without padding crop a little."""
        largest = max(call.positions for call in self.calls.values())
        return round(math.log2(largest / max(1, positions_of(shape))))

    def _spaced_on_path(self, calls: list[_Call]) -> list[str]:
        """The ends of GROUPS equal groups of the outermost kind of block, or else of the most frequent kind of layer."""
        kinds: dict[type[nn.Module], list[str]] = {}
        for call in calls:
            module = self.model.get_submodule(call.name)
            if call.reads == call.gives and not isinstance(module, nn.Sequential) and self.is_on_path(call.name):
                kinds.setdefault(type(module), []).append(call.name)
        many = {kind: names for kind, names in kinds.items() if len(names) >= GROUPS}

        def order(kind: type[nn.Module]) -> tuple[bool, int, int]:
            is_leaf = not list(self.model.get_submodule(many[kind][0]).children())
            return is_leaf, 0 if is_leaf else min(name.count(".") for name in many[kind]), -len(many[kind])

        if not many:
            return [call.name for call in reversed(calls) if self.is_on_path(call.name)][:1]
        names = many[min(many, key=order)]
        return evenly_spaced(names)

    def _answer(self, track: bool = True) -> Tensor:
        """The main output for one sample; with `track`, autograd knows whether it depends on the sample."""
        samples = self.inputs.random(1, like=self.model)
        for sample in samples:
            if track and sample.is_floating_point():
                sample.requires_grad_()
        with separate_attention():
            return logits_of(self.inputs.call(self.model, samples))

    def _record(self) -> dict[str, _Call]:
        """The modules that are called once and return one tensor, in the order in which their calls end."""
        began: dict[str, int] = {}
        calls: dict[str, _Call] = {}
        clock, often = count(), Counter[str]()

        def begin(name: str) -> Any:
            def hook(module: nn.Module, args: Any) -> None:
                began[name] = next(clock)
                often[name] += 1

            return hook

        def end(name: str) -> Any:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                if isinstance(output, Tensor) and output.dim() > 1:
                    reads = tuple(args[0].shape[1:]) if args and isinstance(args[0], Tensor) else None
                    gives = tuple(output.shape[1:])
                    calls[name] = _Call(name, began[name], next(clock), reads, gives, output.requires_grad)

            return hook

        with ExitStack() as stack:
            for name, module in self.model.named_modules():
                if name:
                    stack.callback(module.register_forward_pre_hook(begin(name)).remove)
                    stack.callback(module.register_forward_hook(end(name)).remove)
            self._answer()
        return {name: call for name, call in calls.items() if often[name] == 1}
