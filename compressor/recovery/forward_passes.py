"""A forward pass that observes each call of some layers, the batch norms that follow them, and the additions of their outputs.

A tensor is marked with the call of a layer, or of the batch norm after it, that produced it; so an addition can tell its
operands. Operators also pass on which layers, and which choices by value, a tensor depends on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from compressor.channels import Cut
from compressor.network.inputs import Inputs
from compressor.network.meta_device import evaluating, separate_attention
from compressor.network.outputs import tensors_in

ADDITIONS = {"aten.add.Tensor", "aten.add_.Tensor"}
LINEAR = {nn.Linear.forward, nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward}  # subclasses may override forward
CHOICE = "(choice)"  # stands for operators that select entries by values which layers computed
CHOOSING = {
    *("aten.topk", "aten.sort", "aten.nonzero", "aten.argmax", "aten.argmin", "aten.masked_select", "aten.multinomial"),
    *("aten._unique2", "aten.unique_dim", "torchvision.nms"),
}

Layer = nn.Linear | _ConvNd


@dataclass(frozen=True)
class Source:
    """The origin of a tensor: the output of a call of `layer`, or of the batch norm `norm` applied to exactly that output."""

    layer: str
    call: int  # of this layer in the forward pass, from 0
    version: int  # of the tensor: the mark is void after an in-place change
    norm: str | None = None


def mark(tensor: Tensor, layer: str, call: int, norm: str | None = None) -> None:
    tensor._source = Source(layer, call, tensor._version, norm)  # type: ignore[attr-defined]


def source_of(tensor: Tensor) -> Source | None:
    source: Source | None = getattr(tensor, "_source", None)
    return source if source is not None and source.version == tensor._version else None


class Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves its __init_subclass__ untyped
    """Passes on what each tensor depends on. Calls `found` for each marked tensor that is about to be added to another of the
    same shape, and for that other."""

    def __init__(self, found: Callable[[Source, Tensor, Tensor], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.found, self._behind = found, WeakTensorKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = str(func), kwargs or {}
        if name in ADDITIONS and not kwargs and isinstance(args[1], Tensor) and args[0].shape == args[1].shape:
            for one, other in (args, args[::-1]):
                if (made := source_of(one)) is not None:
                    self.found(made, one, other)
        behind = frozenset[str]().union(*map(self.behind, tensors_in((args, kwargs))))
        out = func(*args, **kwargs)
        if behind:
            self.depend(out, behind | {CHOICE} if _chooses(name, args) else behind)
        return out

    def behind(self, tensor: Tensor) -> frozenset[str]:
        """The layers that a tensor depends on, and CHOICE if its entries were selected by values that these computed."""
        behind: frozenset[str] = self._behind.get(tensor, frozenset())  # type: ignore[no-untyped-call]  # untyped in torch
        return behind

    def depend(self, result: Any, behind: frozenset[str]) -> None:
        for tensor in tensors_in(result):
            for each in (tensor, tensor._base):  # what is written to a view is written to its base
                if each is not None:
                    self._behind[each] = self.behind(each) | behind


def _chooses(operator: str, args: Sequence[Any]) -> bool:
    """Whether an operator selects entries by their values. Boolean indices do."""
    name = operator.rpartition(".")[0]
    return name in CHOOSING or (name == "aten.index" and any(index.dtype == torch.bool for index in tensors_in(args[1])))


class Pass:
    """A forward pass of `model` that observes `layers`, the batch norms after them, and the additions of their outputs."""

    def __init__(self, model: nn.Module, layers: Iterable[str]) -> None:
        self.model, self.layers = model, {name: layer_of(model, name) for name in layers}
        self.calls = Counter[str]()  # of layers and norms that have ended; so in a callback, the number of the present call
        self.additions = Counter[tuple[str, int]]()  # of the output of a call of a layer, before the present one
        self.operators = Operators(self._added)
        self._observes = True

    def run(self, inputs: Inputs, tensors: Sequence[Tensor]) -> None:
        self.calls.clear()
        self.additions.clear()
        self.operators = Operators(self._added)
        with evaluating(self.model), torch.no_grad(), separate_attention(), ExitStack() as stack:
            for name, layer in self.layers.items():
                stack.callback(layer.register_forward_pre_hook(partial(self._before, name), with_kwargs=True).remove)
                stack.callback(layer.register_forward_hook(partial(self._after, name)).remove)
            for name, module in self.model.named_modules():
                if isinstance(module, _BatchNorm) and module.running_mean is not None:
                    stack.callback(module.register_forward_hook(partial(self._normed, name), with_kwargs=True).remove)
            stack.enter_context(self.operators)
            inputs.call(self.model, tensors)

    def again(self, name: str, norm: str | None, x: Tensor) -> Tensor:
        """The output of a layer, and of the norm that follows it, for the input `x` of the layer, in an unobserved call."""
        self._observes = False
        try:
            out: Tensor = self.layers[name](x)
            return norm_of(self.model, norm)(out) if norm else out
        finally:
            self._observes = True

    def _before(self, name: str, layer: Layer, args: Sequence[Tensor], kwargs: dict[str, Tensor]) -> None:
        if self._observes:
            self.before(name, layer, next(iter((*args, *kwargs.values()))))

    def _after(self, name: str, layer: Layer, args: Sequence[Tensor], out: Tensor) -> None:
        if self._observes:
            mark(out, name, self.calls[name])
            self.operators.depend(out, frozenset({name}))
            self.after(name, layer, out)
            self.calls[name] += 1

    def _normed(self, name: str, norm: _BatchNorm, args: Sequence[Tensor], kwargs: dict[str, Tensor], out: Tensor) -> None:
        if not self._observes:
            return
        self.calls[name] += 1
        made = source_of(next(iter((*args, *kwargs.values()))))
        if made is not None and made.norm is None:
            mark(out, made.layer, made.call, name)
            self.normed(made, name)

    def _added(self, made: Source, one: Tensor, other: Tensor) -> None:
        self.added(made, one, other)
        self.additions[made.layer, made.call] += 1

    # Callbacks

    def before(self, name: str, layer: Layer, x: Tensor) -> None:
        """A layer is about to be called with `x`."""

    def after(self, name: str, layer: Layer, out: Tensor) -> None:
        """A layer returned `out`."""

    def normed(self, made: Source, norm: str) -> None:
        """The batch norm `norm` was called with exactly the output `made` of a layer."""

    def added(self, made: Source, one: Tensor, other: Tensor) -> None:
        """`one`, with origin `made`, is about to be added to `other`."""


# Layers ---------------------------------------------------------------------------------------------------------------


def plain_layers(model: nn.Module) -> list[str]:
    """Linear layers and convolutions with torch's own forward and a weight that they share with no other module."""
    owners = Counter(id(p) for module in nn.Module.modules(model) for p in module.parameters(recurse=False))
    return [
        name
        for name, module in model.named_modules()
        if type(module).forward in LINEAR and "weight" in module._parameters and owners[id(module.weight)] == 1
    ]


def that_lost_inputs(model: nn.Module, cut: Cut) -> list[str]:
    """Consumers of pruned channels: modules with weights that lost input channels."""
    names = dict.fromkeys(tensor.rpartition(".")[0] for tensor, dims in cut.kept.items() if 1 in dims and "weight" in tensor)
    return [name for name in names if not isinstance(model.get_submodule(name), _ConvTransposeNd)]


def layer_of(model: nn.Module, name: str) -> Layer:
    module = model.get_submodule(name)
    assert isinstance(module, nn.Linear | _ConvNd)
    return module


def norm_of(model: nn.Module, name: str) -> _BatchNorm:
    module = model.get_submodule(name)
    assert isinstance(module, _BatchNorm)
    return module


def groups_of(layer: Layer) -> int:
    return 1 if isinstance(layer, nn.Linear) else layer.groups


def table_of(layer: Layer, tensor: Tensor) -> Tensor:
    """The input or output of `layer` as [positions, channels]: image by image, then position by position."""
    return (tensor if isinstance(layer, nn.Linear) else tensor.movedim(1, -1)).flatten(0, -2)


def kept_places(cut: Cut, layer: str, dim: int, size: int) -> Tensor:
    """The kept indices along `dim` of the layer's weight."""
    places = cut.kept.get(f"{layer}.weight", {}).get(dim)
    return torch.arange(size) if places is None else torch.from_numpy(places)
