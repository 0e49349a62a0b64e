"""The headline score against cost: which networks of a comparison are on the Pareto front, and which are dominated.

MACs and the size of the ONNX file are counted, so networks of different originals share an axis. Latencies of different
sessions are not comparable: their cost is the share of the original's latency, measured interleaved, with one axis per
original. Scores on different test images, and different scores, never share an axis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from compressor.report import formatting
from compressor.report.comparison import EMPTY, Comparison, Images, Original, Point, Row, Spread, asked

HOW_TO_READ = (
    "The line is the Pareto front: no other network is at least as good and at least as cheap as a network on it. "
    "Dominated networks are pale; where intervals overlap, the difference may be due to chance. Latency is the median latency "
    "as a share of the original's, measured interleaved, because latencies of different sessions are not comparable."
)


@dataclass(frozen=True)
class Mark:
    """One network in a plot. Marks of one `line` belong to one method, at increasing cost."""

    line: str
    asked: str
    cost: float
    score: Spread
    seeds: int  # 0: the original
    number: str = ""  # of an original, if there are several
    front: bool = False  # whether it is on the Pareto front


@dataclass(frozen=True)
class Axis:
    """One cost metric and all networks for which it was measured, including the original."""

    cost: str  # macs, size_bytes, latency_left
    label: str
    marks: list[Mark]
    written: Callable[[float], str]


@dataclass(frozen=True)
class Tradeoff:
    """All costs of the networks with one score that was measured on one set of test images."""

    name: str
    title: str
    axes: list[Axis]


def tradeoffs(compared: Comparison) -> list[Tradeoff]:
    """One for each score and set of test images; none if no score was measured."""
    sets, found = compared.test_sets, []
    for number, images in enumerate(sets, 1):
        measured = [(row, row.score) for row in compared.rows if row.score]
        rows = [row for row, score in measured if _images(compared, row.original, score) == images]
        label = next(score.of.label for row, score in measured if row is rows[0])
        name, title = "accuracy-and-cost", f"{formatting.title(label)} against cost"
        if len(sets) > 1:
            name, title = f"{name}-{number}", f"{title}: {images.data}, {formatting.images(images.n)}"
        found.append(Tradeoff(name, title, [axis for axis in _axes(compared, rows) if axis.marks]))
    return found


def _images(compared: Comparison, original: int, score: Spread) -> Images:
    return Images.of(compared.originals[original], score.of)


def _axes(compared: Comparison, rows: Sequence[Row]) -> Iterator[Axis]:
    own = list(dict.fromkeys(row.original for row in rows))
    yield _axis(compared, rows, own, "macs", "MACs, one image", lambda cost: formatting.count(round(cost)))
    yield _axis(compared, rows, own, "size_bytes", "ONNX file", lambda cost: formatting.size(round(cost)))
    for original in own:
        setups = (point.latency for row in rows if row.original == original for point in row.points)
        for setup in dict.fromkeys(formatting.timing(latency) for latency in setups if latency):
            whose = "the original" if len(compared.originals) == 1 else f"original {original + 1}"
            timed = [row for row in rows if row.original == original and _timed_as(row, setup)]
            yield _axis(compared, timed, [original], "latency_left", f"latency, relative to {whose}\n{setup}", _percent)


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
    """The networks of `rows` and the originals `own`, with those on the front marked. No marks if no run has this cost."""
    of_run, of_original = _COSTS[cost]
    known = [(row, row.mean(of_run), row.score) for row in rows]
    marks = [Mark(line(compared, row), asked(row), x, y, len(row.points)) for row, x, y in known if x is not None and y]
    if not marks:
        return Axis(cost, label, [], written)
    for number in own:
        original = compared.originals[number]
        x, y = of_original(original), Spread.over([original.score] if original.score else [])
        if x is not None and y and _images(compared, number, y) == Images.of(original, marks[0].score.of):
            several = len(compared.originals) > 1
            name, sign = (f"original {number + 1}", str(number + 1)) if several else ("the original", "")
            marks.append(Mark(name, EMPTY, x, y, 0, sign))
    best = front((mark.cost, mark.score.rank) for mark in marks)
    return Axis(cost, label, [replace(mark, front=at) for mark, at in zip(marks, best, strict=True)], written)


def line(compared: Comparison, row: Row) -> str:
    """The label of a row in plots: its method, and the original if there are several."""
    uncut = not row.rate and all(point.macs_left == 1 for point in row.points)
    name = f"{row.name}, unpruned" if uncut else row.name
    return f"{name}, original {row.original + 1}" if len(compared.originals) > 1 else name


def front(networks: Iterable[tuple[float, float]]) -> list[bool]:
    """For each (cost, score, where more is better): whether it is on the Pareto front.

    On it are those for which no other is as good in both and better in one.
    """
    found = list(networks)

    def beaten(cost: float, score: float) -> bool:
        rivals = ((c, s) for c, s in found if (c, s) != (cost, score))
        return any(c <= cost and s >= score for c, s in rivals)

    return [not beaten(*network) for network in found]
