"""What a network gives back: a tensor, or tensors in tuples, mappings and dataclasses, in any depth."""

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from compressor.errors import UsageError
from compressor.network.meta_device import evaluating

Predict = Callable[..., Tensor]  # images [n, channels, height, width], or every input -> logits [n, classes]

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


def torch_predict(model: nn.Module, device: torch.device | str, amp: torch.dtype | None = None) -> Predict:
    """A function that asks the model, which is moved to `device`; logits come back there, in float32.

    `amp` is the type that PyTorch's autocast may compute in. Every call runs in eval mode, and then each module has the
    mode back that it had before.
    """
    device = torch.device(device)
    model.to(device)

    def predict(images: Tensor) -> Tensor:
        autocast = torch.autocast(device.type, dtype=amp, enabled=amp is not None)
        with evaluating(model), torch.inference_mode(), autocast:
            return logits_of(model(images.to(device))).float()  # [n, classes]

    return predict
