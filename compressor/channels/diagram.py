"""The coupling as a graph: channel groups are nodes, and each layer is an edge from its input to its output channels.

    layer1.0.conv3 ──layer1.1.conv1──> layer1.1.conv1 ──layer1.1.conv2──> layer1.1.conv2 ──layer1.1.conv3──> layer1.0.conv3

What cannot be pruned is drawn too: the network's inputs, its outputs, and frozen channels. Groups whose names differ only in
numbers, such as those of identical blocks of a stage, are merged into one node, so that deep networks stay readable.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Literal

import numpy as np

from compressor.channels.groups import Channels, Group, Layer

Kind = Literal["group", "stays", "joined", "outside"]
Key = Hashable  # of a node, while the graph is built
Letters = tuple[str, ...]
Row = tuple[tuple[str, ...], ...]  # the numbers at each position of a name
NAMED = 3  # at most so many names or patterns in a label


# Names ----------------------------------------------------------------------------------------------------------------


def brief(names: Iterable[str], most: int | None = None) -> str:
    """`layer1.{0-2}.conv2, fc`: names that differ in one number become one pattern. `most` limits the number of patterns."""
    names = list(dict.fromkeys(names))
    found = _patterns(names)
    text = ", ".join(pattern for pattern, _ in found[:most])
    left = len(names) - sum(count for _, count in found[:most])
    return f"{text} and {left} more" if left else text


def _patterns(names: Sequence[str]) -> list[tuple[str, int]]:
    """Patterns that match exactly these names, each with the number of names it matches."""
    rows_of: dict[Letters, list[Row]] = {}
    for name in names:
        letters, numbers = _apart(name)
        rows_of.setdefault(letters, []).append(tuple((number,) for number in numbers))
    found = []
    for letters, rows in rows_of.items():
        for place in reversed(range(len(letters) - 1)):
            rows = _merged(rows, place)
        for row in rows:
            parts = zip(letters, [*map(_braces, row), ""], strict=True)
            found.append(("".join(chain.from_iterable(parts)), int(np.prod([len(numbers) for numbers in row]))))
    return found


def _apart(name: str) -> tuple[Letters, tuple[str, ...]]:
    """`layer1.0.conv2` -> ("layer", ".", ".conv", ""), ("1", "0", "2")."""
    parts = re.split(r"(\d+)", name)
    return tuple(parts[::2]), tuple(parts[1::2])


def _merged(rows: Sequence[Row], place: int) -> list[Row]:
    """Merge rows that differ only at position `place`; the merged row has all numbers of that position."""
    alike: dict[Row, list[str]] = {}
    for row in rows:
        alike.setdefault(row[:place] + row[place + 1 :], []).extend(row[place])
    return [(*rest[:place], tuple(numbers), *rest[place:]) for rest, numbers in alike.items()]


def _braces(numbers: Sequence[str]) -> str:
    """`2`, `{0,2}` or `{0-5}`."""
    if len(numbers) == 1:
        return numbers[0]
    run = [str(int(numbers[0]) + step) for step in range(len(numbers))]
    return f"{{{run[0]}-{run[-1]}}}" if len(run) > 2 and run == list(numbers) else f"{{{','.join(numbers)}}}"


# Groups ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Share:
    """The fraction of the model's MACs and parameters that is removed with the whole group."""

    macs: float
    params: float


def shares(channels: Channels) -> dict[str, Share]:
    """Group name -> its share of MACs and parameters."""
    whole, own = channels.all_kept(), channels.split(np.arange(channels.atoms))
    macs, params = channels.macs, channels.params
    found = {}
    for group in channels.groups:
        without = channels.all_kept()
        without[own[group.name]] = False
        found[group.name] = Share(1 - macs.total(without) / macs.total(whole), 1 - params.total(without) / params.total(whole))
    return found


def readers(group: Group) -> list[str]:
    """The consumers of these channels: layers that have them as inputs."""
    return list(dict.fromkeys(member.tensor.rpartition(".")[0] for member in group.members if member.role == "in"))


def copies(group: Group) -> int:
    """How many channels of a layer an atom has: several if all heads, or all groups of a convolution, are pruned alike."""
    return min((member.indices.shape[1] for member in group.members if member.role == "out"), default=1)


# The drawing ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Node:
    """Coupled channels, or frozen ones. `names` has several entries where similar groups are drawn as one node."""

    kind: Kind
    names: tuple[str, ...] = ()  # the groups
    lines: tuple[str, ...] = ()  # further lines of the label
    depthwise: tuple[str, ...] = ()  # depthwise layers of these channels

    @property
    def label(self) -> list[str]:
        """Lines of text."""
        first, *rest = self.lines
        counted = f"{len(self.names)} groups, each {first}" if len(self.names) > 1 else first
        names = [brief(self.names)] if self.names else []
        return [*names, counted, *rest, *([f"depthwise: {brief(self.depthwise, NAMED)}"] if self.depthwise else [])]


@dataclass(frozen=True)
class Edge:
    """`layers` have the channels of node `source` as inputs and those of `target` as outputs; both index `Drawing.nodes`."""

    source: int
    target: int
    layers: tuple[str, ...]

    @property
    def label(self) -> str:
        counted = f" ({len(self.layers)} layers)" if len(self.layers) > 1 else ""
        return brief(self.layers, NAMED) + counted


@dataclass(frozen=True)
class Drawing:
    """`nodes` are in the order of the forward pass, where that is defined."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]


class _Graph:
    """Nodes and edges, before similar nodes are merged."""

    def __init__(self, channels: Channels) -> None:
        self.nodes: dict[Key, Node] = {}
        self.edges: dict[tuple[Key, Key], list[str]] = {}  # the layers
        self._groups: dict[tuple[str, int], list[Group]] = defaultdict(list)  # those in a dimension of a tensor
        self._stay: dict[int, Key] = {}  # component -> the node of the frozen channels that it belongs to
        self._reasons = {row.name: row.reason for row in channels.frozen()}
        self._add_groups(channels)
        layers = channels.layers()
        made = [self._made(layer) for layer in layers]  # first, as some layers consume channels of a later one
        for layer, targets in zip(layers, made, strict=True):
            for target in targets:
                self._connect(self._read(layer), target, layer.name)

    def _add_groups(self, channels: Channels) -> None:
        share = shares(channels)
        for group in channels.groups:
            count = f"{group.size} x {copies(group)}" if copies(group) > 1 else f"{group.size}"
            lines = f"{count} channels", f"{share[group.name].macs:.1%} of the MACs"
            self.nodes[group.name] = Node("group", (group.name,), lines)
            for member in group.members:
                self._groups[member.tensor, member.dim].append(group)

    def _made(self, layer: Layer) -> list[Key]:
        """The nodes of the layer's output channels; none if it is depthwise, which is noted on the node of its channels."""
        if layer.made is None:
            for group in self._groups[layer.weight, 0]:
                node = self.nodes[group.name]
                self.nodes[group.name] = replace(node, depthwise=(*node.depthwise, layer.name))
            return []
        groups = self._groups[layer.weight, layer.made.dim]
        for group in groups:
            if group.scatter is not None:
                self._connect(group.name, self._frozen(layer, "a full-width residual stream, zero where channels are pruned"))
        return [group.name for group in groups] or [self._frozen(layer, self._reasons.get(layer.name, ""))]

    def _frozen(self, layer: Layer, reason: str) -> Key:
        """The node of the layer's frozen output channels."""
        assert layer.made is not None
        components = layer.made.components
        key = next((self._stay[c] for c in components if c in self._stay), ("stays", layer.name))
        for c in components:
            self._stay.setdefault(c, key)
        self.nodes.setdefault(key, Node("stays", (), (f"{len(components)} frozen channels", reason)))
        return key

    def _read(self, layer: Layer) -> Key:
        """The node of the layer's input channels; if they come from several nodes, a node that concatenates these."""
        found: list[Key] = []
        if layer.read is not None:
            found += [group.name for group in self._groups[layer.weight, layer.read.dim]]
            found += [self._stay[c] for c in layer.read.components if c in self._stay]
        if not found:
            self.nodes.setdefault("outside", Node("outside", (), ("input",)))
            return "outside"
        found = list(dict.fromkeys(found))
        return self._joined(found) if len(found) > 1 else found[0]

    def _joined(self, parts: list[Key]) -> Key:
        """The node that concatenates several. It builds on the largest known part, so that a dense block becomes a chain."""
        key = frozenset(parts)
        if key not in self.nodes:
            within = [known for known in self.nodes if isinstance(known, frozenset) and known < key]
            inner: frozenset[Key] = max(within, key=len, default=frozenset())
            self.nodes[key] = Node("joined", (), ("concatenated",))
            for part in ([inner] if inner else []) + [part for part in parts if part not in inner]:
                self._connect(part, key)
        return key

    def _connect(self, source: Key, target: Key, *layers: str) -> None:
        self.edges.setdefault((source, target), []).extend(layers)


def _alike(graph: _Graph) -> dict[Key, int]:
    """A number for each node; similar nodes with similar neighbourhoods have the same number (colour refinement)."""
    letters = {key: tuple(_apart(name)[0] for name in (*node.names, *node.depthwise)) for key, node in graph.nodes.items()}
    colour = _numbered({key: (node.kind, node.lines, letters[key]) for key, node in graph.nodes.items()})
    while True:
        beside: dict[Key, list[tuple[bool, int, tuple[Letters, ...]]]] = defaultdict(list)
        for (source, target), layers in graph.edges.items():
            way = tuple(sorted({_apart(layer)[0] for layer in layers}))
            beside[source].append((True, colour[target], way))
            beside[target].append((False, colour[source], way))
        finer = _numbered({key: (colour[key], tuple(sorted(beside[key]))) for key in graph.nodes})
        if len(set(finer.values())) == len(set(colour.values())):
            return colour
        colour = finer


def _numbered(values: dict[Key, Hashable]) -> dict[Key, int]:
    """The same number for equal values."""
    numbers: dict[Hashable, int] = {}
    return {key: numbers.setdefault(value, len(numbers)) for key, value in values.items()}


def draw(channels: Channels) -> Drawing:
    """The groups of an analysis, the layers between them, and the frozen channels."""
    graph = _Graph(channels)
    number = _alike(graph)
    nodes: dict[int, Node] = {}
    for key, node in graph.nodes.items():
        known = nodes.get(number[key])
        if known is not None:
            node = replace(known, names=known.names + node.names, depthwise=known.depthwise + node.depthwise)
        nodes[number[key]] = node
    place = {which: index for index, which in enumerate(nodes)}
    layers: dict[tuple[int, int], list[str]] = {}
    for (source, target), own in graph.edges.items():
        layers.setdefault((place[number[source]], place[number[target]]), []).extend(own)
    return Drawing(tuple(nodes.values()), tuple(Edge(*ends, tuple(dict.fromkeys(own))) for ends, own in layers.items()))


# As text --------------------------------------------------------------------------------------------------------------


def mermaid(drawing: Drawing) -> str:
    """The text of a Mermaid flowchart, which GitHub and many editors render."""
    shapes = {"group": '["{}"]', "stays": '["{}"]:::stays', "joined": '(["{}"])', "outside": '(["{}"])'}
    lines = ["flowchart TD", "    classDef stays stroke-dasharray: 4 4"]
    for index, node in enumerate(drawing.nodes):
        lines.append(f"    n{index}{shapes[node.kind].format(_escaped('<br/>'.join(node.label)))}")
    for edge in drawing.edges:
        label = f'|"{_escaped(edge.label)}"|' if edge.layers else ""
        lines.append(f"    n{edge.source} -->{label} n{edge.target}")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace('"', "#quot;")


def markdown(drawing: Drawing) -> str:
    """A Mermaid flowchart as a block of a Markdown file."""
    return f"```mermaid\n{mermaid(drawing)}```\n"


def dot(drawing: Drawing) -> str:
    """The text of a Graphviz graph; `dot -Tsvg FILE` renders it."""
    shapes = {"group": "shape=box", "stays": "shape=box, style=dashed", "joined": "shape=oval", "outside": "shape=oval"}
    lines = ["digraph coupling {", '    node [fontname="sans-serif"]; edge [fontname="sans-serif", fontsize=10];']
    for index, node in enumerate(drawing.nodes):
        lines.append(f"    n{index} [label={_quoted(node.label)}, {shapes[node.kind]}];")
    for edge in drawing.edges:
        lines.append(f"    n{edge.source} -> n{edge.target} [label={_quoted([edge.label])}];")
    return "\n".join([*lines, "}"]) + "\n"


def _quoted(lines: list[str]) -> str:
    return '"' + "\\n".join(line.replace("\\", "\\\\").replace('"', '\\"') for line in lines) + '"'


FORMATS: dict[str, Callable[[Drawing], str]] = {".mmd": mermaid, ".md": markdown, ".dot": dot, ".gv": dot}
