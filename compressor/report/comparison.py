"""Runs side by side: reports in, rows of a table out. Nothing is run here.

Every figure comes from a run's own report. Over several seeds it is their mean, with the standard deviation of the sample; of
a single run it is the measurement with Wilson's interval. What was not measured is `None`, and an empty cell.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev

from compressor.report import figures
from compressor.report.schema import Accuracy, Report

NOT_OF_THE_CUT = {"original", "fine-tuned", "trained", "ONNX"}  # all other stages tell what cutting alone did
EMPTY = "-"


@dataclass(frozen=True)
class Point:
    """One finished run. Shares are of the original."""

    method: str
    rate: float  # the share that was to go; 0: nothing was
    seed: int
    run: str
    macs: int
    macs_left: float
    params: int
    params_left: float
    stages: dict[str, Accuracy]  # after the cut and before any training that follows, by the name of the stage
    accuracy: Accuracy | None  # at the end, through ONNX Runtime
    change: float | None  # of top-1 from the original's, on the same images
    training_seconds: float | None
    faster: dict[str, float]  # by batch size: the original's median latency / this one's

    @staticmethod
    def of(report: Report, run: str) -> Point:
        """What `report` says, of the run in the directory `run`."""
        return Point(
            report.method,
            report.target.asked,
            report.seed,
            run,
            report.compressed.macs,
            report.change.macs,
            report.compressed.params,
            report.change.params,
            {row.name: row.accuracy for row in report.stages if row.accuracy and row.name not in NOT_OF_THE_CUT},
            report.compressed.accuracy,
            report.change.top1,
            sum(epoch.seconds for epoch in report.epochs) if report.epochs else None,
            report.change.latency,
        )


@dataclass(frozen=True)
class Gap:
    """A run without a result, and why. `status` is the exit status that such an error has; None: it has not run yet."""

    method: str
    rate: float
    seed: int
    run: str
    reason: str = "not run yet"
    status: int | None = None


@dataclass(frozen=True)
class Original:
    """What all runs began with."""

    model: str
    arch: str
    data: str | None
    macs: int
    params: int
    accuracy: Accuracy | None


@dataclass(frozen=True)
class Spread:
    """A top-1 over seeds; `low` to `high` is one standard deviation around the mean, or Wilson's interval of a single run."""

    mean: float
    low: float
    high: float
    deviation: float | None  # None: a single run
    n: int  # test images

    @staticmethod
    def of(measured: Sequence[Accuracy]) -> Spread | None:
        """None when nothing was measured."""
        if not measured:
            return None
        if len(measured) == 1:
            (only,) = measured
            return Spread(only.top1, only.low, only.high, None, only.n)
        mean, deviation = fmean(a.top1 for a in measured), stdev(a.top1 for a in measured)
        return Spread(mean, mean - deviation, mean + deviation, deviation, measured[0].n)

    def __str__(self) -> str:
        """`87.10 % [86.4, 87.7]`, or `87.10 +- 0.21 %`."""
        if self.deviation is None:
            return f"{figures.percent(self.mean)} [{100 * self.low:.1f}, {100 * self.high:.1f}]"
        return f"{100 * self.mean:.2f} +- {100 * self.deviation:.2f} %"


@dataclass(frozen=True)
class Row:
    """All seeds of one method at one rate."""

    method: str
    rate: float
    points: list[Point]
    gaps: list[Gap]

    @property
    def top1(self) -> Spread | None:
        return Spread.of([point.accuracy for point in self.points if point.accuracy])

    @property
    def macs_left(self) -> float | None:
        return self.mean(lambda point: point.macs_left)

    def stage(self, name: str) -> Spread | None:
        """Top-1 at the stage `name`."""
        return Spread.of([point.stages[name] for point in self.points if name in point.stages])

    def mean(self, figure: Callable[[Point], float | None]) -> float | None:
        """Over the runs of which it is known."""
        known = [value for value in map(figure, self.points) if value is not None]
        return fmean(known) if known else None

    @property
    def note(self) -> str:
        """What is missing, and why: every reason once."""
        seeds: dict[str, list[str]] = {}
        for gap in self.gaps:
            seeds.setdefault(gap.reason if gap.status is None else f"failed: {gap.reason}", []).append(str(gap.seed))
        return "; ".join(f"seed {', '.join(own)} {reason}" for reason, own in seeds.items())


@dataclass(frozen=True)
class Comparison:
    """`original` is None as long as no run is finished."""

    original: Original | None
    points: list[Point]
    gaps: list[Gap]

    @property
    def failures(self) -> list[Gap]:
        return [gap for gap in self.gaps if gap.status is not None]

    @property
    def rows(self) -> list[Row]:
        """The lowest rate first, and the most accurate of each rate."""
        rows: dict[tuple[str, float], Row] = {}
        for point in self.points:
            rows.setdefault((point.method, point.rate), Row(point.method, point.rate, [], [])).points.append(point)
        for gap in self.gaps:
            rows.setdefault((gap.method, gap.rate), Row(gap.method, gap.rate, [], [])).gaps.append(gap)
        return sorted(rows.values(), key=lambda row: (row.rate, -row.top1.mean if row.top1 else 0.0, row.method))

    @property
    def stages(self) -> list[str]:
        """The names of all that was measured after a cut, in the order of the runs."""
        return list(dict.fromkeys(name for point in self.points for name in point.stages))

    def is_best(self, row: Row) -> bool:
        """Whether no other method has a higher mean at this rate; false where none competes."""
        rivals = [other.top1.mean for other in self.rows if other.rate == row.rate and other.top1]
        return row.top1 is not None and len(rivals) > 1 and row.top1.mean == max(rivals)


def collect(reports: Mapping[str, Report], gaps: Iterable[Gap] = ()) -> Comparison:
    """Put the reports of several runs, by the names of their directories, side by side."""
    points = [Point.of(report, run) for run, report in reports.items()]
    original = next((_original(report) for report in reports.values()), None)
    return Comparison(original, points, list(gaps))


def _original(report: Report) -> Original:
    before = report.baseline
    return Original(report.model, report.arch, report.data, before.macs, before.params, before.accuracy)


# As a table -----------------------------------------------------------------------------------------------------------


def heading(comparison: Comparison) -> list[str]:
    """The names of the columns of `cells`."""
    cost = ["MACs gone", "parameters gone", "faster", "training"]
    return ["method", "asked", "top-1", "change", *cost, *comparison.stages, "seeds"]


def cells(comparison: Comparison, row: Row) -> list[str]:
    """A row as text."""
    params_left, change = row.mean(lambda point: point.params_left), row.mean(lambda point: point.change)
    seconds, faster = row.mean(lambda point: point.training_seconds), row.mean(_faster)
    return [
        row.method,
        figures.share(row.rate) if row.rate else EMPTY,
        str(row.top1 or EMPTY),
        EMPTY if change is None else figures.points(change),
        EMPTY if row.macs_left is None else figures.share(1 - row.macs_left),
        EMPTY if params_left is None else figures.share(1 - params_left),
        EMPTY if faster is None else figures.times(faster),
        EMPTY if seconds is None else figures.duration(seconds),
        *(str(row.stage(name) or EMPTY) for name in comparison.stages),
        str(len(row.points)),
    ]


def _faster(point: Point) -> float | None:
    """At the smallest batch that was timed."""
    return point.faster[min(point.faster, key=int)] if point.faster else None


def notes(comparison: Comparison) -> list[str]:
    """What a reader must know about the table."""
    original = comparison.original
    if original is None:
        return ["No run is finished."]
    cost = f"{figures.count(original.macs)} MACs, {figures.count(original.params)} parameters"
    if original.accuracy is None:
        return [f"The original: {cost}.", "Accuracy was not measured: give images with --data."]
    top1 = f"top-1 {figures.percent(original.accuracy.top1)} {figures.interval(original.accuracy)}"
    found = [
        f"The original: {cost}, {top1}.",
        f"Top-1 is measured on the same test images everywhere ({figures.images(original.accuracy.n)}), at the end through "
        "ONNX Runtime: the mean over seeds +- their standard deviation, or a single run with Wilson's 95 % interval; "
        "change is in points from the original. Columns behind tell what cutting alone did.",
        "In bold: the highest mean of a rate; where intervals overlap, that proves nothing.",
    ]
    batches = {min(point.faster, key=int) for point in comparison.points if point.faster}
    if batches:
        found.append(
            f"Faster: the original's median latency over this one's, measured in turns, batch {' and '.join(sorted(batches))}."
        )
    return found


# As files -------------------------------------------------------------------------------------------------------------


def comparison_to_csv(comparison: Comparison) -> str:
    """One line a finished run below the names of the columns; what was not measured is empty."""
    file = io.StringIO()
    writer = csv.DictWriter(file, _columns(comparison), lineterminator="\n")
    writer.writeheader()
    writer.writerows(_line(point) for point in comparison.points)
    return file.getvalue()


def _columns(comparison: Comparison) -> list[str]:
    stages = [f"top1_{name}" for name in comparison.stages]
    cost = ["method", "rate", "seed", "run", "macs", "macs_left", "params", "params_left"]
    return [*cost, *stages, "top1", "low", "high", "n", "change", "training_seconds", "faster"]


def _line(point: Point) -> dict[str, object]:
    line = asdict(point) | {"faster": _faster(point)}
    del line["stages"], line["accuracy"]
    line |= {f"top1_{name}": accuracy.top1 for name, accuracy in point.stages.items()}
    if point.accuracy:
        line |= {name: getattr(point.accuracy, name) for name in ("top1", "low", "high", "n")}
    return line


def comparison_to_json(comparison: Comparison) -> str:
    """All points and gaps, and what the rows of the table say of them."""
    rows = [
        {"method": row.method, "rate": row.rate, "seeds": len(row.points), "best": comparison.is_best(row)}
        | {"top1": row.top1 and asdict(row.top1), "macs_left": row.macs_left}
        for row in comparison.rows
    ]
    return json.dumps({"version": 1, **asdict(comparison), "rows": rows}, indent=2, allow_nan=False) + "\n"
