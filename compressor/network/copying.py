"""A copy of a network, also of one with attributes that `copy.deepcopy` refuses."""

import copy
import types
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from compressor.errors import UsageError, first_line

Network = TypeVar("Network", bound=nn.Module)
OF_TORCH = {"_parameters", "_buffers", "_modules"}  # what torch itself keeps among a module's attributes
DEPTH = 4  # of the containers in which an attribute is searched for tensors


def clone_network(model: Network, memo: Mapping[int, object] | None = None) -> Network:
    """A deep copy of `model`; `memo` maps the `id` of a tensor to what takes its place.

    A tensor that is recomputed before each forward pass (the weight of old `weight_norm`) is copied without its graph.
    Attributes that cannot be copied, such as imported modules, locks and generators, are shared with the original.
    Raises UsageError for one that holds tensors or layers: shared, it would let the copy change the original.
    """
    memo = {**_computed(model), **(memo or {})}
    try:
        return copy.deepcopy(model, dict(memo))
    except torch.OutOfMemoryError:
        raise
    except (TypeError, ValueError, RuntimeError, NotImplementedError, AttributeError):
        return copy.deepcopy(model, {**memo, **_shared(model, memo)})


def _computed(model: nn.Module) -> dict[int, object]:
    """`copy.deepcopy` accepts leaf tensors only."""
    values = (value for module in nn.Module.modules(model) for value in vars(module).values())
    return {id(value): value.detach().clone() for value in values if isinstance(value, Tensor) and not value.is_leaf}


def _shared(model: nn.Module, memo: Mapping[int, object]) -> dict[int, object]:
    """The attributes that cannot be copied, each in place of its copy."""
    found: dict[int, object] = {}
    for name, module in nn.Module.named_modules(model):
        for attribute, value in vars(module).items():
            if attribute in OF_TORCH:
                continue
            try:
                copy.deepcopy(value, dict(memo))
            except Exception as error:  # of an object of the user's, anything may be raised
                if any(isinstance(part, Tensor | nn.Module) for part in _within(value)):
                    place = f"{name}.{attribute}" if name else attribute
                    raise UsageError(
                        f"The attribute {place} cannot be copied ({first_line(error)}), and holds tensors or layers: "
                        "keep these apart from it."
                    ) from error
                found[id(value)] = value
    return found


def _within(value: Any, depth: int = 0) -> Iterator[Any]:
    yield value
    if depth == DEPTH:
        return
    if isinstance(value, Mapping):
        parts = list(value.values())
    elif isinstance(value, list | tuple | set | frozenset):
        parts = list(value)
    else:
        opaque = isinstance(value, type | types.ModuleType) or not hasattr(value, "__dict__")
        parts = [] if opaque else list(vars(value).values())
    for part in parts:
        yield from _within(part, depth + 1)
