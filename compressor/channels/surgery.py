"""Remove channels from a model, or scatter them: the user's classes are kept, only their tensors and counts change.

`plan` lists the indices that each tensor keeps, and `apply` builds the pruned model from it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from compressor.channels.groups import Channels, Mask
from compressor.channels.sizes import Ids
from compressor.network.copying import clone_network

Count = int | list[int]


@dataclass(frozen=True)
class Spread:
    """A narrow output, scattered to the indices `kept` of `width` channels along `dim`."""

    kept: tuple[int, ...]
    width: int
    dim: int


@dataclass(frozen=True)
class Cut:
    """How a model is pruned.

    kept: tensor -> dimension -> the kept indices, in order; tensors that keep everything are omitted.
    counts: module -> attribute -> its new value (`in_channels`, `num_features`, ...).
    spread: module -> how its narrow output is scattered.
    """

    kept: dict[str, dict[int, Ids]] = field(default_factory=dict)
    counts: dict[str, dict[str, Count]] = field(default_factory=dict)
    spread: dict[str, Spread] = field(default_factory=dict)


class Scatter(nn.Module):
    """[..., kept, ...] -> [..., width, ...]: zeros where channels were pruned."""

    kept: Tensor

    def __init__(self, spread: Spread) -> None:
        super().__init__()
        self.width, self.dim = spread.width, spread.dim
        self.register_buffer("kept", torch.tensor(spread.kept), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        shape = list(x.shape)
        shape[self.dim] = self.width
        return x.new_zeros(shape).index_copy(self.dim, self.kept, x)


def _scatter_output(module: nn.Module, args: object, output: Tensor) -> Tensor:
    scattered: Tensor = module.get_submodule("scatter")(output)
    return scattered


def attach(module: nn.Module, spread: Spread) -> None:
    """Scatter the output of `module`. Its parameters keep their names."""
    device = next((p.device for p in module.parameters()), None)
    module.add_module("scatter", Scatter(spread).to(device))
    module.register_forward_hook(_scatter_output)


def remake(model: nn.Module, change: Callable[[str, Tensor], Tensor]) -> nn.Module:
    """A copy of `model` whose parameters and buffers are `change(name, tensor)`; the result of `change` is not copied again.

    Shared tensors stay shared: `change` is called once for each, with its first name.
    """
    memo: dict[int, object] = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            changed = change(name, parameter.detach())
            memo[id(parameter)] = nn.Parameter(changed, requires_grad=parameter.requires_grad)
        for name, buffer in model.named_buffers():
            memo[id(buffer)] = change(name, buffer.detach())
    return clone_network(model, memo)


def plan(model: nn.Module, channels: Channels, mask: Mask) -> Cut:
    """The cut of `model` that keeps the atoms of `mask`."""
    kept: dict[str, dict[int, Ids]] = {}
    for place in channels.places:
        stays = mask[place.atoms] | (place.atoms < 0)
        if not stays.all():
            kept.setdefault(place.tensor, {})[place.dim] = np.flatnonzero(stays)
    spread = {}
    for group, own in zip(channels.groups, channels.split(mask).values(), strict=True):
        if group.scatter is not None and not own.all():
            made = group.members[0]
            dim = -1 if model.get_parameter(made.tensor).dim() == 2 else 1
            spread[group.scatter] = Spread(tuple(sorted(made.indices[own].ravel().tolist())), made.indices.size, dim)
    first_names = {id(tensor): name for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    counts: dict[str, dict[str, Count]] = {}
    for owner, module in model.named_modules():
        here = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        names = {leaf: first_names[id(tensor)] for leaf, tensor in here}
        tensors = {leaf: kept[name] for leaf, name in names.items() if name in kept}
        if tensors and (changed := _counts(module, tensors)):
            counts[owner] = changed
    for attribute, value in channels.counts(mask).items():
        changed = counts.setdefault(attribute.module, {})
        if attribute.item is None:
            changed[attribute.name] = value
        else:
            now = changed.get(attribute.name) or list(getattr(model.get_submodule(attribute.module), attribute.name))
            assert isinstance(now, list)
            changed[attribute.name] = [value if i == attribute.item else size for i, size in enumerate(now)]
    return Cut(kept, counts, spread)


def _counts(module: nn.Module, kept: dict[str, dict[int, Ids]]) -> dict[str, Count]:
    """The counts that torch's modules store besides their tensors (such as `in_channels`), after pruning."""

    def size(tensor: str, dim: int) -> int:
        return len(kept.get(tensor, {}).get(dim, range(getattr(module, tensor).shape[dim])))

    if isinstance(module, _ConvNd | nn.Linear) and "weight" not in module._parameters:  # a computed weight
        return {}
    if isinstance(module, _ConvNd):
        out_dim, in_dim = (1, 0) if isinstance(module, _ConvTransposeNd) else (0, 1)
        groups, made, read = module.groups, size("weight", out_dim), size("weight", in_dim)
        if groups > 1 and module.weight.shape[1] == 1:  # depthwise: as many groups as channels remain
            groups = made * module.in_channels // module.out_channels
        return {"in_channels": read * groups, "out_channels": made, "groups": groups}
    if isinstance(module, nn.Linear):
        return {"in_features": size("weight", 1), "out_features": size("weight", 0)}
    if isinstance(module, _NormBase):
        leaf = next(iter(kept))
        return {"num_features": size(leaf, 0)}
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return {"normalized_shape": [size("weight", dim) for dim in range(module.weight.dim())]}
    if isinstance(module, nn.GroupNorm):
        return {"num_channels": size("weight", 0)}
    if isinstance(module, nn.PReLU):
        return {"num_parameters": size("weight", 0)}
    return {}


def apply(model: nn.Module, cut: Cut) -> nn.Module:
    """The pruned model. `model` is not changed."""

    def narrow(name: str, tensor: Tensor) -> Tensor:
        if name not in cut.kept:
            return tensor.clone()
        for dim, places in cut.kept[name].items():
            tensor = tensor.index_select(dim, torch.from_numpy(places).to(tensor.device))
        return tensor

    small = remake(model, narrow)
    set_counts(small, cut.counts)
    for name, spread in cut.spread.items():
        attach(small.get_submodule(name), spread)
    return small


def set_counts(model: nn.Module, counts: dict[str, dict[str, Count]]) -> None:
    """Set counts of modules. Raises AttributeError for any other attribute: a file of counts must not set anything else."""
    for name, changed in counts.items():
        module = model.get_submodule(name)
        for attribute, value in changed.items():
            now = module.__dict__.get(attribute)
            if attribute.startswith("_") or not _counts_less(now, value):
                raise AttributeError(f"{name}.{attribute} is {now!r}: it cannot be set to the channel count {value}")
            setattr(module, attribute, tuple(value) if isinstance(now, tuple) and isinstance(value, list) else value)


def _counts_less(now: object, value: Count) -> bool:
    """Whether `value` is one or several counts like `now`, and none is higher."""
    before, after = ([entry] if isinstance(entry, int) else entry for entry in (now, value))
    return (
        isinstance(before, list | tuple)
        and isinstance(after, list)
        and len(before) == len(after)
        and all((type(a) is type(b) is int and 0 <= b <= a) or a == b for a, b in zip(before, after, strict=True))
    )


def typed(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A copy of `tensor`; floating-point values are cast to `dtype`, if given."""
    return tensor.to(dtype, copy=True) if dtype and tensor.is_floating_point() else tensor.clone()
