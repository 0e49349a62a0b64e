"""Accuracy against cost: which networks of a comparison are worth having, and which another one beats in both.

MACs and the size of the ONNX file are counted, so networks of different originals stand on one axis. Times of different
sessions do not: there the cost is the share of the original's time, both measured in turns, and each original has its own axis.
Accuracies on different test images are never put on one axis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from compressor.report import formatting
from compressor.report.comparison import EMPTY, Comparison, Original, Point, Row, Spread, asked

HOW_TO_READ = (
    "The line is the Pareto front: nothing else here is at least as accurate and at least as cheap as a network on it. All "
    "others are pale; where intervals overlap, that proves nothing. Latency is a network's median time as a share of its "
    "original's, both measured in turns, because times of different sessions cannot be compared."
)


@dataclass(frozen=True)
class Mark:
    """One network in a plot. Several of one `line` belong to one method, at rising cost."""

    line: str
    asked: str
    cost: float
    top1: Spread
    seeds: int  # 0: the original, which no run made
    number: str = ""  # of an original, where there are several
    front: bool = False  # whether no other network is as accurate at less cost, or more accurate at the same


@dataclass(frozen=True)
class Axis:
    """One kind of cost and all networks of which it is known; the original is among them."""

    cost: str  # macs, size_bytes, latency_left
    label: str
    marks: list[Mark]
    written: Callable[[float], str]


@dataclass(frozen=True)
class Tradeoff:
    """All costs of the networks that were measured on one set of test images."""

    name: str
    title: str
    axes: list[Axis]


def tradeoffs(compared: Comparison) -> list[Tradeoff]:
    """One for each set of test images; none where no accuracy was measured."""
    found = []
    for number, (data, n) in enumerate(compared.test_sets, 1):
        rows = [row for row in compared.rows if row.top1 and (compared.originals[row.original].data, row.top1.n) == (data, n)]
        name, title = "accuracy-and-cost", "Accuracy against cost"
        if len(compared.test_sets) > 1:
            name, title = f"{name}-{number}", f"{title}: {data}, {formatting.images(n)}"
        found.append(Tradeoff(name, title, [axis for axis in _axes(compared, rows) if axis.marks]))
    return found


def _axes(compared: Comparison, rows: Sequence[Row]) -> Iterator[Axis]:
    own = list(dict.fromkeys(row.original for row in rows))
    yield _axis(compared, rows, own, "macs", "MACs, one image", lambda cost: formatting.count(round(cost)))
    yield _axis(compared, rows, own, "size_bytes", "ONNX file", lambda cost: formatting.size(round(cost)))
    for original in own:
        setups = (point.latency for row in rows if row.original == original for point in row.points)
        for setup in dict.fromkeys(formatting.timing(latency) for latency in setups if latency):
            whose = "the original's" if len(compared.originals) == 1 else f"original {original + 1}'s"
            timed = [row for row in rows if row.original == original and _timed_as(row, setup)]
            yield _axis(compared, timed, [original], "latency_left", f"latency, share of {whose}\n{setup}", _percent)


def _percent(cost: float) -> str:
    return f"{100 * cost:.3g} %"


def _timed_as(row: Row, setup: str) -> bool:
    return all(point.latency and formatting.timing(point.latency) == setup for point in row.points)


_COSTS: dict[str, tuple[Callable[[Point], float | None], Callable[[Original], float | None]]] = {  # of a run, of its original
    "macs": (lambda point: point.macs, lambda original: original.macs),
    "size_bytes": (lambda point: point.size_bytes, lambda original: original.size_bytes),
    "latency_left": (lambda point: 1 / point.ratio if point.ratio else None, lambda _: 1.0),
}


def _axis(
    compared: Comparison, rows: Sequence[Row], own: Sequence[int], cost: str, label: str, written: Callable[[float], str]
) -> Axis:
    """The networks of `rows` and the originals `own`, those on the front marked. Without marks where no run has this cost."""
    of_run, of_original = _COSTS[cost]
    known = [(row, row.mean(of_run), row.top1) for row in rows]
    marks = [Mark(line(compared, row), asked(row), x, y, len(row.points)) for row, x, y in known if x is not None and y]
    if not marks:
        return Axis(cost, label, [], written)
    for number in own:
        original = compared.originals[number]
        x, y = of_original(original), Spread.of([original.accuracy] if original.accuracy else [])
        if x is not None and y and y.n == marks[0].top1.n:
            several = len(compared.originals) > 1
            name, sign = (f"original {number + 1}", str(number + 1)) if several else ("the original", "")
            marks.append(Mark(name, EMPTY, x, y, 0, sign))
    best = front((mark.cost, mark.top1.mean) for mark in marks)
    return Axis(cost, label, [replace(mark, front=at) for mark, at in zip(marks, best, strict=True)], written)


def line(compared: Comparison, row: Row) -> str:
    """What a plot calls the row: its method, unless it is not alone of it at its rate."""
    uncut = not row.rate and all(point.macs_left == 1 for point in row.points)
    name = f"{row.name}, uncut" if uncut else row.name
    return f"{name}, of original {row.original + 1}" if len(compared.originals) > 1 else name


def front(networks: Iterable[tuple[float, float]]) -> list[bool]:
    """Of each (cost, accuracy): whether no other one is as good in both and better in one (the Pareto front)."""
    found = list(networks)

    def beaten(cost: float, accuracy: float) -> bool:
        rivals = ((c, a) for c, a in found if (c, a) != (cost, accuracy))
        return any(c <= cost and a >= accuracy for c, a in rivals)

    return [not beaten(*network) for network in found]
