"""One forward pass on `meta` tensors tells which channels live and die together.

Every index of every dimension of every parameter gets a number of its own. The forward runs under a dispatch mode, so that
whatever the model's code looks like we see a sequence of ATen operators. Each operator's rule (`rules.py`) says what numbers
its output carries and which numbers must go together; an operator without a rule freezes what it touches.
No data, no compute, no export: what runs can be analysed. A model whose control flow reads values cannot run on `meta`; it is
traced with real tensors instead.

Labels: a tensor carries, for each dimension, either None (batch, space, tokens) or an array of numbers, one per index.
Number 0 stands for an index that no parameter makes and that must therefore stay (padding, raw inputs).
"""

from __future__ import annotations

import copy
import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from compressor.errors import UsageError
from compressor.inputs import AnyInputs, Inputs
from compressor.meta import meta_copy
from compressor.outputs import tensors_in

Ids = npt.NDArray[np.int64]
Labels = list[Ids | None]
Rule = Callable[["Trace", "Call"], None]


@dataclass(frozen=True)
class Call:
    """One operator at work."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any

    @cached_property
    def inputs(self) -> list[Tensor]:
        return tensors_in((self.args, self.kwargs))

    def arg(self, position: int, name: str, default: Any = None) -> Any:
        """An argument that may have been passed by position or by name."""
        return self.args[position] if position < len(self.args) else self.kwargs.get(name, default)


@dataclass(frozen=True)
class Axis:
    """One factor of a cost: the ids along a dimension. `own` when they are the dimension of a parameter itself."""

    ids: Ids
    own: bool


@dataclass(frozen=True)
class Term:
    """Multiply-adds of one operator for one image: `constant` times the product of the axes' sizes."""

    layer: str
    constant: float
    axes: tuple[Axis, ...]


@dataclass(frozen=True)
class Step:
    """A layer or a norm at work: its parameters, and the serial numbers of the tensors it read and wrote."""

    tensors: tuple[str, ...]  # the weight first
    read: int
    wrote: int
    groups: int = 1  # of a convolution: its outputs go from all groups alike


@dataclass
class Trace:
    """What one or more forward passes told. Rules write into it."""

    names: dict[int, str]  # id() of each parameter and buffer -> its name
    labels_of: dict[str, list[Ids]] = field(default_factory=dict)
    blocks: list[tuple[int, int, str, int]] = field(default_factory=list)  # first id, size, tensor, dim
    count: int = 1
    edges: list[tuple[Ids, Ids]] = field(default_factory=list)
    freezes: list[tuple[Ids, str]] = field(default_factory=list)
    produced: list[Ids] = field(default_factory=list)
    consumed: list[Ids] = field(default_factory=list)
    sums: list[Ids] = field(default_factory=list)  # what was added to something: residual streams
    terms: list[Term] = field(default_factory=list)
    layers: list[Step] = field(default_factory=list)
    norms: list[Step] = field(default_factory=list)
    reads: Counter[int] = field(default_factory=Counter)  # serial number of a tensor -> how many operators read it
    serials: Iterator[int] = field(default_factory=itertools.count)
    outputs: set[int] = field(default_factory=set)  # serial numbers of what the model returns
    unknown: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    batch: int = 2
    first: bool = True  # costs and steps are taken from the first pass alone

    def tensor_name(self, tensor: Any) -> str | None:
        """The name of a parameter or buffer, or of the one that `tensor` is a view of."""
        if not isinstance(tensor, Tensor):
            return None
        return self.names.get(id(tensor)) or getattr(tensor, "_origin", None)

    def labels(self, tensor: Tensor) -> Labels:
        name = self.names.get(id(tensor))
        if name is not None:
            if name not in self.labels_of:
                self.labels_of[name] = [self._fresh(name, dim, size) for dim, size in enumerate(tensor.shape)]
            return list(self.labels_of[name])
        return list(getattr(tensor, "_channels", None) or [None] * tensor.dim())

    def _fresh(self, name: str, dim: int, size: int) -> Ids:
        ids: Ids = np.arange(self.count, self.count + size)
        self.blocks.append((self.count, size, name, dim))
        self.count += size
        if size == 1:  # broadcast or the only channel there is: nothing to choose
            self.freeze(ids, "it has one index only")
        return ids

    def set(self, tensor: Tensor, labels: Sequence[Ids | None]) -> None:
        sizes = tuple(tensor.shape)
        fits = (ids is None or len(ids) == size for ids, size in zip(labels, sizes, strict=True))
        assert all(fits), (labels, sizes)
        if id(tensor) in self.names:  # written in place, as batch norm does with its statistics
            return
        tensor._channels = list(labels)  # type: ignore[attr-defined]  # labels ride on the tensor itself

    def carries(self, tensor: Tensor) -> bool:
        return id(tensor) in self.names or any(ids is not None for ids in getattr(tensor, "_channels", ()) or ())

    def freeze(self, ids: Ids | None, reason: str) -> None:
        if ids is not None and ids.size:
            self.freezes.append((ids[ids > 0], reason))

    def freeze_all(self, tensor: Tensor, reason: str) -> None:
        for ids in self.labels(tensor):
            self.freeze(ids, reason)

    def join(self, a: Ids | None, b: Ids | None, reason: str) -> Ids | None:
        """`a[i]` and `b[i]` live and die together; what meets an untracked or constant index stays."""
        if a is None or b is None or a is b:
            self.freeze(a if b is None else (b if a is None else None), reason)
            return a if b is None else b
        assert a.shape == b.shape, (a.shape, b.shape)
        self.freeze(a[b == 0], reason)
        self.freeze(b[a == 0], reason)
        both = (a > 0) & (b > 0)
        self.edges.append((a[both], b[both]))
        return a

    def alike(self, rows: Ids) -> Ids:
        """Rows of [copies, n] ids must stay alike: index j of every row lives and dies with index j of the first."""
        first: Ids = rows[0]
        for row in rows[1:]:
            self.join(first, row, "its copies meet a constant")
        return first

    def cost(self, layer: str, constant: float, *axes: Axis | int) -> None:
        """Add `constant` times the product of `axes` multiply-adds (for the whole batch) to `layer`."""
        if self.first:
            for size in axes:
                constant *= size if isinstance(size, int) else 1
            tracked = tuple(axis for axis in axes if isinstance(axis, Axis))
            self.terms.append(Term(layer, constant / self.batch, tracked))

    def axis(self, tensor: Tensor, dim: int) -> Axis | int:
        ids = self.labels(tensor)[dim]
        return tensor.shape[dim] if ids is None else Axis(ids, self.tensor_name(tensor) is not None)

    def serial(self, tensor: Tensor) -> int:
        if not hasattr(tensor, "_serial"):
            tensor._serial = next(self.serials)  # type: ignore[attr-defined]
        return int(tensor._serial)  # type: ignore[attr-defined]

    def step(self, steps: list[Step], x: Tensor, out: Tensor, tensors: Sequence[Tensor | None], groups: int = 1) -> None:
        """Note that a layer or a norm with these parameters made `out` from `x`."""
        names = tuple(name for name in map(self.tensor_name, tensors) if name)
        if self.first and names:
            steps.append(Step(names, self.serial(x), self.serial(out), groups))


VIEWS = {
    "aten.t.default", "aten.transpose.int", "aten.permute.default", "aten.view.default", "aten._unsafe_view.default",
    "aten.alias.default", "aten.detach.default", "aten.unsqueeze.default", "aten.squeeze.dim", "aten.expand.default",
    "aten.clone.default", "aten._to_copy.default",
}  # fmt: skip


COUNTED = {f"aten.{name}.default" for name in ("mm", "bmm", "addmm", "baddbmm", "convolution")}  # they cost, whatever they read
BATCH_NORMS = {"aten.native_batch_norm.default", "aten._native_batch_norm_legit_no_training.default"}
RELU6 = {"aten.hardtanh.default", "aten.hardtanh_.default"}


def _run(func: Any, name: str, args: Any, kwargs: Any) -> Any:
    """What the operator returns. On `meta`, torch takes a few apart into dozens of steps in Python: their shapes are known."""
    if name in BATCH_NORMS and args[0].is_meta:
        width = args[0].shape[1]
        return args[0].new_empty(args[0].shape), args[0].new_empty(width), args[0].new_empty(width)
    if name in RELU6 and args[0].is_meta:
        return args[0] if "_." in name else args[0].new_empty(args[0].shape)
    return func(*args, **kwargs)


class RuleFailed(Exception):
    """A rule of ours could not follow a call: a fault of ours, which must not be taken for one of the model."""


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


@contextmanager
def _slow_attention() -> Iterator[None]:
    """Torch's fused attention fast path is one operator with a dozen weights: take the path made of plain operators."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _forward(trace: Trace, model: nn.Module, inputs: Inputs) -> None:
    from compressor.channels.rules import RULES, unknown

    samples = inputs.random(2, like=model)
    with torch.no_grad(), _slow_attention(), _Watch(trace, RULES, unknown):
        out = inputs.call(model, samples)
    for tensor in tensors_in(out):
        trace.freeze_all(tensor, "it is an output of the model")
        trace.outputs.add(trace.serial(tensor))


def _names(model: nn.Module) -> dict[int, str]:
    tensors = [*model.named_parameters(remove_duplicate=True), *model.named_buffers(remove_duplicate=True)]
    return {id(tensor): name for name, tensor in tensors}


def _real_copy(model: nn.Module) -> nn.Module:
    """A copy that shares the weights' memory: the pass moves its flags and statistics and marks its tensors, not ours."""
    memo: dict[int, object] = {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in model.parameters()}
    memo.update({id(buffer): buffer.clone() for buffer in model.buffers()})
    return copy.deepcopy(model, memo)


def trace_model(model: nn.Module, inputs: AnyInputs) -> Trace:
    """Trace `model` on two samples of its `inputs`: once in eval mode, once in train mode for heads that only train.

    The model stays as it is. Raises UsageError when it does not run on such inputs, or answers with no tensor.
    """
    inputs = Inputs.of(inputs)
    trace = _traced(model, inputs)
    if not trace.outputs:  # then nothing could be compared after a cut
        raise UsageError("The model's answer holds no tensor: have it return tensors, or tuples, dicts or dataclasses of them.")
    return trace


def _traced(model: nn.Module, inputs: Inputs) -> Trace:
    try:
        return _trace(meta_copy(model), inputs)
    except RuleFailed:
        raise
    except Exception:  # its control flow reads values, or it makes tensors on a fixed device: use real tensors
        pass
    try:
        return _trace(_real_copy(model), inputs)
    except RuleFailed:
        raise
    except Exception as error:
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(
            f"the model does not run on {inputs.described}: {cause}\n"
            "Give what it was trained on: --input 3x224x224 (channels x height x width) for each input, "
            "or --input NAME=1x3x224x224 for one that it takes by name."
        ) from error


def _trace(twin: nn.Module, inputs: Inputs) -> Trace:
    trace = Trace(_names(twin))
    _forward(trace, twin.eval(), inputs)
    trace.first = False
    twin.train()
    for module in twin.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.eval()  # its noise has the width of its input but comes from nowhere
    try:
        _forward(trace, twin, inputs)
    except RuleFailed:
        raise
    except Exception:  # some models want targets when they train; what eval showed stands
        pass
    return trace
