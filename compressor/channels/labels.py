"""What a trace writes down: the labels of tensors, who goes with whom, what stays and why, and what everything costs.

Labels: a tensor carries, for each dimension, either None (batch, space, tokens) or an array of numbers, one per index.
Number 0 stands for an index that no parameter makes and that must therefore stay (padding, raw inputs).
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
Split = int  # the number of a view that parts channels, in the order of the passes
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
    biases: list[Step] = field(default_factory=list)  # parameters that are added outside the operator of their layer
    returned: dict[str, int] = field(default_factory=dict)  # module -> serial number of the tensor it returned
    reads: Counter[int] = field(default_factory=Counter)  # serial number of a tensor -> how many operators read it
    serials: Iterator[int] = field(default_factory=itertools.count)
    outputs: set[int] = field(default_factory=set)  # serial numbers of what the model returns
    unknown: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    batch: int = 2
    first: bool = True  # costs and steps are taken from the first pass alone
    asked: list[int | None] | None = None  # the sizes that the call under way was given by the model's code, if any
    widths: dict[int, Width] = field(default_factory=dict)  # id() of labels -> what the model's code sees of them
    ties: list[tuple[Ids, Ids]] = field(default_factory=list)  # as many of one must stay as of the other, or in proportion
    demands: list[tuple[Ids, Size]] = field(default_factory=list)  # as many channels must stay as the size will say
    constant: set[frozenset[Any]] = field(default_factory=set)  # origins of sizes that no cut changes: the width of a head
    values: dict[Attribute, int] = field(default_factory=dict)  # of all attributes today
    pinned: set[Attribute] = field(default_factory=set)  # attributes that also count something else, and so must stay
    splits: list[Ids] = field(default_factory=list)  # of each view that parts channels, as for the heads of attention
    whole: frozenset[Split] = frozenset()  # those of which whole heads go, in place of the same channels of every head
    attended: list[Ids] = field(default_factory=list)  # what is in products of two computed tensors

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

    def expand(self, tensor: Tensor, sizes: dict[int, int | None]) -> None:
        """Note that `tensor` repeats one value along dimensions (counted from the last), as often as the code asked."""
        tensor._expanded = sizes  # type: ignore[attr-defined]  # as above

    def expanded(self, tensor: Tensor, dim: int) -> int | None:
        """How often the code asked for the one value along this dimension (-1: as often as fits); None: it has several."""
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

    # What the model's code says of sizes -------------------------------------------------------------------------------

    def shape(self, tensor: Tensor, sizes: Sequence[int]) -> Shape:
        """`sizes` of `tensor` as its code is to see them: those of channels know whose width they are."""
        return Shape(
            size if ids is None else Size.of(size, self.widths.setdefault(id(ids), Width(ids)))
            for size, ids in zip(sizes, self.labels(tensor), strict=True)
        )

    def asked_for(self, value: int) -> int:
        """The size with this value that the call under way was given."""
        sizes = [size for size in self.asked or () if size == value]
        return next((size for size in sizes if isinstance(size, Size)), value)

    def demand(self, ids: Ids, size: int | None, parts: Sequence[Ids] = ()) -> None:
        """The code counts on `size` channels where `ids` are: so it must be after a cut. No part may come to nothing."""
        if size is None or size == -1:  # whatever is there
            return
        if not isinstance(size, Size) or not size.symbols:
            self.freeze(ids, f"the model's code has the number {size} for its width")
        elif not size.widths:
            self.demands.append((ids, size))
            for part in parts:
                self.freeze(part[:1], "one channel of each part must stay")
        elif width := size.proportional:
            self.pinned.update(size.attributes)
            self.ties.append((ids, width.ids))
        else:
            self._freeze_widths(size)
            self.freeze(ids, "the model's code computes its width from several others")

    def pin(self, size: int | None, heads: Ids | None = None) -> None:
        """The code asks for `size` where no channels are: it must stay. `heads`: whole ones go beside it, if any do."""
        if not isinstance(size, Size) or size.origin in self.constant:
            return
        width = size.proportional
        if heads is not None and width and len(width.ids) % size == 0 and len(heads) % (len(width.ids) // size) == 0:
            self.constant.add(size.origin)
            parts = width.ids.reshape(-1, size)  # [heads, channels of each]
            self.join(heads[: len(parts)], self.alike(parts.T), "its width is that of padded channels")
        else:
            self.pinned.update(size.attributes)
            self._freeze_widths(size)

    def _freeze_widths(self, size: Size) -> None:
        for width in size.widths:
            self.freeze(width.ids, "the model's code makes another size of its width")

    def settle(self) -> None:
        """Once all passes are over: what the code's sizes say of channels."""
        for width in self.widths.values():
            if any(size.origin not in self.constant for size in width.numbers):
                self.freeze(width.ids, "the model's code computes with its width")
            for size in width.equal:
                self.demand(width.ids, size)
        first: dict[frozenset[Any], Ids] = {}
        for ids, size in self.demands:
            self.ties.append((first.setdefault(size.origin, ids), ids))
            if self.pinned.issuperset(size.attributes):
                names = ", ".join(map(str, size.attributes))
                self.freeze(ids, f"{names} counts something else, too")
        component = self.components()
        for a, b in self.ties:
            common = lcm(len(a), len(b))
            one, other = (np.sort(component[ids]).repeat(common // len(ids)) for ids in (a, b))
            if not np.array_equal(one, other):  # else the proportion is kept whatever goes
                rows = (-1, gcd(len(a), len(b)))
                self.join(self.alike(a.reshape(rows)), self.alike(b.reshape(rows)), "its width is that of padded channels")

    def components(self) -> Ids:
        """The component of each id: what lives and dies together has the same."""
        a = np.concatenate([edge[0] for edge in self.edges] or [np.zeros(0, np.int64)])
        b = np.concatenate([edge[1] for edge in self.edges] or [np.zeros(0, np.int64)])
        graph = coo_matrix((np.ones(len(a), np.int8), (a, b)), shape=(self.count, self.count))
        component: Ids = connected_components(graph, directed=False)[1].astype(np.int64)
        return component

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
