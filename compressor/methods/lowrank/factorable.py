"""The layers of a network that can be factored, the cost and error of each rank, and the effect of an error on the output."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch

import numpy as np
import torch
from torch import Tensor, nn

from compressor.data import Batch
from compressor.methods.lowrank.decompositions import Layer, Seen, Split
from compressor.methods.lowrank.rank_rules import Ladder
from compressor.methods.widths import check_keep, units
from compressor.network.copying import clone_network
from compressor.network.inputs import AnyInputs, Inputs
from compressor.network.meta_device import evaluating, meta_copy, separate_attention
from compressor.network.replacements import replaced
from compressor.tasks import Task
from compressor.training.goal import Goal

RUNGS = 96  # maximum number of ranks on a ladder

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Site:
    """A layer that can be factored: its input shape in each call for one image, its decomposition and candidate ranks."""

    name: str
    layer: Layer
    shapes: tuple[Shape, ...]
    split: Split
    ladder: Ladder


@dataclass(frozen=True)
class Cost:
    """Multiply-adds per image, and parameters."""

    macs: int
    params: int

    def of(self, quantity: str) -> int:
        return self.macs if quantity == "macs" else self.params


def cost(chain: nn.Module, shapes: Iterable[Shape]) -> Cost:
    """Cost of a chain for inputs of these shapes, each with batch size 1."""
    macs = 0
    twin = meta_copy(chain)
    for shape in shapes:
        x = torch.empty(shape, device="meta")
        for part in twin if isinstance(twin, nn.Sequential) else [twin]:
            x = part(x)
            if isinstance(part, nn.Conv2d | nn.Linear):
                made = part.out_channels if isinstance(part, nn.Conv2d) else part.out_features
                macs += x.numel() // made * part.weight.numel()
    return Cost(macs, sum(parameter.numel() for parameter in chain.parameters()))


def layers(
    model: nn.Module, inputs: AnyInputs, keep: Sequence[str] = ()
) -> tuple[dict[str, tuple[Shape, ...]], dict[str, str]]:
    """The layers that can be factored, with their input shapes; and those that cannot, with the reason.

    `keep` are patterns of layers not to factor. Raises UsageError for a pattern that matches no layer.
    """
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.modules.conv._ConvNd)}
    check_keep(keep, linear)
    read = _shapes_read(model, inputs, list(linear))
    names = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    owners = Counter(id(p) for module in nn.Module.modules(model) for p in module.parameters(recurse=False))
    fine: dict[str, tuple[Shape, ...]] = {}
    left: dict[str, str] = {}
    for name, module in linear.items():
        kept = next((pattern for pattern in keep if fnmatch(name, pattern)), None)
        if kept is not None:
            left[name] = f"excluded by --keep {kept}"
        elif type(module).forward not in (nn.Linear.forward, nn.Conv2d.forward):
            left[name] = f"no decomposition for {type(module).__name__}"
        elif names[id(module)] > 1 or "weight" not in module._parameters or owners[id(module.weight)] > 1:
            left[name] = "its weights are shared, or computed from other parameters"
        elif module._forward_hooks or module._forward_pre_hooks:
            left[name] = "a hook can change its output"
        elif name not in read:
            left[name] = "it is not called: its weights are unused, or used by another module"
        else:
            fine[name] = tuple(read[name])
    for name in _irreplaceable(model, inputs, list(fine)):
        left[name] = "the model's code accesses its weights directly"
        del fine[name]
    return fine, left


def _irreplaceable(model: nn.Module, inputs: AnyInputs, names: Sequence[str]) -> Sequence[str]:
    """Layers that cannot be replaced by another module, because the network then fails."""

    def works(some: Sequence[str]) -> bool:
        network = clone_network(model).eval()
        replaced(network, {name: nn.Sequential(network.get_submodule(name)) for name in some})
        try:
            with torch.no_grad():
                Inputs.of(inputs).call(network, Inputs.of(inputs).random(1, like=network))
        except torch.OutOfMemoryError:
            raise
        except Exception:  # the model's code can raise anything
            return False
        return True

    return () if works(names) else [name for name in names if not works([name])]


def _shapes_read(model: nn.Module, inputs: AnyInputs, names: Iterable[str]) -> dict[str, list[Shape]]:
    """The input shapes of each module that is called, call by call, for one image."""
    read: dict[str, list[Shape]] = {}
    inputs = Inputs.of(inputs)
    try:
        network = meta_copy(model).eval()
        _listen(network, inputs, names, read)
    except Exception:  # a network that branches on values cannot run on `meta`
        read.clear()
        _listen(clone_network(model).eval(), inputs, names, read)
    return read


def _listen(network: nn.Module, inputs: Inputs, names: Iterable[str], read: dict[str, list[Shape]]) -> None:
    def hear(name: str) -> None:
        def heard(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
            read.setdefault(name, []).append(tuple(next(iter((*args, *kwargs.values()))).shape))

        network.get_submodule(name).register_forward_pre_hook(heard, with_kwargs=True)

    for name in names:
        hear(name)
    with torch.no_grad(), separate_attention():
        inputs.call(network, inputs.random(1, like=network))


def ladder_of(
    layer: Layer, shapes: Sequence[Shape], split: Split, seen: Seen | None, goal: Goal, round_to: int | None
) -> Ladder:
    """The ranks that save both MACs and parameters, in multiples of `round_to`, or by default of `units`."""
    quantity = goal.quantity
    full, most = cost(layer, shapes), split.most(layer)
    unit = min(most, round_to or int(units(np.array([most // 2]))[0]))
    bias = True if seen is not None and split.whitens else None
    steps = np.linspace(1, most // unit, RUNGS).astype(int) * unit
    if goal.limit and quantity == "rank":  # the requested rank, even if it is not a multiple
        multiple = round_to or 1
        steps = np.append(steps, np.clip(int(goal.limit) // multiple * multiple, multiple, most))
    costs = {int(rank): cost(split.chain(layer, int(rank), bias), shapes) for rank in np.unique(steps)}
    worth = {rank: c for rank, c in costs.items() if c.macs < full.macs and c.params < full.params}
    return Ladder(
        np.array(list(worth), np.int64),
        split.errors(layer, list(worth), seen) if worth else np.zeros(0),
        np.array([c.of(quantity) for c in worth.values()], np.float64),
        float(full.of(quantity)),
        split.singular(layer, seen).cpu().numpy(),
        split.shape(layer),
    )


def probed(
    model: nn.Module, found: Sequence[Sequence[Site]], seen: Mapping[str, Seen], batches: Sequence[Batch], task: Task
) -> list[Site]:
    """For each layer the decomposition that changes the output of the network least at half the cost of the layer.

    `found` lists the candidates of each layer. Each is tried alone on `batches`. The distance from the original output, divided
    by the error of the layer, becomes the weight of all errors of that layer.
    """
    original = [_answers(model, batch, task) for batch in batches]
    images = sum(batch.size for batch in batches)
    chosen = []
    for ways in found:
        tried = []
        for site in ways:
            middle = int(np.argmin(np.abs(site.ladder.costs - site.ladder.full / 2)))
            chain = site.split.factor(site.layer, int(site.ladder.ranks[middle]), seen.get(site.name))
            replaced(model, {site.name: chain})
            distances = [
                float(task.distance(_answers(model, batch, task), wanted)) * batch.size
                for batch, wanted in zip(batches, original, strict=True)
            ]
            replaced(model, {site.name: site.layer})
            harm = max(sum(distances) / images, 1e-9)
            weight = harm / max(float(site.ladder.errors[middle]), 1e-9)
            tried.append((harm, replace(site, ladder=replace(site.ladder, weight=weight))))
        chosen.append(min(tried, key=lambda entry: entry[0])[1])
    return chosen


def _answers(model: nn.Module, batch: Batch, task: Task) -> list[Tensor]:
    """What networks are compared by, in eval mode."""
    with evaluating(model), torch.inference_mode():
        return [tensor.float() for tensor in task.compared(task.call(model, batch.inputs))]


def half_error(site: Site) -> float:
    """The error at the rank whose cost is nearest to half the cost of the layer."""
    return float(site.ladder.errors[np.argmin(np.abs(site.ladder.costs - site.ladder.full / 2))])
