"""Budgets: limits on the cost and the accuracy of a finished run, one line of text each.

    [LEVEL:] QUANTITY[@BATCH] <= LIMIT        or >=, where more is better

A limit is a value with its unit (`params<=5M`, `size<=10MB`, `latency@8<=20ms`, `top1>=90%`), or relative to the same metric
of the original or of a baseline, an earlier report (`macs<=50%`, `macs<=baseline+2%`, `top1>=original-1%`). A percentage is
relative for costs, and means percentage points for accuracies, which are percentages themselves.

Costs are counted and accuracies are measured on the same images, so a missed budget is an error. Latency measurements are
noisy, so a missed latency is a warning unless the level of its budget is `error:`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, cast, get_args

from compressor.errors import UsageError, did_you_mean
from compressor.report import formatting
from compressor.report.formatting import BYTES, COUNTS, MILLISECONDS, POINTS
from compressor.report.schema import Latency, Profile, Report

Level = Literal["off", "warn", "error"]
LEVELS: tuple[Level, ...] = get_args(Level)
BESIDE = ("original", "baseline")

_NUMBER = r"[0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?"
_BUDGET = re.compile(
    r"\s*(?:(?P<level>\w+)\s*:)?\s*(?P<name>\w+)\s*(?:@\s*(?P<batch>[0-9]{1,9}))?\s*(?P<relation>[<>=]+)\s*(?P<limit>.*?)\s*",
    re.ASCII,
)
_FIGURE = re.compile(rf"({_NUMBER})\s*([a-z%]*)", re.ASCII | re.IGNORECASE)
_BESIDE = re.compile(rf"([a-z]\w*)\s*(?:([+-])\s*({_NUMBER})\s*%)?", re.ASCII | re.IGNORECASE)


# Metrics that can have a budget ---------------------------------------------------------------------------------------

Figure = Callable[[Report, Profile, int | None], float | None]


@dataclass(frozen=True, eq=False)
class Quantity:
    """A metric of a report.

    `figure` takes the report, one of its networks, and the batch size (None: the smallest); it returns None if the metric was
    not measured. `how` describes how it was measured for the compressed network.
    """

    name: str
    example: str
    units: Mapping[str, float]
    written: Callable[[float], str]
    figure: Figure
    missing: str = "rerun the compression"  # what to do when it was not measured
    how: Callable[[Report, int | None], str] = lambda _report, _batch: ""
    more_is_better: bool = False
    of_original: bool = True  # whether the metric exists for the original

    @property
    def relation(self) -> str:
        return ">=" if self.more_is_better else "<="

    @property
    def is_share(self) -> bool:
        """Whether percentages are percentage points."""
        return "%" in self.units


def _count(value: float) -> str:
    return formatting.count(math.ceil(value))


def _size(value: float) -> str:
    return formatting.size(math.ceil(value))


def _points(value: float) -> str:
    return f"{100 * value:.2f} points"


def timed_at(network: Profile, batch: int | None) -> Latency | None:
    """At `batch`, or the smallest that was timed; if it was timed with several providers or threads, the one listed first."""
    ways = [latency for latency in network.latency if batch in (None, latency.batch)]
    return min(ways, key=lambda latency: latency.batch, default=None)


def _latency(_report: Report, network: Profile, batch: int | None) -> float | None:
    timed = timed_at(network, batch)
    return timed.median_ms if timed else None


def _how_timed(report: Report, batch: int | None) -> str:
    timed = timed_at(report.compressed, batch)
    return f"median of {timed.runs} runs, {formatting.plain(formatting.timing(timed))}" if timed else ""


def _top1(_report: Report, network: Profile, _batch: int | None) -> float | None:
    return network.accuracy.top1 if network.accuracy else None


def _drop(report: Report, network: Profile, _batch: int | None) -> float | None:
    before, after = report.baseline.accuracy, network.accuracy
    return before.top1 - after.top1 if before and after else None


def _how_seen(report: Report, _batch: int | None) -> str:
    seen = report.compressed.accuracy
    return f"95 % interval {formatting.interval(seen)}, {formatting.images(seen.n)}" if seen else ""


def _how_lost(report: Report, _batch: int | None) -> str:
    before, after = report.baseline.accuracy, report.compressed.accuracy
    if before is None or after is None:
        return ""
    return f"{formatting.percent(before.top1)} -> {formatting.percent(after.top1)}, {formatting.images(after.n)}"


def _agreement(report: Report, _network: Profile, _batch: int | None) -> float | None:
    return report.fidelity.agreement if report.fidelity else None


def _how_alike(report: Report, _batch: int | None) -> str:
    return f"{report.fidelity.n:,} {formatting.plain(report.fidelity.inputs)}" if report.fidelity else ""


DATA, FILE = "rerun with --data", "it needs model.onnx: rerun without --no-onnx"
QUANTITIES = {
    quantity.name: quantity
    for quantity in (
        Quantity("macs", "macs<=50%", COUNTS, _count, lambda _report, network, _batch: network.macs),
        Quantity("params", "params<=5M", COUNTS, _count, lambda _report, network, _batch: network.params),
        Quantity("size", "size<=10MB", BYTES, _size, lambda _report, network, _batch: network.size_bytes, FILE),
        Quantity("weights", "weights<=4MB", BYTES, _size, lambda _report, network, _batch: network.weight_bytes),
        Quantity("latency", "latency<=5ms", MILLISECONDS, formatting.milliseconds, _latency, how=_how_timed),
        Quantity("top1", "top1>=90%", POINTS, formatting.percent, _top1, DATA, _how_seen, more_is_better=True),
        Quantity("drop", "drop<=1", {"": 0.01, **POINTS}, _points, _drop, DATA, _how_lost, of_original=False),
        Quantity("agreement", "agreement>=95%", POINTS, formatting.percent, _agreement, DATA, _how_alike, True, False),
    )
}


@dataclass(frozen=True)
class Limit:
    """`amount` is an absolute value (accuracies as shares, latencies in ms), or the allowed difference from `beside`."""

    amount: float
    beside: str | None = None  # "original", "baseline"

    def figure(self, quantity: Quantity, other: float) -> float:
        """The limit as an absolute value; `other` is the value that it is relative to."""
        if self.beside is None:
            return self.amount
        return other + self.amount if quantity.is_share else other * (1 + self.amount)


@dataclass(frozen=True)
class Budget:
    """One budget."""

    text: str  # as given, without its level and spaces
    quantity: Quantity
    limit: Limit
    level: Level
    batch: int | None = None  # of a latency; None: the smallest that was timed

    @staticmethod
    def parse(text: str) -> Budget:
        """Read `macs<=50%` or `warn: latency@8<=20ms`. Raises UsageError with an example of the syntax."""
        match = _BUDGET.fullmatch(text)
        if match is None:
            raise _refused(text, f"invalid syntax; write it like {_examples()}.")
        level, name, batch, relation, limit = match.groups()
        if name not in QUANTITIES:
            known = ", ".join(QUANTITIES)
            raise _refused(text, f"{name!r} is not one of {known}{did_you_mean(name, QUANTITIES) or '.'}")
        quantity = QUANTITIES[name]
        if level is not None and level not in LEVELS:
            raise _refused(text, f"the level {level!r} is not one of {', '.join(LEVELS)}{did_you_mean(level, LEVELS) or '.'}")
        if batch is not None and name != "latency":
            raise _refused(text, f"only latency takes a batch size; write it like {quantity.example}.")
        if relation != quantity.relation:
            raise _refused(text, f"{name} needs {quantity.relation}; write it like {quantity.example}.")
        return Budget(
            "".join(text[match.start("name") :].split()),
            quantity,
            _limit(limit, quantity, text),
            cast(Level, level or ("warn" if name == "latency" else "error")),
            int(batch) if batch else None,
        )


def _refused(budget: str, why: str) -> UsageError:
    return UsageError(f"budget {formatting.shorten(repr(budget), 80)}: {why}")


def _examples() -> str:
    return ", ".join(quantity.example for quantity in QUANTITIES.values())


def _limit(text: str, quantity: Quantity, budget: str) -> Limit:
    """The limit, to the right of `<=`. Raises UsageError."""
    if match := _FIGURE.fullmatch(text):
        limit = _absolute(float(match[1]), match[2], quantity, budget)
    elif match := _BESIDE.fullmatch(text):
        limit = _relative(match[1], f"{match[2] or ''}{match[3] or 0}", quantity, budget)
    else:
        other = f"{quantity.name}{quantity.relation}{_beside_baseline(quantity, '2%')}"
        raise _refused(budget, f"the limit is invalid.\nWrite a value, as in {quantity.example}, or {other}.")
    if not (math.isfinite(limit.amount) and _is_possible(limit, quantity)):
        raise _refused(budget, f"the limit is out of range; write it like {quantity.example}.")
    return limit


def _beside_baseline(quantity: Quantity, percentage: str) -> str:
    """A limit that much worse than the baseline."""
    return f"baseline{'-' if quantity.more_is_better else '+'}{percentage}"


def _is_possible(limit: Limit, quantity: Quantity) -> bool:
    if quantity.is_share:
        return abs(limit.amount) <= 1
    return limit.amount > (0 if limit.beside is None else -1)


def _absolute(number: float, unit: str, quantity: Quantity, budget: str) -> Limit:
    """A value with its unit. Raises UsageError."""
    if unit == "%" and not quantity.is_share:
        return Limit(number / 100 - 1, "original")
    if unit.upper() not in quantity.units:
        known = [word.lower() if quantity.units is MILLISECONDS else word for word in {**quantity.units, "%": 0} if word]
        found = f"the unit {unit!r} is not one of" if unit else "a unit is missing, one of"
        near = did_you_mean(unit, known) or f"; write it like {quantity.example}."
        raise _refused(budget, f"{found} {', '.join(known)}{near}")
    return Limit(number * quantity.units[unit.upper()])


def _relative(beside: str, change: str, quantity: Quantity, budget: str) -> Limit:
    """`original-1%`, `baseline`. Raises UsageError."""
    if beside not in BESIDE:
        near = did_you_mean(beside, BESIDE) or f"; write it like {quantity.example}."
        raise _refused(budget, f"{beside!r} is neither a value nor one of {', '.join(BESIDE)}{near}")
    if beside == "original" and not quantity.of_original:
        raise _refused(budget, f"{quantity.name} already compares with the original; write it like {quantity.example}.")
    return Limit(float(change) / 100, beside)


def collect(
    texts: Iterable[str] = (),
    *,
    max_drop: str | None = None,
    min_cut: str | None = None,
    max_latency: str | None = None,
    max_size: str | None = None,
    max_params: str | None = None,
    max_macs: str | None = None,
    no_worse: str | None = None,
    baseline: Report | None = None,
) -> list[Budget]:
    """All budgets that were given, without duplicates. The options are shorthand: `--max-drop 1` for `drop<=1`, and so on.

    `--no-worse 2%` adds a budget for each of its metrics that was measured in the baseline. Raises UsageError if there is no
    budget, or a baseline that no budget refers to.
    """
    limits = {"drop": max_drop, "latency": max_latency, "size": max_size, "params": max_params, "macs": max_macs}
    found = [*texts, *(f"{name}<={limit}" for name, limit in limits.items() if limit is not None)]
    if min_cut is not None:
        found.append(f"macs<={100 * (1 - _share('--min-cut', min_cut)):.10g}%")
    if no_worse is not None:
        found += _no_worse(no_worse, baseline)
    budgets = list(dict.fromkeys(map(Budget.parse, found)))
    if not budgets:
        raise UsageError(
            "no budget was given: add one, for example --max-drop 1 or --budget 'macs<=50%'.\n"
            f"Available budgets: {_examples()}."
        )
    beside = {budget.limit.beside for budget in budgets}
    if "baseline" in beside and baseline is None:
        raise UsageError("a budget refers to a baseline, but none was given: add --baseline with an earlier run.")
    if "baseline" not in beside and baseline is not None:
        raise UsageError("--baseline is given, but no budget refers to it: add --no-worse 2%, or --budget 'macs<=baseline+2%'.")
    return budgets


def _share(option: str, text: str) -> float:
    """`0.4` or `40%`. Raises UsageError unless it is between 0 and 1."""
    match = _FIGURE.fullmatch(text.strip())
    share = float(match[1]) / (100 if match[2] == "%" else 1) if match and match[2] in ("", "%") else math.nan
    if not 0 < share < 1:
        raise UsageError(f"{option} is the minimum fraction of the MACs removed, such as 0.4 or 40%; found {text!r}.")
    return share


def _no_worse(text: str, baseline: Report | None) -> list[str]:
    """The budgets of `--no-worse 2%`. Raises UsageError."""
    if not re.fullmatch(rf"\s*{_NUMBER}\s*%\s*", text, re.IGNORECASE):
        raise UsageError(f"--no-worse is a percentage, such as 2%; found {text!r}.")
    if baseline is None:
        raise UsageError("--no-worse compares with a baseline: add --baseline with an earlier run.")
    asked = (QUANTITIES[name] for name in ("macs", "params", "size", "latency", "top1"))
    measured = (one for one in asked if one.figure(baseline, baseline.compressed, None) is not None)
    return [f"{one.name}{one.relation}{_beside_baseline(one, text)}" for one in measured]
