"""The outputs of a network: a tensor, or nested tuples, mappings and dataclasses of tensors."""

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from compressor.errors import UsageError
from compressor.network.meta_device import evaluating

Predict = Callable[..., Tensor]  # the inputs, as forward takes them: images, or several or named tensors -> the main output

MAIN = ("logits", "out")  # the names of the main output in Hugging Face and torchvision


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in the arguments or results of a network or an operator, in order.

    Searches lists, tuples, mappings and dataclasses, also subclasses of these, and containers registered with torch's pytree,
    which itself supports neither dataclasses nor subclasses.
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
    """The main output, of a classifier the logits [n, classes]: the output named `logits` or `out`, else the first tensor.

    Raises UsageError when there is no tensor.
    """
    if isinstance(output, Tensor):
        return output
    called = [output.get(name) if isinstance(output, Mapping) else getattr(output, name, None) for name in MAIN]
    for tensor in (*called, *tensors_in(output)):
        if isinstance(tensor, Tensor):
            return tensor
    raise UsageError(f"The network returns {type(output).__name__}, which contains no tensor: return its output.")


def main_first(output: Any) -> list[Tensor]:
    """All tensors in `output`, the main output first."""
    main = logits_of(output)
    return [main, *(tensor for tensor in tensors_in(output) if tensor is not main)]


def torch_predict(model: nn.Module, device: torch.device | str, amp: torch.dtype | None = None) -> Predict:
    """A function that runs the model, which is moved to `device`, and returns its main output there, in float32.

    It takes inputs by position or name, as the model does; those of floats are cast to the type of its weights.

    `amp` is the type for PyTorch's autocast. Every call runs in eval mode and restores the mode of each module afterwards.
    """
    device = torch.device(device)
    model.to(device)

    def predict(*inputs: Any, **named: Any) -> Tensor:
        autocast = torch.autocast(device.type, dtype=amp, enabled=amp is not None)
        dtype = next((weight.dtype for weight in model.parameters() if weight.is_floating_point()), None)
        args, kwargs = tree_map_only(
            Tensor, lambda tensor: tensor.to(device, dtype if tensor.is_floating_point() else None), (inputs, named)
        )
        with evaluating(model), torch.inference_mode(), autocast:
            return logits_of(model(*args, **kwargs)).float()

    return predict
