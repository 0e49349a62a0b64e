"""The cost of a network: multiply-adds (MACs), parameters, bytes.

Cost is counted on the network itself, by a forward pass of one image through a copy on the `meta` device.

Units: MACs are multiply-adds for one image, sizes are bytes. `inputs` is the shape of one image (channels, height, width), or
anything `Inputs.of` accepts.
"""

import contextlib
import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from compressor.errors import UsageError, first_line
from compressor.network.copying import clone_network
from compressor.network.inputs import AnyInputs, Inputs
from compressor.network.meta_device import meta_copy, separate_attention
from compressor.network.outputs import tensors_in

Watch = TypeVar("Watch", bound=AbstractContextManager[Any])


def count_macs(model: nn.Module, inputs: AnyInputs) -> int:
    """MACs of all convolutions and matrix products for one image."""
    return sum(_count_flops(model, inputs).values()) // 2


def layer_macs(model: nn.Module, inputs: AnyInputs) -> dict[str, int]:
    """MACs for one image by module name; those of a module's children count for the children only.

    Modules without MACs are omitted; the values add up to `count_macs`.
    """
    flops = _count_flops(model, inputs)
    return {name: flops[name] // 2 for name, _ in model.named_modules() if flops[name]}


def count_params(model: nn.Module) -> int:
    """The number of parameters; a shared parameter counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def sparsity(model: nn.Module) -> float:
    """Sparsity: the fraction of the weights of all layers that are zero, without biases and norms."""
    weights = [weight for weight in model.parameters() if weight.dim() >= 2]
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers, each counted once."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *nn.Module.buffers(model)))


def peak_activation_bytes(model: nn.Module, inputs: AnyInputs) -> int:
    """Peak activation memory: the largest sum of bytes of the tensors alive at one time in a forward pass of one image.

    The network is in eval mode. The image counts, the weights do not; a view counts as the storage that it shares.
    """
    return _forward(model, inputs, _PeakMemory).peak


def _count_flops(model: nn.Module, inputs: AnyInputs) -> Counter[str]:
    return _forward(model, inputs, lambda network, samples: _Flops(network)).flops


def _forward(model: nn.Module, inputs: AnyInputs, watch: Callable[[nn.Module, list[Tensor]], Watch]) -> Watch:
    """Run one image through a copy of the model in eval mode under the mode `watch(network, samples)`, and return that mode."""
    inputs = Inputs.of(inputs)

    def run(network: nn.Module) -> Watch:
        samples = inputs.random(1, like=network)
        watching = watch(network.eval().requires_grad_(False), samples)  # PyTorch's counter fails for some with gradients
        with torch.no_grad(), separate_attention(), watching:
            inputs.call(network, samples)
        return watching

    with contextlib.suppress(Exception):  # a network whose control flow depends on values cannot run without data
        return run(meta_copy(model))
    try:
        return run(clone_network(model))
    except Exception as error:
        raise UsageError(
            f"The network does not run on {inputs.described}: give the shape it was trained with.\n{first_line(error)}"
        ) from error


class _Flops(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves the mode's methods untyped
    """Floating-point operations by the name of the innermost module that runs them, from PyTorch's own formulas."""

    supports_higher_order_operators = True

    def __init__(self, network: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # likewise
        self.flops: Counter[str] = Counter()
        self.running = [""]
        for name, module in network.named_modules():
            module.register_forward_pre_hook(partial(self._enter, name), prepend=True)
            module.register_forward_hook(self._leave, always_call=True)

    def _enter(self, name: str, *call: Any) -> None:
        self.running.append(name)

    def _leave(self, *call: Any) -> None:
        self.running.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):  # torch.cond and the like: PyTorch's counter knows what runs inside
            with FlopCounterMode(display=False) as counter:
                output = func(*args, **kwargs)
            self.flops[self.running[-1]] += counter.get_total_flops()
            return output
        formula = flop_registry.get(func.overloadpacket)
        if formula is None:
            with self:  # a composite operator, whose parts have formulas
                output = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if output is NotImplemented else output
        output = func(*args, **kwargs)
        self.flops[self.running[-1]] += formula(*args, **kwargs, out_val=output)
        return output


class _PeakMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]  # likewise
    """Adds up the storages that are alive, from the outputs of every operator."""

    def __init__(self, network: nn.Module, samples: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # likewise
        self.alive = self.peak = 0
        # By address: an address is reused only after its storage was freed, and removed here.
        self.known = {tensor.untyped_storage()._cdata for tensor in (*network.parameters(), *nn.Module.buffers(network))}
        for sample in samples:
            self._remember(sample)

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in tensors_in(output):
            self._remember(tensor)
        return output

    def _remember(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.known:
            self.known.add(storage._cdata)
            self.alive += storage.nbytes()
            self.peak = max(self.peak, self.alive)
            weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())

    def _forget(self, address: int, size: int) -> None:
        self.known.discard(address)
        self.alive -= size
