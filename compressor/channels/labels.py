"""The record of a trace: labels of tensors, which channels are coupled, which are frozen and why, and all costs.

A tensor has a label for each dimension: None (batch, space, tokens), or an array of ids, one for each index. The id 0 marks an
index that no parameter produces and that is therefore frozen (padding, the model's inputs).
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import gcd, lcm
from typing import Any

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from compressor.channels.sizes import Attribute, Ids, Shape, Size, Width
from compressor.network.outputs import tensors_in

Labels = list[Ids | None]
Split = int  # the number of a view that splits channels, in the order in which they run
Rule = Callable[["Trace", "Call"], None]


@dataclass(frozen=True)
class Call:
    """One call of an operator."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any

    @cached_property
    def inputs(self) -> list[Tensor]:
        return tensors_in((self.args, self.kwargs))

    def arg(self, position: int, name: str, default: Any = None) -> Any:
        """An argument that was passed by position or by name."""
        return self.args[position] if position < len(self.args) else self.kwargs.get(name, default)


@dataclass(frozen=True)
class Axis:
    """One factor of a cost: the ids along a dimension. `own` if it is a dimension of a parameter."""

    ids: Ids
    own: bool


@dataclass(frozen=True)
class Term:
    """MACs of one operator for one image: `constant` times the product of the axes' sizes."""

    layer: str
    constant: float
    axes: tuple[Axis, ...]


@dataclass(frozen=True)
class Step:
    """One call of a layer or a norm: its parameters, and the serial numbers of its input and output."""

    tensors: tuple[str, ...]  # the weight first
    read: int
    wrote: int
    groups: int = 1  # of a convolution: its outputs are pruned alike in all groups


@dataclass
class Trace:
    """The record of one or more forward passes. Rules write into it."""

    names: dict[int, str]  # id() of each parameter and buffer -> its name
    labels_of: dict[str, list[Ids]] = field(default_factory=dict)
    blocks: list[tuple[int, int, str, int]] = field(default_factory=list)  # first id, size, tensor, dim
    count: int = 1
    edges: list[tuple[Ids, Ids]] = field(default_factory=list)
    freezes: list[tuple[Ids, str]] = field(default_factory=list)
    produced: list[Ids] = field(default_factory=list)
    consumed: list[Ids] = field(default_factory=list)
    sums: list[Ids] = field(default_factory=list)  # operands of additions: residual streams
    terms: list[Term] = field(default_factory=list)
    layers: list[Step] = field(default_factory=list)
    norms: list[Step] = field(default_factory=list)
    biases: list[Step] = field(default_factory=list)  # parameters that are added by an operator of their own
    returned: dict[str, int] = field(default_factory=dict)  # module -> serial number of the tensor it returned
    reads: Counter[int] = field(default_factory=Counter)  # serial number of a tensor -> how many operators have it as input
    serials: Iterator[int] = field(default_factory=itertools.count)
    outputs: set[int] = field(default_factory=set)  # serial numbers of the model's outputs
    unknown: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    batch: int = 2
    first: bool = True  # costs and steps are recorded in the first pass only
    asked: list[int | None] | None = None  # the sizes that the model's code passed to the current call, if any
    widths: dict[int, Width] = field(default_factory=dict)  # id() of labels -> the width as the model's code sees it
    ties: list[tuple[Ids, Ids]] = field(default_factory=list)  # the numbers of kept channels must stay equal or in proportion
    demands: list[tuple[Ids, Size]] = field(default_factory=list)  # the size must equal the number of kept channels
    constant: set[frozenset[Any]] = field(default_factory=set)  # origins of sizes that pruning does not change: head dimension
    values: dict[Attribute, int] = field(default_factory=dict)  # current values of all attributes
    pinned: set[Attribute] = field(default_factory=set)  # attributes that also count something else and must not change
    splits: list[Ids] = field(default_factory=list)  # of each view that splits channels, as into attention heads
    whole: frozenset[Split] = frozenset()  # the views where whole heads are pruned, not the same channels of every head
    attended: list[Ids] = field(default_factory=list)  # labels in products of two activations

    def tensor_name(self, tensor: Any) -> str | None:
        """The name of the parameter or buffer that `tensor` is, or is a view of."""
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
        if size == 1:  # broadcast, or the only channel: nothing to prune
            self.freeze(ids, "its size is 1")
        return ids

    def set(self, tensor: Tensor, labels: Sequence[Ids | None]) -> None:
        sizes = tuple(tensor.shape)
        fits = (ids is None or len(ids) == size for ids, size in zip(labels, sizes, strict=True))
        assert all(fits), (labels, sizes)
        if id(tensor) in self.names:  # written in place, as batch norm does with its statistics
            return
        tensor._channels = list(labels)  # type: ignore[attr-defined]  # labels are an attribute of the tensor itself

    def expand(self, tensor: Tensor, sizes: dict[int, int | None]) -> None:
        """Record that `tensor` repeats one value along dimensions (negative), with the sizes that the code passed."""
        tensor._expanded = sizes  # type: ignore[attr-defined]  # as above

    def expanded(self, tensor: Tensor, dim: int) -> int | None:
        """The size that the code passed to repeat one value along this dimension (-1: inferred); None if it is not repeated."""
        sizes: dict[int, int] = getattr(tensor, "_expanded", {})
        return sizes.get(dim)

    def carries(self, tensor: Tensor) -> bool:
        return id(tensor) in self.names or any(ids is not None for ids in getattr(tensor, "_channels", ()) or ())

    def freeze(self, ids: Ids | None, reason: str) -> None:
        if ids is not None and ids.size:
            self.freezes.append((ids[ids > 0], reason))

    def freeze_all(self, tensor: Tensor, reason: str) -> None:
        for ids in self.labels(tensor):
            self.freeze(ids, reason)

    def join(self, a: Ids | None, b: Ids | None, reason: str) -> Ids | None:
        """Couple `a[i]` with `b[i]`; an id that is paired with an untracked or constant index is frozen."""
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
        """Couple the rows of [copies, n] ids: index j of every row with index j of the first."""
        first: Ids = rows[0]
        for row in rows[1:]:
            self.join(first, row, "it is coupled with a constant")
        return first

    # Sizes in the model's code -----------------------------------------------------------------------------------------

    def shape(self, tensor: Tensor, sizes: Sequence[int]) -> Shape:
        """`sizes` of `tensor` for the model's code: those of channel dimensions are `Size`s of their width."""
        return Shape(
            size if ids is None else Size.of(size, self.widths.setdefault(id(ids), Width(ids)))
            for size, ids in zip(sizes, self.labels(tensor), strict=True)
        )

    def asked_for(self, value: int) -> int:
        """The size with this value that the code passed to the current call."""
        sizes = [size for size in self.asked or () if size == value]
        return next((size for size in sizes if isinstance(size, Size)), value)

    def demand(self, ids: Ids, size: int | None, parts: Sequence[Ids] = ()) -> None:
        """The code expects `size` channels where `ids` are: so it must be after pruning. No part may become empty."""
        if size is None or size == -1:  # inferred
            return
        if not isinstance(size, Size) or not size.symbols:
            self.freeze(ids, f"the model's code hard-codes its width, {size}")
        elif not size.widths:
            self.demands.append((ids, size))
            for part in parts:
                self.freeze(part[:1], "at least one channel of each part must remain")
        elif width := size.proportional:
            self.pinned.update(size.attributes)
            self.ties.append((ids, width.ids))
        else:
            self._freeze_widths(size)
            self.freeze(ids, "the model's code computes its width from several other widths")

    def pin(self, size: int | None, heads: Ids | None = None) -> None:
        """The code passes `size` for a dimension without channels: it must not change. `heads` are pruned whole, if at all."""
        if not isinstance(size, Size) or size.origin in self.constant:
            return
        width = size.proportional
        if heads is not None and width and len(width.ids) % size == 0 and len(heads) % (len(width.ids) // size) == 0:
            self.constant.add(size.origin)
            parts = width.ids.reshape(-1, size)  # [heads, channels of each]
            self.join(heads[: len(parts)], self.alike(parts.T), "its width must equal that of padded channels")
        else:
            self.pinned.update(size.attributes)
            self._freeze_widths(size)

    def _freeze_widths(self, size: Size) -> None:
        for width in size.widths:
            self.freeze(width.ids, "the model's code computes another size from its width")

    def settle(self) -> None:
        """After all passes: couple and freeze channels by the sizes in the model's code."""
        for width in self.widths.values():
            if any(size.origin not in self.constant for size in width.numbers):
                self.freeze(width.ids, "the model's code uses its width in arithmetic")
            for size in width.equal:
                self.demand(width.ids, size)
        first: dict[frozenset[Any], Ids] = {}
        for ids, size in self.demands:
            self.ties.append((first.setdefault(size.origin, ids), ids))
            if self.pinned.issuperset(size.attributes):
                names = ", ".join(map(str, size.attributes))
                self.freeze(ids, f"{names} is also used for something other than channels")
        component = self.components()
        for a, b in self.ties:
            common = lcm(len(a), len(b))
            one, other = (np.sort(component[ids]).repeat(common // len(ids)) for ids in (a, b))
            if not np.array_equal(one, other):  # else the proportion holds whatever is pruned
                rows = (-1, gcd(len(a), len(b)))
                self.join(
                    self.alike(a.reshape(rows)), self.alike(b.reshape(rows)), "its width must equal that of padded channels"
                )

    def components(self) -> Ids:
        """The component of each id: coupled ids have the same."""
        a = np.concatenate([edge[0] for edge in self.edges] or [np.zeros(0, np.int64)])
        b = np.concatenate([edge[1] for edge in self.edges] or [np.zeros(0, np.int64)])
        graph = coo_matrix((np.ones(len(a), np.int8), (a, b)), shape=(self.count, self.count))
        component: Ids = connected_components(graph, directed=False)[1].astype(np.int64)
        return component

    def cost(self, layer: str, constant: float, *axes: Axis | int) -> None:
        """Add `constant` times the product of `axes` MACs (for the whole batch) to `layer`."""
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
        """Record that a layer or a norm with these parameters computed `out` from `x`."""
        names = tuple(name for name in map(self.tensor_name, tensors) if name)
        if self.first and names:
            steps.append(Step(names, self.serial(x), self.serial(out), groups))
