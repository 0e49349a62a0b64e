"""What a network gives back: a tensor, or tensors in tuples, mappings and dataclasses, in any depth."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in what a network or an operator takes or returns, in order.

    It looks into lists, tuples, mappings and dataclasses, subclasses of these too, and whatever is registered with torch's
    pytree, which itself sees neither dataclasses nor subclasses.
    """
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return tensors_in(list(value.values()))
    if isinstance(value, list | tuple):
        return [tensor for part in value for tensor in tensors_in(part)]
    if is_dataclass(value):
        return tensors_in([getattr(value, field.name, None) for field in fields(value)])
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
