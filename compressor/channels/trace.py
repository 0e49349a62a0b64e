"""Find coupled channels with one forward pass on `meta` tensors.

Every index of every dimension of every parameter gets an id. The forward runs under a dispatch mode, which sees a sequence of
ATen operators, however the model is written. The rule of each operator (`operators.py`) sets the ids of its output and joins
the ids of coupled channels; an operator without a rule freezes the channels of its inputs. A second mode tracks the sizes in
the model's code (`sizes.py`). This needs no data, next to no compute and no export: any model that runs can be analysed. A
model whose control flow depends on values cannot run on `meta`; it is traced with real tensors instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.module import register_module_forward_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from compressor.channels.labels import Call, Rule, Split, Trace
from compressor.channels.operators import RULES, unknown
from compressor.channels.sizes import Size, mark_attributes
from compressor.errors import UsageError
from compressor.network.copying import clone_network
from compressor.network.inputs import AnyInputs, Inputs
from compressor.network.meta_device import meta_copy, separate_attention
from compressor.network.outputs import tensors_in

VIEWS = {
    "aten.t.default", "aten.transpose.int", "aten.permute.default", "aten.view.default", "aten._unsafe_view.default",
    "aten.alias.default", "aten.detach.default", "aten.unsqueeze.default", "aten.squeeze.dim", "aten.expand.default",
    "aten.clone.default", "aten._to_copy.default",
}  # fmt: skip


COUNTED = {f"aten.{name}.default" for name in ("mm", "bmm", "addmm", "baddbmm", "convolution")}  # for any inputs
BATCH_NORMS = {"aten.native_batch_norm.default", "aten._native_batch_norm_legit_no_training.default"}
RELU6 = {"aten.hardtanh.default", "aten.hardtanh_.default"}


def _run(func: Any, name: str, args: Any, kwargs: Any) -> Any:
    """Run the operator. On `meta`, torch decomposes a few into dozens of Python steps, so their outputs are made directly."""
    if name in BATCH_NORMS and args[0].is_meta:
        width = args[0].shape[1]
        return args[0].new_empty(args[0].shape), args[0].new_empty(width), args[0].new_empty(width)
    if name in RELU6 and args[0].is_meta:
        return args[0] if "_." in name else args[0].new_empty(args[0].shape)
    return func(*args, **kwargs)


class RuleFailed(Exception):
    """One of our rules failed on a call. This is a bug of ours and must not be reported as an error of the model."""


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves its __init_subclass__ untyped
    """Runs each operator, then its rule."""

    def __init__(self, trace: Trace, rules: dict[str, Rule], unknown: Rule) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.trace, self.rules, self.unknown = trace, rules, unknown

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        trace, name = self.trace, str(func)
        out = _run(func, name, args, kwargs or {})
        call = Call(name, args, kwargs or {}, out)
        inputs = call.inputs
        if trace.first:
            trace.reads.update(trace.serial(tensor) for tensor in inputs)
        if any(map(trace.carries, inputs)) or name in COUNTED:
            rule = self.rules.get(name) or self.rules.get(name.rpartition(".")[0])
            try:
                (rule or self.unknown)(trace, call)
            except Exception as error:
                shapes = [tuple(tensor.shape) for tensor in inputs]
                raise RuleFailed(f"the rule of {name} failed on tensors of {shapes}: {error!r}") from error
            if name in VIEWS and isinstance(out, Tensor) and (origin := trace.tensor_name(inputs[0])):
                out._origin = origin  # type: ignore[attr-defined]
        return out


SHAPE = torch.Tensor.shape
COMPUTE = {"add", "sub", "rsub", "mul", "rmul", "div", "truediv", "rtruediv", "true_divide", "divide", "pow", "rpow"}


class _Sizes(TorchFunctionMode):
    """Tracks the sizes that the model's code reads from shapes, and those that it passes to operators."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        trace, name, kwargs = self.trace, getattr(func, "__name__", ""), kwargs or {}
        if name.strip("_") in COMPUTE:
            for size in args:
                if isinstance(size, Size):
                    float(size)  # it is used as a value: this records it
        trace.asked = _asked(name, args, kwargs)
        try:
            out = func(*args, **kwargs)
        finally:
            trace.asked = None
        of_shape = name in ("size", "numel") or (name == "__get__" and getattr(func, "__self__", None) is SHAPE)
        if not of_shape or not isinstance(args[0], Tensor) or not trace.carries(args[0]):
            return out
        shape = trace.shape(args[0], args[0].shape)
        if name == "numel":
            return shape.numel()
        return shape if isinstance(out, tuple) else shape[args[1] if len(args) > 1 else kwargs["dim"]]


def _asked(name: str, args: Any, kwargs: Any) -> list[int | None] | None:
    """The sizes passed to a call, as the rules need them: one for each dimension of a view, slice bounds, or piece sizes."""
    if name in ("view", "reshape", "expand", "split", "split_with_sizes"):
        sizes = [*args[1:], *kwargs.values()]
        return [size for part in sizes for size in (part if isinstance(part, tuple | list) else [part])]
    if name == "unflatten":
        dim, sizes = [*args[1:], *kwargs.values()][:2]
        dims = args[0].dim()
        return [*[None] * (dim % dims), *sizes, *[None] * (dims - 1 - dim % dims)]
    if name == "narrow":
        start, length = [*args[1:], *kwargs.values()][1:3]
        return [start, start + length]
    if name == "__getitem__":
        parts = args[1] if isinstance(args[1], tuple) else (args[1],)
        return [bound for part in parts if isinstance(part, slice) for bound in (part.start, part.stop)]
    return None


@contextmanager
def plain_attention() -> Iterator[None]:
    """Run `nn.MultiheadAttention` as separate operators. Its fused operator has a dozen weights, and functions that are called
    under a function mode are not traced inside."""
    names = vars(functional)
    watched = names["has_torch_function"]
    names["has_torch_function"] = lambda tensors: False
    try:
        with separate_attention():
            yield
    finally:
        names["has_torch_function"] = watched


def _forward(trace: Trace, model: nn.Module, inputs: Inputs) -> None:
    samples = inputs.random(2, like=model)
    modules = {id(module): name for name, module in model.named_modules()}

    def note(module: nn.Module, args: Any, out: Any) -> None:
        if trace.first and isinstance(out, Tensor) and id(module) in modules:
            trace.returned[modules[id(module)]] = trace.serial(out)

    hook = register_module_forward_hook(note)
    try:
        with torch.no_grad(), plain_attention(), _Watch(trace, RULES, unknown), _Sizes(trace):
            out = inputs.call(model, samples)
    finally:
        hook.remove()
    for tensor in tensors_in(out):
        trace.freeze_all(tensor, "it is an output of the model")
        trace.outputs.add(trace.serial(tensor))


def _names(model: nn.Module) -> dict[int, str]:
    tensors = [*model.named_parameters(remove_duplicate=True), *model.named_buffers(remove_duplicate=True)]
    return {id(tensor): name for name, tensor in tensors}


def _real_copy(model: nn.Module) -> nn.Module:
    """A copy that shares the weights' memory: the pass changes flags, statistics and tensor attributes of the copy only."""
    memo: dict[int, object] = {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in model.parameters()}
    memo.update({id(buffer): buffer.clone() for buffer in nn.Module.buffers(model)})
    return clone_network(model, memo)


def trace_model(model: nn.Module, inputs: AnyInputs, whole: frozenset[Split] = frozenset()) -> Trace:
    """Trace `model` on two samples of its `inputs`: once in eval mode, once in train mode for auxiliary heads.

    `whole`: the views of attention of which whole heads are pruned. The model is not changed. Raises UsageError when it does
    not run on such inputs, or returns no tensor.
    """
    inputs = Inputs.of(inputs)
    trace = _traced(model, inputs, whole)
    if not trace.outputs:  # then a pruned network could not be verified
        raise UsageError("The model's output contains no tensor: return tensors, or tuples, dicts or dataclasses of tensors.")
    return trace


def _traced(model: nn.Module, inputs: Inputs, whole: frozenset[Split]) -> Trace:
    try:
        return _trace(meta_copy(model), inputs, whole)
    except RuleFailed:
        raise
    except Exception:  # its control flow depends on values, or it creates tensors on a fixed device: use real tensors
        pass
    try:
        return _trace(_real_copy(model), inputs, whole)
    except RuleFailed:
        raise
    except Exception as error:
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(
            f"the model does not run on {inputs.described}: {cause}\n"
            "Give the shape it was trained with: --input 3x224x224 (channels x height x width) for each input, "
            "or --input NAME=1x3x224x224 for a named input."
        ) from error


def _trace(twin: nn.Module, inputs: Inputs, whole: frozenset[Split]) -> Trace:
    trace = Trace(_names(twin), values=mark_attributes(twin), whole=whole)
    _forward(trace, twin.eval(), inputs)
    trace.first = False
    twin.train()
    for module in nn.Module.modules(twin):
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.eval()  # its noise has the width of its input, but no layer produces it
    try:
        _forward(trace, twin, inputs)
    except RuleFailed:
        raise
    except Exception:  # some models need targets in train mode; the trace of eval mode is enough
        pass
    trace.settle()
    return trace
