"""Comparison of finished runs: reports in, rows of a table out. Nothing is run here.

Every value comes from a run's own report. Over several seeds it is the mean, with the standard deviation of the sample; of a
single run it is the measurement with Wilson's interval. What was not measured is `None`, and an empty cell. Runs may have
different originals and different settings: the notes below the table list them.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import PurePath
from statistics import fmean, stdev

from compressor.report import formatting
from compressor.report.schema import Accuracy, Latency, Report
from compressor.report.summary import quantity, timings

NOT_OF_THE_CUT = {"original", "fine-tuned", "trained", "ONNX", "PyTorch"}  # all other stages are before fine-tuning
EMPTY = "-"
BOLD = "method", "top-1"  # the columns that are bold in the best row
# Settings of the original, which the comparison reports separately, and settings that belong to the method.
_OF_THE_ORIGINAL = {"model", "arch", "arch_arg", "key", "ema", "data", "input"}
_OF_THE_METHOD = {*"do method set rate target rank energy seed student student_arch student_arch_arg".split()}


@dataclass(frozen=True)
class Point:
    """One finished run. Shares are of the original."""

    method: str
    rate: float  # the target: share to remove; 0: none
    quantity: str  # of what: macs, params, size, filters, weights, rank
    seed: int
    run: str
    page: str  # of the run, relative to the comparison; empty: it has none
    original: int  # its index in the comparison's list
    settings: dict[str, str | float | int | bool | None]
    macs: int
    macs_left: float
    params: int
    params_left: float
    size_bytes: int | None  # of the ONNX file
    stages: dict[str, Accuracy]  # after compression and before fine-tuning, by the name of the stage
    accuracy: Accuracy | None  # of the final model, measured with ONNX Runtime
    change: float | None  # in top-1 from the original, on the same images
    training_seconds: float | None
    faster: dict[str, float]  # by batch size: the original's median latency / this one's
    latency: Latency | None  # at the smallest batch that was timed interleaved with the original

    @staticmethod
    def of(report: Report, run: str, page: str, original: int) -> Point:
        """The values of `report`, for the run named `run`."""
        in_turns = [after for before, after in timings(report.baseline, report.compressed) if before]
        return Point(
            report.method,
            report.target.asked,
            report.target.quantity,
            report.seed,
            run,
            page,
            original,
            report.settings,
            report.compressed.macs,
            report.change.macs,
            report.compressed.params,
            report.change.params,
            report.compressed.size_bytes,
            {row.name: row.accuracy for row in report.stages if row.accuracy and row.name not in NOT_OF_THE_CUT},
            report.compressed.accuracy,
            report.change.top1,
            sum(epoch.seconds for epoch in report.epochs) if report.epochs else None,
            report.change.latency,
            in_turns[0] if in_turns else None,
        )

    @property
    def ratio(self) -> float | None:
        """Speedup over the original, at the smallest batch that was timed."""
        return self.faster[min(self.faster, key=int)] if self.faster else None

    @property
    def terms(self) -> tuple[object, ...]:
        """Equal for runs that differ only in their seed."""
        settings = sorted(
            (name, repr(value)) for name, value in self.settings.items() if name not in _OF_THE_ORIGINAL | {"seed"}
        )
        return self.original, self.method, self.quantity, self.rate, tuple(settings)


@dataclass(frozen=True)
class Gap:
    """A run without a result, and the reason. `status` is the exit status of its error; None: it has not run yet."""

    method: str
    rate: float
    seed: int
    run: str
    reason: str = "not run yet"
    status: int | None = None


@dataclass(frozen=True)
class Original:
    """The model that runs started from."""

    model: str
    arch: str
    data: str | None
    macs: int
    params: int
    size_bytes: int | None
    accuracy: Accuracy | None

    @staticmethod
    def of(report: Report) -> Original:
        """The original in `report`."""
        before = report.baseline
        return Original(report.model, report.arch, report.data, before.macs, before.params, before.size_bytes, before.accuracy)

    @property
    def identity(self) -> tuple[object, ...]:
        """Equal for one network on one set of test images, regardless of the directory that the runs were started from."""
        measured = self.accuracy and (self.accuracy.top1, self.accuracy.n)
        return PurePath(self.model).name, self.data, self.macs, self.params, measured


@dataclass(frozen=True)
class Spread:
    """Top-1 over seeds; `low` to `high` is one standard deviation around the mean, or Wilson's interval of a single run."""

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
            return f"{formatting.percent(self.mean)} [{100 * self.low:.1f}, {100 * self.high:.1f}]"
        return f"{100 * self.mean:.2f} +- {100 * self.deviation:.2f} %"


@dataclass(frozen=True)
class Row:
    """All seeds of one method at one rate. If rows differ in something else, `name` distinguishes them."""

    method: str
    rate: float
    points: list[Point]
    gaps: list[Gap]
    quantity: str = "macs"
    original: int = 0
    name: str = ""

    @property
    def asked(self) -> tuple[object, ...]:
        """Equal for rows that are ranked against each other: same original, same quantity, same target."""
        return self.original, self.quantity, round(self.rate, 3)

    @property
    def key(self) -> tuple[object, ...]:
        """Identifies a row that has no results yet."""
        return self.method, *self.asked

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
        """Over the runs for which it was measured."""
        known = [value for value in map(figure, self.points) if value is not None]
        return fmean(known) if known else None

    @property
    def note(self) -> str:
        """The seeds without a result, grouped by reason."""
        seeds: dict[str, list[str]] = {}
        for gap in self.gaps:
            seeds.setdefault(gap.reason if gap.status is None else f"failed: {gap.reason}", []).append(str(gap.seed))
        return "; ".join(f"seed {', '.join(own)} {reason}" for reason, own in seeds.items())


@dataclass(frozen=True)
class Comparison:
    """`originals` is empty until a run has finished."""

    originals: list[Original]
    points: list[Point]
    gaps: list[Gap]

    @property
    def failures(self) -> list[Gap]:
        return [gap for gap in self.gaps if gap.status is not None]

    @property
    def rows(self) -> list[Row]:
        """Sorted by original, then by ascending rate, then by descending top-1."""
        rows = list(self._rows())
        often = Counter(row.key for row in rows)
        for place, row in enumerate(rows):
            runs = ", ".join(point.run for point in row.points)
            rows[place] = replace(row, name=row.method if often[row.key] == 1 else f"{row.method} ({runs})")
        return sorted(rows, key=lambda row: (row.original, row.rate, -row.top1.mean if row.top1 else 0.0, row.name))

    def _rows(self) -> Iterable[Row]:
        """In the order of the runs. A seed that occurs twice with equal settings starts a new row."""
        rows: dict[tuple[object, ...], Row] = {}
        seen: Counter[tuple[object, ...]] = Counter()
        for point in self.points:
            seen[point.terms, point.seed] += 1
            new = Row(point.method, point.rate, [], [], point.quantity, point.original)
            rows.setdefault((point.terms, seen[point.terms, point.seed]), new).points.append(point)
        for gap in self.gaps:
            new = Row(gap.method, gap.rate, [], [])
            key = next((key for key, row in rows.items() if row.key == new.key), new.key)
            rows.setdefault(key, new).gaps.append(gap)
        return rows.values()

    @property
    def stages(self) -> list[str]:
        """The names of all stages before fine-tuning, in the order of the runs."""
        return list(dict.fromkeys(name for point in self.points for name in point.stages))

    @property
    def test_sets(self) -> list[tuple[str | None, int]]:
        """The data and the number of test images of all accuracies. If there is only one, they are comparable."""
        measured = ((self.originals[point.original].data, point.accuracy.n) for point in self.points if point.accuracy)
        return list(dict.fromkeys(measured))

    def is_best(self, row: Row) -> bool:
        """Whether its mean top-1 is the highest at this rate; false if there is no other row at this rate."""
        asked = row.original, row.quantity, row.rate
        rivals = [
            other.top1.mean for other in self.rows if (other.original, other.quantity, other.rate) == asked and other.top1
        ]
        return row.top1 is not None and len(rivals) > 1 and row.top1.mean == max(rivals)


def collect(reports: Mapping[str, Report], gaps: Iterable[Gap] = (), pages: Mapping[str, str] | None = None) -> Comparison:
    """Compare the reports of several runs, given by name.

    `pages`: the path of each run's page, relative to the comparison; by default in a directory of the run's name.
    """
    originals: dict[tuple[object, ...], Original] = {}
    points = []
    for run, report in reports.items():
        original = Original.of(report)
        originals.setdefault(original.identity, original)
        page = f"{run}/report.html" if pages is None else pages.get(run, "")
        points.append(Point.of(report, run, page, [*originals].index(original.identity)))
    return Comparison([*originals.values()], points, list(gaps))


# As a table -----------------------------------------------------------------------------------------------------------


def heading(comparison: Comparison) -> list[str]:
    """The names of the columns of `cells`."""
    which = ["original"] if len(comparison.originals) > 1 else []
    cost = ["MACs cut", "parameters cut", "ONNX file", "speedup", "training"]
    return ["method", *which, "target", "top-1", "change", *cost, *comparison.stages, "seeds"]


def cells(comparison: Comparison, row: Row) -> list[str]:
    """A row as text."""
    params_left, change = row.mean(lambda point: point.params_left), row.mean(lambda point: point.change)
    seconds, faster = row.mean(lambda point: point.training_seconds), row.mean(lambda point: point.ratio)
    size = row.mean(lambda point: point.size_bytes)
    return [
        row.name,
        *([str(row.original + 1)] if len(comparison.originals) > 1 else []),
        asked(row),
        str(row.top1 or EMPTY),
        EMPTY if change is None else formatting.points(change),
        EMPTY if row.macs_left is None else formatting.share(1 - row.macs_left),
        EMPTY if params_left is None else formatting.share(1 - params_left),
        EMPTY if size is None else formatting.size(round(size)),
        EMPTY if faster is None else formatting.times(faster),
        EMPTY if seconds is None else formatting.duration(seconds),
        *(str(row.stage(name) or EMPTY) for name in comparison.stages),
        str(len(row.points)),
    ]


def asked(row: Row | Point) -> str:
    """The target: `50.0 %` for MACs, which are not named, or `50.0 % of the parameters`."""
    if not row.rate:
        return EMPTY
    return formatting.share(row.rate) + ("" if row.quantity == "macs" else f" of the {quantity(row.quantity)}")


def told(original: Original) -> str:
    """The costs and the accuracy of an original."""
    size = [] if original.size_bytes is None else [f"{formatting.size(original.size_bytes)} as ONNX"]
    cost = [f"{formatting.count(original.macs)} MACs", f"{formatting.count(original.params)} parameters", *size]
    if original.accuracy:
        cost.append(f"top-1 {formatting.percent(original.accuracy.top1)} {formatting.interval(original.accuracy)}")
    return ", ".join(cost)


def notes(comparison: Comparison) -> list[str]:
    """The notes below the table."""
    if not comparison.originals:
        return ["No run has finished."]
    return [*_about_originals(comparison), *_about_accuracy(comparison), *_about_terms(comparison), *_about_time(comparison)]


def _about_originals(comparison: Comparison) -> list[str]:
    first, *more = comparison.originals
    if not more:
        return [f"The original: {told(first)}."]
    listed = [
        f"Original {number}: {original.model} ({original.arch}), {original.data or 'without data'}: {told(original)}."
        for number, original in enumerate(comparison.originals, 1)
    ]
    return [*listed, "The runs have different originals: reductions, change and speedup are relative to each run's own."]


def _about_accuracy(comparison: Comparison) -> list[str]:
    sets = comparison.test_sets
    if not sets:
        return ["Accuracy was not measured: the runs had no --data."]
    where, found = f"on the same test images in all runs ({formatting.images(sets[0][1])})", []
    if len(sets) > 1:
        where, names = "on each run's own test images", "; ".join(f"{data}, {formatting.images(n)}" for data, n in sets)
        found = [f"The test images differ: top-1 on one set is not comparable with top-1 on another ({names})."]
    return [
        *found,
        f"Top-1 of the final model is measured {where} with ONNX Runtime: the mean over seeds +- the standard deviation, or a "
        "single run with Wilson's 95 % interval; change is in percentage points from the original. Columns named after a stage "
        "are top-1 before fine-tuning.",
        "Bold: the highest mean at each target; where intervals overlap, the difference may be due to chance.",
    ]


def _about_terms(comparison: Comparison) -> list[str]:
    """The settings other than method and rate in which the runs differ, such as the number of epochs."""
    values: dict[str, list[str]] = {}
    for point in comparison.points:
        for name, value in point.settings.items():
            shown = value if isinstance(value, str) else json.dumps(value)
            if name not in _OF_THE_ORIGINAL | _OF_THE_METHOD and shown not in values.setdefault(name, []):
                values[name].append(shown)
    differing = [f"{name} ({' or '.join(found)})" for name, found in values.items() if len(found) > 1]
    return [f"The runs have different settings: {', '.join(differing)}."] if differing else []


def _about_time(comparison: Comparison) -> list[str]:
    setups = list(dict.fromkeys(formatting.timing(point.latency) for point in comparison.points if point.latency))
    if not setups:
        return []
    return [f"Speedup: median latency of the original over that of the run, measured interleaved, {' or '.join(setups)}."]


# As files -------------------------------------------------------------------------------------------------------------


def comparison_to_csv(comparison: Comparison) -> str:
    """A header, and one line per finished run; what was not measured is empty."""
    file = io.StringIO()
    writer = csv.DictWriter(file, _columns(comparison), lineterminator="\n")
    writer.writeheader()
    writer.writerows(_line(comparison, point) for point in comparison.points)
    return file.getvalue()


def _columns(comparison: Comparison) -> list[str]:
    stages = [f"top1_{name}" for name in comparison.stages]
    cost = ["method", "rate", "quantity", "seed", "run", "original", "data", "macs", "macs_left", "params", "params_left"]
    accuracy = [*stages, "top1", "low", "high", "n", "change"]
    return [*cost, "size_bytes", *accuracy, "training_seconds", "faster", "latency_ms", "batch"]


def _line(comparison: Comparison, point: Point) -> dict[str, object]:
    original = comparison.originals[point.original]
    line = asdict(point) | {"faster": point.ratio, "original": original.model, "data": original.data}
    for name in ("stages", "accuracy", "latency", "settings", "page"):
        del line[name]
    line |= {f"top1_{name}": accuracy.top1 for name, accuracy in point.stages.items()}
    if point.accuracy:
        line |= {name: getattr(point.accuracy, name) for name in ("top1", "low", "high", "n")}
    if point.latency:
        line |= {"latency_ms": point.latency.median_ms, "batch": point.latency.batch}
    return line


def comparison_to_json(comparison: Comparison) -> str:
    """All points and gaps, and the rows of the table."""
    rows = [
        {"method": row.method, "name": row.name, "original": row.original, "quantity": row.quantity, "rate": row.rate}
        | {"seeds": len(row.points), "best": comparison.is_best(row), "runs": [point.run for point in row.points]}
        | {"top1": row.top1 and asdict(row.top1), "macs_left": row.macs_left}
        for row in comparison.rows
    ]
    return json.dumps({"version": 1, **asdict(comparison), "rows": rows}, indent=2, allow_nan=False) + "\n"
