"""A copy of a network with shapes but without data.

Tensors on PyTorch's `meta` device have a shape and a type, but no data. A forward pass there takes no memory and next
to no time, yet calls the same operators in the same order, so it shows what a network would do.
The copy is made without copying a single weight: while Python copies the modules, every tensor is replaced by its
counterpart on `meta`.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from compressor.network.copying import clone_network


def meta_copy(model: nn.Module) -> nn.Module:
    """A deep copy of `model` on `meta`: the same modules, hooks, shapes, types and `requires_grad` flags, and no data.

    Shared tensors stay shared; tensors that are neither parameters nor buffers move, too.
    A hook that is a plain function is shared with the original, as in every deep copy, and so is what it refers to.
    """
    with _MetaTwins():
        return clone_network(model)


class _MetaTwins(TorchFunctionMode):
    """While active, copying a tensor returns its counterpart on `meta`."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is Tensor.__deepcopy__:
            tensor: Tensor = args[0]
            return tensor.detach().to("meta").requires_grad_(tensor.requires_grad)
        if func is Tensor.clone:  # how a parameter copies its data
            return args[0].to("meta")
        return func(*args, **(kwargs or {}))


@contextmanager
def separate_attention() -> Iterator[None]:
    """Disable PyTorch's fused operators for transformer layers, so that their parts can be traced and counted."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def without_tf32() -> AbstractContextManager[None]:
    """cuDNN computes float32 convolutions in full precision, as a comparison of two networks needs."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put `model` in eval mode; afterwards restore the mode of each of its modules."""
    modes = [(module, module.training) for module in nn.Module.modules(model)]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def frozen(model: nn.Module, device: torch.device) -> nn.Module:
    """A copy for use as a teacher: on `device`, in eval mode, without gradients."""
    return clone_network(model).to(device).eval().requires_grad_(False)
