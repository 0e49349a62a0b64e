"""Recognise the torchvision network of a state dict by the names and shapes of its tensors.

Candidates are built on the `meta` device, those with the nearest parameter count first, so the right one is usually among the
first few. Networks trained for another number of classes are recognised, too.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache

import torch

from compressor.checkpoint.arch import outline
from compressor.checkpoint.fit_weights import Difference, Shapes, class_counts, compare, shapes_of
from compressor.checkpoint.weights import Spelling, spellings
from compressor.errors import ArchitectureError, CheckpointError


@dataclass(frozen=True)
class Recognised:
    """An architecture string, and the arguments that differ from the defaults."""

    arch: str
    args: dict[str, object] = field(default_factory=dict)


def recognise(tensors: Mapping[str, torch.Tensor]) -> Recognised:
    """The torchvision architecture (classification or segmentation) that fits these tensors exactly, ignoring wrapper prefixes.

    Raises CheckpointError when none fits, naming the nearest one, or when several do.
    """
    ways = spellings(dict(tensors))
    parameters = max((sum(tensor.numel() for tensor in way.tensors.values()) for way in ways), default=0)
    for name, args, declared in _candidates(parameters):
        fitting = _fits(name, args, ways)
        if fitting is not None:
            twins = [
                other
                for twin, twin_args, count in _candidates(parameters)
                if count == declared
                and (twin, twin_args) != (name, args)
                and (other := _fits(twin, twin_args, ways)) is not None
            ]
            if twins:
                found = ", ".join(sorted(one.arch for one in (fitting, *twins)))
                raise CheckpointError(f"The weights fit {found} equally. Choose one with --arch.")
            return fitting
    raise CheckpointError(_nearest(ways))


@cache
def skeleton(arch: str, args: tuple[tuple[str, object], ...] = ()) -> Shapes:
    """The names and shapes of a network's state dict, without allocating its weights."""
    return shapes_of(outline(arch, dict(args)).state_dict())


def _candidates(parameters: int) -> Iterator[tuple[str, dict[str, object], int]]:
    """Name, arguments and declared parameter count of every network, the nearest count first."""
    return iter(sorted(_catalogue(), key=lambda entry: abs(entry[2] - parameters)))


@cache
def _catalogue() -> tuple[tuple[str, dict[str, object], int], ...]:
    from torchvision import models  # takes seconds to import

    entries: list[tuple[str, dict[str, object], int]] = []
    for name in models.list_models(module=models):
        count = int(models.get_model_weights(name).DEFAULT.meta["num_params"])
        entries.append((name, {}, count))
        if name in {"googlenet", "inception_v3"}:
            entries.append((name, {"aux_logits": False}, count))
    for name in models.list_models(module=models.segmentation):
        count = int(models.get_model_weights(name).DEFAULT.meta["num_params"])
        entries.append((name, {}, count))
        if not name.startswith("lraspp"):
            entries.append((name, {"aux_loss": True}, count))
    return tuple(entries)


def _fits(name: str, args: dict[str, object], ways: list[Spelling]) -> Recognised | None:
    """The network with these arguments, or another class count, if the tensors fit it exactly."""
    arch = f"torchvision:{name}"
    shapes = skeleton(arch, tuple(args.items()))
    for way in ways:
        difference = compare(shapes_of(way.tensors), shapes)
        if not difference:
            return Recognised(arch, args)
        for count in class_counts(difference):
            counted = {**args, "num_classes": count}
            try:
                retrained = skeleton(arch, tuple(counted.items()))
            except ArchitectureError:
                continue
            if not compare(shapes_of(way.tensors), retrained):
                return Recognised(arch, counted)
    return None


def _nearest(ways: list[Spelling]) -> str:
    """The message if nothing fits: the nearest network, and the differences."""

    def distance(difference: Difference) -> tuple[int, int]:
        return len(difference.missing) + len(difference.unexpected), len(difference.reshaped)

    best: tuple[tuple[int, int], str, Difference] | None = None
    for name, args, _ in _candidates(0):
        shapes = skeleton(f"torchvision:{name}", tuple(args.items()))
        for way in ways:
            difference = compare(shapes_of(way.tensors), shapes)
            if best is None or distance(difference) < best[0]:
                best = distance(difference), name, difference
    assert best is not None, "torchvision has networks, and there are tensors"
    _, name, difference = best
    if not difference.missing and not difference.unexpected and difference.smaller:
        return (
            f"The names are those of torchvision:{name}, but tensors are smaller: {difference}. If it was saved after pruning, "
            "give the run directory instead, or the code that builds the pruned network with --arch."
        )
    return (
        f"No torchvision network has these tensors; the nearest, {name}, differs: {difference}. "
        "Give the code that builds the network with --arch path/to/file.py:NAME."
    )
