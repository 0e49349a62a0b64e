"""What a network gives back: a tensor, or tensors in tuples, mappings and dataclasses, in any depth."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from compressor.errors import UsageError

MAIN = ("logits", "out")  # what Hugging Face and torchvision call the answer


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


def logits_of(output: Any) -> Tensor:
    """The main answer, [n, classes] of a classifier: what is called `logits` or `out`, else the first tensor.

    Raises UsageError when there is no tensor.
    """
    if isinstance(output, Tensor):
        return output
    called = [output.get(name) if isinstance(output, Mapping) else getattr(output, name, None) for name in MAIN]
    for tensor in (*called, *tensors_in(output)):
        if isinstance(tensor, Tensor):
            return tensor
    raise UsageError(f"The network answers with {type(output).__name__}, in which there is no tensor: have it return logits.")


def main_first(output: Any) -> list[Tensor]:
    """All tensors in `output`, its main answer before the others."""
    main = logits_of(output)
    return [main, *(tensor for tensor in tensors_in(output) if tensor is not main)]
