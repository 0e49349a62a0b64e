"""From labels to what can be pruned: atoms, groups, and frozen channels with the reason.

An *atom* is a set of parameter indices that can only be pruned together, such as one channel with everything coupled to it. A
*group* is a set of atoms in the same dimensions of the same tensors, for example all channels of a residual stream. `Channels`
is the analysis of one model.

A residual stream is pruned in one of two ways:

- `coupled`: all layers of a stream lose the same channels, and the stream becomes narrower.
- `scatter`: each layer has channels of its own. The stream keeps its width, and each narrow output is scattered into a zero
  tensor at its original indices before it is added.

Attention heads are pruned in one of two ways:

- `width`: the head dimension is reduced, by the same indices in all heads; where that is impossible, as with `whole`.
- `whole`: whole heads are pruned, and the head dimension stays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal, TypeVar, get_args

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix
from torch import nn

from compressor.channels.labels import Split, Step, Trace
from compressor.channels.sizes import Attribute, Ids, solve
from compressor.channels.trace import trace_model
from compressor.network.inputs import AnyInputs

Residual = Literal["coupled", "scatter"]
Heads = Literal["width", "whole"]
Mask = npt.NDArray[np.bool_]
Shares = npt.NDArray[np.float64]
T = TypeVar("T", bound=np.generic)
Role = Literal["out", "in", "scale"]
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True)
class Member:
    """The part of a group in one dimension of one tensor: atom i owns the indices `indices[i]`."""

    tensor: str
    dim: int
    indices: Ids  # [atoms, copies]
    role: Role  # the layer's output, a layer's input, or a per-channel parameter or statistic


@dataclass(frozen=True)
class Group:
    """Coupled channels: atom i is removed from all members, or kept in all."""

    name: str
    size: int  # atoms
    members: tuple[Member, ...]
    scatter: str | None = None  # the module whose narrow output is scattered to full width

    @property
    def layers(self) -> list[str]:
        """The layers that produce these channels."""
        return [member.tensor.rpartition(".")[0] for member in self.members if member.role == "out"]


@dataclass(frozen=True)
class Frozen:
    """Channels that cannot be pruned, and the reason."""

    name: str
    reason: str


@dataclass(frozen=True)
class Side:
    """The dimension of a layer's weight for its input or its output channels."""

    dim: int
    components: list[int]  # one for each channel: coupled channels have the same


@dataclass(frozen=True)
class Layer:
    """`read` is None if the input channels are not tracked, `made` if the layer is depthwise."""

    name: str
    weight: str
    read: Side | None
    made: Side | None


@dataclass(frozen=True)
class Place:
    """One dimension of one tensor that has channels: `atoms[i]` is the atom that owns index i, or -1 if i is frozen."""

    tensor: str
    dim: int
    role: Role
    atoms: Ids  # [size of the dimension]


class Cost:
    """Costs of any choice of kept atoms, by table look-up: a cost is a sum of products of axis sizes."""

    def __init__(self, counts: csr_matrix, sizes: Ids, terms: Sequence[tuple[str, float, tuple[int, ...]]]) -> None:
        self._counts = counts  # [axes, atoms]: number of indices of each atom on each axis
        self._sizes = sizes  # [axes], unpruned
        self._layers = [layer for layer, _, _ in terms]
        width = max((len(axes) for _, _, axes in terms), default=0)
        self._constants = np.array([constant for _, constant, _ in terms])  # [terms]
        padding = len(sizes)  # an axis of size 1
        self._axes = np.array([[*axes, *[padding] * (width - len(axes))] for _, _, axes in terms], np.int64)  # [terms, width]

    def each(self, kept: Mask | Shares) -> npt.NDArray[np.float64]:
        """Cost of each term when the atoms `kept` [atoms] are kept; fractions of atoms give fractional channel counts."""
        if not len(self._constants):
            return np.zeros(0)
        sizes = np.append(self._sizes - self._counts @ (1.0 - kept), 1.0)
        product: npt.NDArray[np.float64] = self._constants * sizes[self._axes].prod(axis=1)
        return product

    def total(self, kept: Mask | Shares) -> float:
        return float(self.each(kept).sum())

    def by_layer(self, kept: Mask) -> dict[str, float]:
        table: dict[str, float] = {}
        for layer, cost in zip(self._layers, self.each(kept), strict=True):
            table[layer] = table.get(layer, 0.0) + float(cost)
        return table


class Channels:
    """Which channels of a model can be pruned, how they are coupled, and what any choice of them costs.

    `groups` are in the order of the forward pass. A mask is a bool array over all atoms, True = kept: one array [group.size]
    for each group, concatenated.
    """

    def __init__(
        self,
        trace: Trace,
        shapes: dict[str, tuple[int, ...]],
        itemsizes: dict[str, int],
        params: set[str],
        residual: Residual = "coupled",
        held: dict[str, str] | None = None,
    ) -> None:
        self._trace, self._shapes, self._itemsizes, self._params = trace, shapes, itemsizes, params
        self.residual = residual
        self._held = held or {}
        self._starts = np.array([start for start, *_ in trace.blocks], np.int64)
        self._component, self._reason = self._components()
        self._atom = np.full(trace.count, -1, np.int64)  # id -> atom
        self.groups: list[Group] = []
        self._build()

    # Analysis ---------------------------------------------------------------------------------------------------------

    def _components(self) -> tuple[Ids, dict[int, str]]:
        """Component of each id, and the reason of each frozen component."""
        trace = self._trace
        component = trace.components()
        reason: dict[int, str] = {int(component[0]): "it is a constant"}
        for ids, why in trace.freezes:
            for c in np.unique(component[ids]):
                reason.setdefault(int(c), why)
        made = np.zeros(component.max() + 1, bool)
        for ids in trace.produced:
            made[component[ids[ids > 0]]] = True
        for c in np.flatnonzero(~made):
            reason.setdefault(int(c), "no layer produces it")
        return component, reason

    def _build(self) -> None:
        trace, component = self._trace, self._component
        frozen = np.zeros(component.max() + 1, bool)
        frozen[list(self._reason)] = True
        ids = np.flatnonzero(~frozen[component])
        self._roles = np.full(trace.count, 2, np.int8)  # 0 out, 1 in, 2 scale
        for made in trace.produced:
            self._roles[made] = 0
        for read in trace.consumed:
            self._roles[read] = 1
        self._roles[0] = 2
        segments = self._segments() if self.residual == "scatter" else []
        wide = np.zeros(component.max() + 1, bool)  # streams that keep their width under `scatter`
        found: list[tuple[int, list[Ids], str | None]] = []  # first id, ids of each atom, module to scatter after
        for rows, at in segments:
            wide[component[rows]] = True
            found.append((int(rows[0, 0]), list(rows), at))
        ids = ids[~wide[component[ids]]]
        found.extend(self._coupled(ids))
        found.sort(key=lambda entry: entry[0])
        names: set[str] = set()
        count = 0
        for _, atoms, module in found:
            group = self._group(atoms, module, names)
            if group.name in self._held:
                continue
            self.groups.append(group)
            for atom in atoms:
                self._atom[atom] = count
                count += 1
        self.atoms = count

    def _coupled(self, ids: Ids) -> list[tuple[int, list[Ids], None]]:
        """Atoms of fully coupled channels, grouped by the dimensions they are in."""
        if not len(ids):
            return []
        component = self._component[ids]
        block = np.searchsorted(self._starts, ids, side="right") - 1
        order = np.lexsort((ids, component))
        ids, component, block = ids[order], component[order], block[order]
        bounds = np.flatnonzero(np.diff(component, prepend=component[0] - 1))
        bounds = np.append(bounds, len(ids))
        by_place: dict[bytes, list[Ids]] = {}
        for start, stop in pairwise(bounds):
            by_place.setdefault(block[start:stop].tobytes(), []).append(ids[start:stop])
        return [
            (min(int(atom[0]) for atom in atoms), sorted(atoms, key=lambda a: int(a[0])), None) for atoms in by_place.values()
        ]

    def _segments(self) -> list[tuple[Ids, str]]:
        """Layers whose output is added to a residual stream: ids of their tensors [atoms, indices], and where to scatter."""
        trace = self._trace
        runs: dict[str, list[Step]] = {}
        for step in trace.layers:
            runs.setdefault(step.tensors[0], []).append(step)
        stream = np.zeros(self._component.max() + 1, bool)
        for added in trace.sums:
            stream[self._component[added[added > 0]]] = True
        uses = Counter(norm.tensors[0] for norm in trace.norms)
        segments = []
        for name, steps in runs.items():
            ids = self._made(name)
            if ids is None or len(steps) > 1 or not stream[self._component[ids]].any():
                continue
            (step,) = steps
            tensors, module, wrote = list(step.tensors), name.rpartition(".")[0], step.wrote
            for bias in (bias for bias in trace.biases if bias.read == wrote and bias.tensors[0] == f"{module}.bias"):
                tensors += bias.tensors
                wrote = bias.wrote
            norms = [norm for norm in trace.norms if norm.read == wrote]
            if len(norms) == 1 and trace.reads[wrote] == 1 and uses[norms[0].tensors[0]] == 1:
                tensors += norms[0].tensors
                module, wrote = norms[0].tensors[0].rpartition(".")[0], norms[0].wrote
            if wrote in trace.outputs or trace.reads[wrote] == 0 or trace.returned.get(module) != wrote:
                continue
            blocks = [ids, *(trace.labels_of[tensor][0] for tensor in tensors[1:])]
            if all(len(block) == len(ids) for block in blocks):
                segments.append((np.concatenate([block.reshape(step.groups, -1) for block in blocks]).T, module))
        return segments

    def _made(self, weight: str) -> Ids | None:
        """Ids of a layer's output channels: those of the dimension of its weight with the role `out`."""
        blocks = self._trace.labels_of[weight]
        return next((ids for ids in blocks[:2] if len(ids) > 1 and (self._roles[ids] == 0).all()), None)

    def _group(self, atoms: list[Ids], module: str | None, names: set[str]) -> Group:
        table = np.stack(atoms)  # [atoms, indices]
        block = np.searchsorted(self._starts, table[0], side="right") - 1
        members = []
        for b in dict.fromkeys(block.tolist()):
            start, _, tensor, dim = self._trace.blocks[b]
            ids = table[:, block == b]
            members.append(Member(tensor, dim, ids - start, ROLES[self._roles[ids[0, 0]]]))
        layers = [m.tensor.rpartition(".")[0] or m.tensor for m in members if m.role == "out"]
        name = (layers or [members[0].tensor])[0]
        count = 1
        while (unique := name if count == 1 else f"{name} ({count})") in names:
            count += 1
        names.add(unique)
        return Group(unique, len(atoms), tuple(members), module)

    @cached_property
    def places(self) -> list[Place]:
        """Every dimension of every parameter and buffer that can be pruned."""
        found = []
        for start, size, tensor, dim in self._trace.blocks:
            atoms = self._atom[start : start + size]
            if (atoms >= 0).any():
                role = self._roles[start + int(np.argmax(atoms >= 0))]
                found.append(Place(tensor, dim, ROLES[role], atoms))
        return found

    def counts(self, mask: Mask) -> dict[Attribute, int]:
        """The module attributes that must change, and their new values, when the atoms of `mask` are kept."""
        stays = np.append(mask | self._scattered, True)[self._atom]  # [ids]; ids without an atom (-1) are kept
        wanted = [(size, int(stays[ids].sum())) for ids, size in self._trace.demands]
        return solve(wanted, self._trace.values, self._trace.pinned)

    def splits_of_heads(self, stuck: bool) -> frozenset[Split]:
        """The views that split channels into attention heads; with `stuck`, those whose head dimension cannot be reduced."""
        component = self._component
        attended = {component[ids].tobytes() for ids in self._trace.attended}  # the channels of one head, in their order
        return frozenset(
            split
            for split, ids in enumerate(self._trace.splits)
            if component[ids].tobytes() in attended and not (stuck and set(component[ids].tolist()) - self._reason.keys())
        )

    @cached_property
    def _scattered(self) -> Mask:
        """The atoms whose activations keep their width [atoms]."""
        return np.array([group.scatter is not None for group in self.groups for _ in range(group.size)], bool)

    # Questions --------------------------------------------------------------------------------------------------------

    def with_residual(self, residual: Residual) -> Channels:
        return Channels(self._trace, self._shapes, self._itemsizes, self._params, residual, self._held)

    def without(self, held: dict[str, str]) -> Channels:
        """The same analysis with some groups excluded from pruning: group name -> reason."""
        return Channels(self._trace, self._shapes, self._itemsizes, self._params, self.residual, {**self._held, **held})

    @property
    def held(self) -> dict[str, str]:
        return dict(self._held)

    def all_kept(self) -> Mask:
        return np.ones(self.atoms, bool)

    def split(self, values: npt.NDArray[T]) -> dict[str, npt.NDArray[T]]:
        """Split one value per atom, such as a mask, by group."""
        ends = np.cumsum([group.size for group in self.groups])
        return {group.name: values[end - group.size : end] for group, end in zip(self.groups, ends, strict=True)}

    def join(self, masks: dict[str, Mask]) -> Mask:
        """Concatenate masks by group; groups that are not named are not pruned."""
        parts = [masks.get(group.name, np.ones(group.size, bool)) for group in self.groups]
        return np.concatenate(parts) if parts else np.zeros(0, bool)

    def layers(self) -> list[Layer]:
        """All layers with weights, each once, in the order of the forward pass."""
        found = {}
        for step in self._trace.layers:
            weight = step.tensors[0]
            sides: dict[Role, Side] = {}
            for dim, ids in enumerate(self._trace.labels_of[weight]):
                roles = {ROLES[role] for role in self._roles[ids]}
                if len(roles) == 1:
                    sides.setdefault(roles.pop(), Side(dim, self._component[ids].tolist()))
            found[weight] = Layer(weight.rpartition(".")[0], weight, sides.get("in"), sides.get("out"))
        return list(found.values())

    def frozen(self) -> list[Frozen]:
        """Layers with output channels that cannot be pruned, and the reason."""
        rows = []
        for step in self._trace.layers:
            ids = self._made(step.tensors[0])
            layer = step.tensors[0].rpartition(".")[0]
            if ids is None or (self._atom[ids] >= 0).all():
                continue
            stuck = ids[self._atom[ids] < 0]
            reasons = {self._reason.get(int(c)) for c in np.unique(self._component[stuck])} - {None}
            reason = "; ".join(sorted(str(r) for r in reasons))
            share = "" if len(stuck) == len(ids) else f"{len(stuck)} of {len(ids)} channels: "
            rows.append(Frozen(layer, share + (reason or "its group is excluded from pruning")))
        rows = list({row.name: row for row in rows}.values())
        return rows + [Frozen(name, reason) for name, reason in self._held.items()]

    def unknown_operators(self) -> dict[str, int]:
        """Operators without a rule, and how often each ran on tracked tensors."""
        return dict(self._trace.unknown)

    # Cost -------------------------------------------------------------------------------------------------------------

    def _cost(self, terms: Sequence[tuple[str, float, Sequence[tuple[Ids, bool]]]]) -> Cost:
        """`terms`: layer, constant, and (ids, own) of each axis. Activations of a stream keep their width under `scatter`."""
        axes: dict[tuple[int, bool], int] = {}
        arrays: list[tuple[Ids, bool]] = []
        rows = []
        for layer, constant, factors in terms:
            numbers = []
            for ids, own in factors:
                if (id(ids), own) not in axes:
                    axes[id(ids), own] = len(arrays)
                    arrays.append((ids, own))
                numbers.append(axes[id(ids), own])
            rows.append((layer, constant, tuple(numbers)))
        scattered = np.append(self._scattered, False)
        row, column = [], []
        for number, (ids, own) in enumerate(arrays):
            atoms = self._atom[ids]
            atoms = atoms[(atoms >= 0) & (True if own else ~scattered[atoms])]
            column.append(atoms)
            row.append(np.full(len(atoms), number))
        places = np.concatenate(row) if row else np.zeros(0, np.int64)
        owners = np.concatenate(column) if column else np.zeros(0, np.int64)
        counts = csr_matrix((np.ones(len(places)), (places, owners)), shape=(len(arrays), self.atoms))
        return Cost(counts, np.array([len(ids) for ids, _ in arrays], np.int64), rows)

    @cached_property
    def macs(self) -> Cost:
        """MACs of one image, by layer."""
        return self._cost(
            [(term.layer, term.constant, [(axis.ids, axis.own) for axis in term.axes]) for term in self._trace.terms]
        )

    def _tensor_cost(self, unit: dict[str, float]) -> Cost:
        terms = []
        for name, shape in self._shapes.items():
            if name not in unit:
                continue
            blocks = self._trace.labels_of.get(name)
            factors = [(ids, True) for ids in blocks] if blocks else []
            constant = unit[name] * (1 if blocks else float(np.prod(shape)))
            terms.append((name.rpartition(".")[0], constant, factors))
        return self._cost(terms)

    @cached_property
    def params(self) -> Cost:
        """Parameters, by layer; a shared parameter counts once."""
        return self._tensor_cost(dict.fromkeys(self._params, 1.0))

    @cached_property
    def bytes(self) -> Cost:
        """Bytes of parameters and buffers, by layer."""
        return self._tensor_cost({name: float(size) for name, size in self._itemsizes.items()})


def analyse(model: nn.Module, inputs: AnyInputs, residual: Residual = "coupled", heads: Heads = "width") -> Channels:
    """Find the channels of `model` that can be pruned. `inputs`: [channels, height, width] of one image, several such shapes,
    or name -> shape.

    Raises UsageError when the model does not run on them.
    """
    parameters = dict(model.named_parameters())
    tensors = {**parameters, **dict(model.named_buffers())}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    itemsizes = {name: tensor.element_size() for name, tensor in tensors.items()}

    def analysed(whole: frozenset[Split] = frozenset()) -> Channels:
        return Channels(trace_model(model, inputs, whole), shapes, itemsizes, set(parameters), residual)

    channels = analysed()
    if whole := channels.splits_of_heads(stuck=heads == "width"):
        channels = analysed(whole)
    return channels
