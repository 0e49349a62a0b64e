"""Comparison of finished runs: reports in, rows of a table out. Nothing is run here.

Every value comes from a run's own report. Over several seeds it is the mean, with the standard deviation of the sample; of a
single run it is the measurement with its interval. What was not measured is `None`, and an empty cell. Runs may have different
originals, different settings, and different headline scores: the notes below the table list them.
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
from compressor.report.schema import Latency, Report, Score, headline
from compressor.report.summary import quantity, stage_scores, timings

NOT_OF_THE_CUT = {"original", "fine-tuned", "trained", "ONNX", "PyTorch"}  # all other stages are before fine-tuning
EMPTY = "-"
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
    stages: dict[str, Score]  # after compression and before fine-tuning, by the name of the stage
    score: Score | None  # the headline score of the final model, measured with ONNX Runtime
    change: float | None  # of the score from the original, on the same images
    training_seconds: float | None
    faster: dict[str, float]  # by batch size: the original's median latency / this one's
    latency: Latency | None  # at the smallest batch that was timed interleaved with the original

    @staticmethod
    def of(report: Report, run: str, page: str, original: int) -> Point:
        """The values of `report`, for the run named `run`."""
        score = headline(report.compressed.scores)
        change = score and report.change.scores.get(score.name)
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
            {stage.name: score for stage, score in stage_scores(report) if stage.name not in NOT_OF_THE_CUT},
            score,
            change.value if change else None,
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
        return self.original, self.method, self.quantity, self.rate, kind(self.score), tuple(settings)


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
    score: Score | None  # the headline

    @staticmethod
    def of(report: Report) -> Original:
        """The original in `report`."""
        before = report.baseline
        score = headline(before.scores)
        return Original(report.model, report.arch, report.data, before.macs, before.params, before.size_bytes, score)

    @property
    def identity(self) -> tuple[object, ...]:
        """Equal for one network on one set of test images, regardless of the directory that the runs were started from."""
        measured = self.score and (self.score.name, self.score.unit, self.score.value, self.score.n)
        return PurePath(self.model).name, self.data, self.macs, self.params, measured


def kind(score: Score | None) -> tuple[str, str] | None:
    """Name and unit: equal for scores that can be compared."""
    return None if score is None else (score.name, score.unit)


@dataclass(frozen=True)
class Spread:
    """A score over seeds; `low` to `high` is one standard deviation around the mean, or the interval of a single run."""

    mean: float
    low: float  # the mean itself for a single run without an interval
    high: float
    deviation: float | None  # None: a single run
    n: int  # test images
    of: Score  # of the first run

    @staticmethod
    def over(measured: Sequence[Score]) -> Spread | None:
        """None when nothing was measured."""
        if not measured:
            return None
        first = measured[0]
        if len(measured) == 1:
            low, high = (first.value if bound is None else bound for bound in (first.low, first.high))
            return Spread(first.value, low, high, None, first.n, first)
        values = [score.value for score in measured if kind(score) == kind(first)]
        mean, deviation = fmean(values), stdev(values) if len(values) > 1 else 0.0
        return Spread(mean, mean - deviation, mean + deviation, deviation, first.n, first)

    @property
    def rank(self) -> float:
        """The mean, counted so that more is better."""
        return self.of.sign * self.mean

    def __str__(self) -> str:
        """`87.10 % [86.4, 87.7]`, or `87.10 +- 0.21 %`."""
        if self.deviation is None:
            return f"{formatting.score(self.of)} {formatting.interval(self.of)}".rstrip()
        mean, deviation = (f"{formatting.scaled(value, self.of):.{self.of.places}f}" for value in (self.mean, self.deviation))
        return f"{mean} +- {deviation} {self.of.unit}".rstrip()


@dataclass(frozen=True)
class Images:
    """What a score was measured on, and which one it is: scores are comparable if these are equal."""

    data: str | None
    name: str
    unit: str
    n: int

    @staticmethod
    def of(original: Original, score: Score) -> Images:
        """Of a score of a run that started from `original`."""
        return Images(original.data, score.name, score.unit, score.n)


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
    def score(self) -> Spread | None:
        return Spread.over([point.score for point in self.points if point.score])

    @property
    def macs_left(self) -> float | None:
        return self.mean(lambda point: point.macs_left)

    def stage(self, name: str) -> Spread | None:
        """The score at the stage `name`."""
        return Spread.over([point.stages[name] for point in self.points if name in point.stages])

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
        """Sorted by original, then by ascending rate, then from the best score to the worst."""
        rows = list(self._rows())
        often = Counter(row.key for row in rows)
        for place, row in enumerate(rows):
            runs = ", ".join(point.run for point in row.points)
            rows[place] = replace(row, name=row.method if often[row.key] == 1 else f"{row.method} ({runs})")
        return sorted(rows, key=lambda row: (row.original, row.rate, -row.score.rank if row.score else 0.0, row.name))

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
    def labels(self) -> list[str]:
        """The labels of all headline scores."""
        return list(dict.fromkeys(point.score.label for point in self.points if point.score))

    @property
    def names(self) -> list[str]:
        """Their names."""
        return list(dict.fromkeys(point.score.name for point in self.points if point.score))

    @property
    def test_sets(self) -> list[Images]:
        """What the scores were measured on. If there is only one, they are comparable."""
        measured = (Images.of(self.originals[point.original], point.score) for point in self.points if point.score)
        return list(dict.fromkeys(measured))

    def is_best(self, row: Row) -> bool:
        """Whether its mean score is the best at this rate; false if there is no other row at this rate."""
        if row.score is None:
            return False
        asked = row.original, row.quantity, row.rate, kind(row.score.of)
        rivals = [
            other.score.rank
            for other in self.rows
            if other.score and (other.original, other.quantity, other.rate, kind(other.score.of)) == asked
        ]
        return len(rivals) > 1 and row.score.rank == max(rivals)


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
    return ["method", *which, "target", score_heading(comparison), "change", *cost, *comparison.stages, "seeds"]


def score_heading(comparison: Comparison) -> str:
    """The column of the headline score; its cells name the score if the runs have different ones."""
    return comparison.labels[0] if len(comparison.labels) == 1 else "score"


def bold(comparison: Comparison) -> tuple[str, str]:
    """The columns that are bold in the best row."""
    return "method", score_heading(comparison)


def cells(comparison: Comparison, row: Row) -> list[str]:
    """A row as text."""
    params_left, change, score = row.mean(lambda point: point.params_left), row.mean(lambda point: point.change), row.score
    seconds, faster = row.mean(lambda point: point.training_seconds), row.mean(lambda point: point.ratio)
    size = row.mean(lambda point: point.size_bytes)
    label = f"{score.of.label} " if score and len(comparison.labels) > 1 else ""
    return [
        row.name,
        *([str(row.original + 1)] if len(comparison.originals) > 1 else []),
        asked(row),
        f"{label}{score or EMPTY}",
        EMPTY if change is None or score is None else formatting.signed(change, score.of),
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
    """The costs and the score of an original."""
    size = [] if original.size_bytes is None else [f"{formatting.size(original.size_bytes)} as ONNX"]
    cost = [f"{formatting.count(original.macs)} MACs", f"{formatting.count(original.params)} parameters", *size]
    if score := original.score:
        cost.append(f"{score.label} {formatting.score(score)} {formatting.interval(score)}".rstrip())
    return ", ".join(cost)


def notes(comparison: Comparison) -> list[str]:
    """The notes below the table."""
    if not comparison.originals:
        return ["No run has finished."]
    return [*_about_originals(comparison), *_about_scores(comparison), *_about_terms(comparison), *_about_time(comparison)]


def _about_originals(comparison: Comparison) -> list[str]:
    first, *more = comparison.originals
    if not more:
        return [f"The original: {told(first)}."]
    listed = [
        f"Original {number}: {original.model} ({original.arch}), {original.data or 'without data'}: {told(original)}."
        for number, original in enumerate(comparison.originals, 1)
    ]
    return [*listed, "The runs have different originals: reductions, change and speedup are relative to each run's own."]


def _about_scores(comparison: Comparison) -> list[str]:
    sets = comparison.test_sets
    if not sets:
        return ["Scores were not measured: the runs had no --data."]
    name, where = score_heading(comparison), "on each run's own test images"
    if len(sets) == 1:
        where = f"on the same test images in all runs ({formatting.images(sets[0].n)})"
    return [
        *_about_sets(comparison),
        f"{formatting.title(name)} of the final model is measured {where} with ONNX Runtime: the mean over seeds +- the "
        f"standard deviation, or a single run with its 95 % interval; change is {_unit_of_change(comparison)} from the "
        f"original. Columns named after a stage are {name} before fine-tuning.",
        "Bold: the best mean at each target; where intervals overlap, the difference may be due to chance.",
    ]


def _about_sets(comparison: Comparison) -> list[str]:
    """What cannot be compared."""
    sets, label, found = comparison.test_sets, score_heading(comparison), []
    if len({(one.name, one.unit) for one in sets}) > 1:
        found.append(f"The runs have different scores, which are not comparable: {', '.join(comparison.labels)}.")
    if len({(one.data, one.n) for one in sets}) > 1:
        names = "; ".join(dict.fromkeys(f"{one.data}, {formatting.images(one.n)}" for one in sets))
        found.append(f"The test images differ: {label} on one set is not comparable with {label} on another ({names}).")
    return found


def _unit_of_change(comparison: Comparison) -> str:
    scores = [point.score for point in comparison.points if point.score]
    units = dict.fromkeys("percentage points" if score.unit == "%" else score.unit for score in scores)
    return f"in {' or '.join(units)}" if all(units) else "the difference"


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
    stages = [f"{name}_{stage}" for name in comparison.names for stage in comparison.stages]
    cost = ["method", "rate", "quantity", "seed", "run", "original", "data", "macs", "macs_left", "params", "params_left"]
    scores = [*stages, *comparison.names, "low", "high", "n", "change"]
    return list(dict.fromkeys([*cost, "size_bytes", *scores, "training_seconds", "faster", "latency_ms", "batch"]))


def _line(comparison: Comparison, point: Point) -> dict[str, object]:
    original = comparison.originals[point.original]
    line = asdict(point) | {"faster": point.ratio, "original": original.model, "data": original.data}
    for name in ("stages", "score", "latency", "settings", "page"):
        del line[name]
    if score := point.score:
        line |= {f"{score.name}_{stage}": own.value for stage, own in point.stages.items() if kind(own) == kind(score)}
        line |= {score.name: score.value, "low": score.low, "high": score.high, "n": score.n}
    if point.latency:
        line |= {"latency_ms": point.latency.median_ms, "batch": point.latency.batch}
    return line


def comparison_to_json(comparison: Comparison) -> str:
    """All points and gaps, and the rows of the table: `score` is the name of a row's score, under which it stands."""
    rows = [
        (_spread_to_json(row.score) if row.score else {"score": None})
        | {"method": row.method, "name": row.name, "original": row.original, "quantity": row.quantity, "rate": row.rate}
        | {"seeds": len(row.points), "best": comparison.is_best(row), "runs": [point.run for point in row.points]}
        | {"macs_left": row.macs_left}
        for row in comparison.rows
    ]
    return json.dumps({"version": 2, **asdict(comparison), "rows": rows}, indent=2, allow_nan=False) + "\n"


def _spread_to_json(spread: Spread) -> dict[str, object]:
    numbers = {name: getattr(spread, name) for name in ("mean", "low", "high", "deviation", "n")}
    return {spread.of.name: numbers, "score": spread.of.name}
