"""Verify the surgery: the pruned model must have the same outputs as the original with the pruned channels set to zero.

The comparison is made in float64 where the model allows it, so that rounding cannot hide a real difference. Layer and group
norms average over channels: in the masked model they average over the remaining channels, as in the pruned model. A group
whose removal breaks the model (such as a channel count that is hard-coded in a forward) is excluded from pruning, and the cut
is repeated without it: a partly pruned model is never returned.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from compressor.channels import masks, surgery
from compressor.channels.groups import Channels, Mask
from compressor.channels.sizes import Ids
from compressor.channels.surgery import Cut
from compressor.channels.trace import plain_attention
from compressor.errors import VerificationFailed
from compressor.network.inputs import AnyInputs, Inputs
from compressor.network.meta_device import meta_copy, without_tf32
from compressor.network.outputs import tensors_in

TOLERANCE = 1e-5  # largest difference over largest output; float64 gives about 1e-15, float32 about 1e-6
SILENT = 1e-3  # a parameter with no larger value hides the values it is multiplied by
FAINTEST = 1e-7  # in float64, the part of an output that depends on the images counts if it is at least this share of it


class _SurvivingNorms(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves its __init_subclass__ untyped
    """Layer and group norms with masked channels average over the remaining channels.

    So does weight standardisation, which some networks compute with a batch norm of weights [1, filters, inputs].
    """

    def __init__(self, kept: dict[int, Ids]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.kept = kept  # id() of a norm's weight -> its remaining channels

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        layer = name.startswith("aten.native_layer_norm")
        if layer or name.startswith("aten.native_group_norm"):
            weight = args[2] if layer else args[1]
            if (places := self.kept.get(id(weight))) is not None:
                return self._norm(func, layer, args, torch.from_numpy(places).to(args[0].device))
        if name.startswith("aten._weight_norm"):  # a filter of zeros has no direction
            return tree_map(torch.nan_to_num, func(*args, **(kwargs or {})))
        if name.startswith("aten.native_batch_norm") and args[5] and args[0].dim() == 3 and len(args[0]) == 1:
            alive = (args[0][0] != 0).any(0).nonzero()[:, 0]
            out, *rest = func(args[0].index_select(2, alive), *args[1:])
            return (torch.zeros_like(args[0]).index_copy(2, alive, out), *rest)
        return func(*args, **(kwargs or {}))

    def _norm(self, func: Any, layer: bool, args: Any, kept: Tensor) -> Any:
        x, dim = args[0], args[0].dim() - 1 if layer else 1
        narrow = [None if t is None else t.index_select(0, kept) for t in (args[2:4] if layer else args[1:3])]
        inner = x.index_select(dim, kept)
        if layer:
            out, *rest = func(inner, [len(kept)], *narrow, args[4])
        else:
            out, *rest = func(inner, *narrow, args[3], len(kept), *args[5:])
        return (torch.zeros_like(x).index_copy(dim, kept, out), *rest)


class _SurvivingAttention(TorchFunctionMode):
    """Attention scales by the number of remaining channels, those of its queries [..., channels] that are not 0."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention and kwargs.get("scale") is None:
            query = args[0] if args else kwargs["query"]
            alive = int((query.flatten(0, -2) != 0).any(0).sum())
            kwargs = {**kwargs, "scale": max(alive, 1) ** -0.5}
        return func(*args, **kwargs)


def _outputs(model: nn.Module, inputs: Inputs, norms: dict[int, Ids] | None = None, hidden: bool = False) -> list[Tensor]:
    """The outputs of `model` for two random samples; with `hidden`, those of each module, by hooks that are not removed.

    `norms`: the kept channels of norms, if `model` is masked rather than pruned.
    """
    samples = inputs.random(2, like=model)
    heard: list[Any] = []
    for module in nn.Module.modules(model) if hidden else ():
        module.register_forward_hook(lambda module, args, out: heard.append(out))
    with torch.no_grad(), without_tf32(), contextlib.ExitStack() as surviving:
        if norms is not None:
            surviving.enter_context(_SurvivingNorms(norms))
            surviving.enter_context(_SurvivingAttention())
            surviving.enter_context(plain_attention())
        out = inputs.call(model.eval(), samples)
    return [tensor for tensor in tensors_in(heard if hidden else out) if tensor.is_floating_point()]


def difference(model: nn.Module, small: nn.Module, cut: Cut, inputs: AnyInputs) -> float:
    """Largest difference between `small` and the masked `model`, relative to the size of their output, on two random samples.

    Before training, some layers and scales are initialised to zero and hide what they multiply. In this case, and if a model
    has the same output for all inputs, a copy with noise added to its parameters is pruned and compared as well. Raises what
    the pruned model raises; infinite if the outputs differ in number, shape or finiteness.
    """
    inputs = Inputs.of(inputs)
    try:
        gap, telling = _difference(model, small, cut, inputs, torch.float64)
        dtype = torch.float64
    except RuntimeError as error:
        if "dtype" not in str(error) and "type" not in str(error):
            raise
        dtype = torch.float32  # the model creates float32 values
        gap, telling = _difference(model, small, cut, inputs, dtype)
    if not telling or any(float(p.detach().abs().max()) < SILENT for p in model.parameters() if p.numel()):
        stirred = _stirred(model)
        gap = max(gap, _difference(stirred, surgery.apply(stirred, cut), cut, inputs, dtype)[0])
    return gap


def _stirred(model: nn.Module) -> nn.Module:
    random = torch.Generator().manual_seed(0)
    parameters = {name for name, parameter in model.named_parameters() if parameter.is_floating_point()}

    def stir(name: str, tensor: Tensor) -> Tensor:
        noise = 0.02 * torch.randn(tensor.shape, generator=random) if name in parameters else torch.zeros(())
        return tensor + noise.to(tensor)

    return surgery.remake(model, stir)


def _difference(model: nn.Module, small: nn.Module, cut: Cut, inputs: Inputs, dtype: torch.dtype) -> tuple[float, bool]:
    """The difference, and whether it is meaningful: whether any output depends on the samples."""

    def answers(hidden: bool) -> tuple[list[Tensor], list[Tensor]]:
        """Outputs of the pruned and of the masked model, one after the other: both at once may not fit into memory."""
        mine = _outputs(surgery.remake(small, lambda _, tensor: surgery.typed(tensor, dtype)), inputs, hidden=hidden)
        masked = masks.mask(model, cut, dtype)
        weights = {name: weight for name, weight in masked.named_parameters() if name in cut.kept and weight.dim() == 1}
        return mine, _outputs(masked, inputs, {id(weight): cut.kept[name][0] for name, weight in weights.items()}, hidden)

    mine, theirs = answers(hidden=False)
    if [tensor.shape for tensor in mine] != [tensor.shape for tensor in theirs]:
        return float("inf"), True
    if not any(tensor.numel() for tensor in mine):  # a detector without detections: compare its unpruned hidden layers
        mine, theirs = answers(hidden=True)
    worst, telling = 0.0, False
    for a, b in zip(mine, theirs, strict=True):
        if a.shape != b.shape or not a.numel():
            continue
        gap, size = float((a - b).abs().max()), _size(b, dtype)
        if not np.isfinite(gap):
            return float("inf"), True
        worst = max(worst, gap / size if size > 0 else gap)
        telling |= not _same_answer(b)
    return worst, telling


def _same_answer(out: Tensor) -> bool:
    """Whether `out` [2, ...] is the same for both samples, up to rounding."""
    return out.dim() > 0 and len(out) == 2 and torch.allclose(out[0], out[1], rtol=FAINTEST, atol=0)


def _size(out: Tensor, dtype: torch.dtype) -> float:
    """The size of `out` [2, ...]: its largest value, or in float64 the largest difference between the two samples.

    An untrained or badly scaled network may have nearly constant outputs; relative to them, even a wrong cut changes little.
    """
    size = float(out.abs().max())
    if dtype != torch.float64 or out.dim() == 0 or len(out) != 2:
        return size
    return max(float((out[0] - out[1]).abs().max()), FAINTEST * size)


@dataclass(frozen=True)
class Verified:
    """A verified pruned network."""

    model: nn.Module
    cut: Cut
    channels: Channels  # without the groups that had to be excluded from pruning
    mask: Mask
    difference: float | None  # from the masked network; None: nothing was pruned


def remove(model: nn.Module, channels: Channels, choose: Callable[[Channels], Mask], inputs: AnyInputs) -> Verified:
    """Remove the channels that `choose` does not keep and verify the result; exclude groups that break the model, and repeat.

    Raises VerificationFailed when the verification still fails.
    """
    inputs = Inputs.of(inputs)
    for _ in range(8):
        mask = choose(channels)
        cut = surgery.plan(model, channels, mask)
        small = surgery.apply(model, cut)
        try:
            gap = difference(model, small, cut, inputs)
            fault = f"the pruned model differs from the masked one by {gap:.1e}" if gap > TOLERANCE else ""
        except torch.OutOfMemoryError:  # not a property of the model
            raise
        except Exception as error:  # whatever the model's own code may raise
            fault = "the model's code relies on its width: " + (str(error).strip().splitlines() or [type(error).__name__])[0]
        if not fault:
            return Verified(small, cut, channels, mask, gap)
        held = _guilty(model, channels, mask, inputs, fault)
        if not held:
            break
        channels = channels.without(held)
    raise VerificationFailed(f"The pruned model is not equal to the masked one: {fault}.\nNothing was written.")


def _guilty(model: nn.Module, channels: Channels, mask: Mask, inputs: Inputs, fault: str) -> dict[str, str]:
    """The groups that break the model when pruned, found by bisection, and the reason: first by shapes, then by values."""
    own = channels.split(mask)
    cut_groups = [name for name, kept in own.items() if not kept.all()]
    twin = meta_copy(model)

    def shapes_fit(cut: Cut) -> bool:
        return _runs_without_data(surgery.apply(twin, cut), inputs)

    def values_agree(cut: Cut) -> bool:
        try:
            return difference(model, surgery.apply(model, cut), cut, inputs) <= TOLERANCE
        except torch.OutOfMemoryError:
            raise
        except Exception:
            return False

    def search(names: list[str], works: Callable[[Cut], bool]) -> list[str]:
        if works(surgery.plan(model, channels, channels.join({name: own[name] for name in names}))):
            return []
        if len(names) <= 1:
            return names
        half = len(names) // 2
        return (search(names[:half], works) + search(names[half:], works)) or names

    found = search(cut_groups, shapes_fit) if _runs_without_data(twin, inputs) else []
    if not found and values_agree(Cut()):  # else the unpruned model is not reproducible
        found = search(cut_groups, values_agree)
    return dict.fromkeys(found, fault)


def _runs_without_data(twin: nn.Module, inputs: Inputs) -> bool:
    """Whether a model on `meta` accepts such inputs; one whose control flow depends on values never does."""
    try:
        with torch.no_grad():
            inputs.call(twin.eval(), inputs.random(2, like=twin))
    except Exception:
        return False
    return True
