"""Budgets: what a finished run may cost and must be able to do, one line of text each, and whether its figures keep to them.

    [LEVEL:] QUANTITY[@BATCH] <= LIMIT        or >=, where more is better

A limit is a figure with its unit (`params<=5M`, `size<=10MB`, `latency@8<=20ms`, `top1>=90%`), or lies beside the same figure
of the original or of a baseline, an earlier report (`macs<=50%`, `macs<=baseline+2%`, `top1>=original-1%`). A percentage of a
cost is a share of it; of accuracies, which are percentages themselves, it is points.

A gate that passes what it cannot see is none: what was not measured counts as missed. Costs are counted and accuracies are of
the same images, so a miss is an error; clocks are noisy, so a missed latency is a warning unless its budget says `error:`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, cast, get_args

from compressor.errors import UsageError, did_you_mean
from compressor.report import figures, summary
from compressor.report.schema import Latency, Profile, Report
from compressor.units import BYTES, COUNTS, MILLISECONDS, POINTS

Level = Literal["off", "warn", "error"]
Status = Literal["ok", "off", "warn", "missed"]
LEVELS: tuple[Level, ...] = get_args(Level)
BESIDE = ("original", "baseline")

_NUMBER = r"[0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?"
_BUDGET = re.compile(
    r"\s*(?:(?P<level>\w+)\s*:)?\s*(?P<name>\w+)\s*(?:@\s*(?P<batch>[0-9]{1,9}))?\s*(?P<relation>[<>=]+)\s*(?P<limit>.*?)\s*",
    re.ASCII,
)
_FIGURE = re.compile(rf"({_NUMBER})\s*([a-z%]*)", re.ASCII | re.IGNORECASE)
_BESIDE = re.compile(rf"([a-z]\w*)\s*(?:([+-])\s*({_NUMBER})\s*%)?", re.ASCII | re.IGNORECASE)


# What can be asked ----------------------------------------------------------------------------------------------------

Figure = Callable[[Report, Profile, int | None], float | None]


@dataclass(frozen=True, eq=False)
class Quantity:
    """A figure of a report.

    `figure` takes the report, the network of it that is meant, and the size of the batch, None for the smallest; None: it was
    not measured. `how` tells how that of the compressed network was measured.
    """

    name: str
    example: str
    units: Mapping[str, float]
    written: Callable[[float], str]
    figure: Figure
    missing: str = "make the run again"  # what to do when it was not measured
    how: Callable[[Report, int | None], str] = lambda _report, _batch: ""
    more_is_better: bool = False
    of_original: bool = True  # whether the original has such a figure

    @property
    def relation(self) -> str:
        return ">=" if self.more_is_better else "<="

    @property
    def is_share(self) -> bool:
        """Whether percentages are points."""
        return "%" in self.units


def _count(value: float) -> str:
    return figures.count(math.ceil(value))


def _size(value: float) -> str:
    return figures.size(math.ceil(value))


def _points(value: float) -> str:
    return f"{100 * value:.2f} points"


def _timed(network: Profile, batch: int | None) -> Latency | None:
    """At `batch`, or the smallest that was timed; where that was done in several ways, the one listed first."""
    ways = [latency for latency in network.latency if batch in (None, latency.batch)]
    return min(ways, key=lambda latency: latency.batch, default=None)


def _latency(_report: Report, network: Profile, batch: int | None) -> float | None:
    timed = _timed(network, batch)
    return timed.median_ms if timed else None


def _how_timed(report: Report, batch: int | None) -> str:
    timed = _timed(report.compressed, batch)
    return f"median of {timed.runs} runs, {figures.plain(figures.timing(timed))}" if timed else ""


def _top1(_report: Report, network: Profile, _batch: int | None) -> float | None:
    return network.accuracy.top1 if network.accuracy else None


def _drop(report: Report, network: Profile, _batch: int | None) -> float | None:
    before, after = report.baseline.accuracy, network.accuracy
    return before.top1 - after.top1 if before and after else None


def _how_seen(report: Report, _batch: int | None) -> str:
    seen = report.compressed.accuracy
    return f"95 % interval {figures.interval(seen)}, {figures.images(seen.n)}" if seen else ""


def _how_lost(report: Report, _batch: int | None) -> str:
    before, after = report.baseline.accuracy, report.compressed.accuracy
    if before is None or after is None:
        return ""
    return f"{figures.percent(before.top1)} -> {figures.percent(after.top1)}, {figures.images(after.n)}"


def _agreement(report: Report, _network: Profile, _batch: int | None) -> float | None:
    return report.fidelity.agreement if report.fidelity else None


def _how_alike(report: Report, _batch: int | None) -> str:
    return f"{report.fidelity.n:,} {figures.plain(report.fidelity.inputs)}" if report.fidelity else ""


DATA = "make the run with --data"
QUANTITIES = {
    quantity.name: quantity
    for quantity in (
        Quantity("macs", "macs<=50%", COUNTS, _count, lambda _report, network, _batch: network.macs),
        Quantity("params", "params<=5M", COUNTS, _count, lambda _report, network, _batch: network.params),
        Quantity("size", "size<=10MB", BYTES, _size, lambda _report, network, _batch: network.size_bytes),
        Quantity("weights", "weights<=4MB", BYTES, _size, lambda _report, network, _batch: network.weight_bytes),
        Quantity("latency", "latency<=5ms", MILLISECONDS, figures.milliseconds, _latency, how=_how_timed),
        Quantity("top1", "top1>=90%", POINTS, figures.percent, _top1, DATA, _how_seen, more_is_better=True),
        Quantity("drop", "drop<=1", {"": 0.01, **POINTS}, _points, _drop, DATA, _how_lost, of_original=False),
        Quantity("agreement", "agreement>=95%", POINTS, figures.percent, _agreement, DATA, _how_alike, True, False),
    )
}


@dataclass(frozen=True)
class Limit:
    """`amount` is the figure itself (accuracies as shares, latencies in ms), or what it may differ `beside` another by."""

    amount: float
    beside: str | None = None  # "original", "baseline"

    def figure(self, quantity: Quantity, other: float) -> float:
        """The limit as a figure, where the one it lies beside is `other`."""
        if self.beside is None:
            return self.amount
        return other + self.amount if quantity.is_share else other * (1 + self.amount)


@dataclass(frozen=True)
class Budget:
    """One line of what is asked."""

    text: str  # as it was written, without its level and spaces
    quantity: Quantity
    limit: Limit
    level: Level
    batch: int | None = None  # of a latency; None: the smallest that was timed

    @staticmethod
    def parse(text: str) -> Budget:
        """Read `macs<=50%` or `warn: latency@8<=20ms`. Raises UsageError, which says how to write it."""
        match = _BUDGET.fullmatch(text)
        if match is None:
            raise _refused(text, f"this was not understood; write it like {_examples()}.")
        level, name, batch, relation, limit = match.groups()
        if name not in QUANTITIES:
            known = ", ".join(QUANTITIES)
            raise _refused(text, f"{name!r} is none of {known}{did_you_mean(name, QUANTITIES) or '.'}")
        quantity = QUANTITIES[name]
        if level is not None and level not in LEVELS:
            raise _refused(text, f"the level {level!r} is none of {', '.join(LEVELS)}{did_you_mean(level, LEVELS) or '.'}")
        if batch is not None and name != "latency":
            raise _refused(text, f"only latency is of a batch; write it like {quantity.example}.")
        if relation != quantity.relation:
            raise _refused(text, f"{name} has limits with {quantity.relation}; write it like {quantity.example}.")
        return Budget(
            "".join(text[match.start("name") :].split()),
            quantity,
            _limit(limit, quantity, text),
            cast(Level, level or ("warn" if name == "latency" else "error")),
            int(batch) if batch else None,
        )


def _refused(budget: str, why: str) -> UsageError:
    return UsageError(f"budget {figures.shorten(repr(budget), 80)}: {why}")


def _examples() -> str:
    return ", ".join(quantity.example for quantity in QUANTITIES.values())


def _limit(text: str, quantity: Quantity, budget: str) -> Limit:
    """What stands behind `<=`. Raises UsageError."""
    if match := _FIGURE.fullmatch(text):
        limit = _absolute(float(match[1]), match[2], quantity, budget)
    elif match := _BESIDE.fullmatch(text):
        limit = _relative(match[1], f"{match[2] or ''}{match[3] or 0}", quantity, budget)
    else:
        other = f"{quantity.name}{quantity.relation}{_beside_baseline(quantity, '2%')}"
        raise _refused(budget, f"the limit was not understood.\nWrite a figure, as in {quantity.example}, or {other}.")
    if not (math.isfinite(limit.amount) and _is_possible(limit, quantity)):
        raise _refused(budget, f"no network has such a figure; write it like {quantity.example}.")
    return limit


def _beside_baseline(quantity: Quantity, percentage: str) -> str:
    """What is that much worse than the baseline."""
    return f"baseline{'-' if quantity.more_is_better else '+'}{percentage}"


def _is_possible(limit: Limit, quantity: Quantity) -> bool:
    if quantity.is_share:
        return abs(limit.amount) <= 1
    return limit.amount > (0 if limit.beside is None else -1)


def _absolute(number: float, unit: str, quantity: Quantity, budget: str) -> Limit:
    """A figure with its unit. Raises UsageError."""
    if unit == "%" and not quantity.is_share:
        return Limit(number / 100 - 1, "original")
    if unit.upper() not in quantity.units:
        known = [word.lower() if quantity.units is MILLISECONDS else word for word in {**quantity.units, "%": 0} if word]
        found = f"the unit {unit!r} is none of" if unit else "a unit is missing, one of"
        near = did_you_mean(unit, known) or f"; write it like {quantity.example}."
        raise _refused(budget, f"{found} {', '.join(known)}{near}")
    return Limit(number * quantity.units[unit.upper()])


def _relative(beside: str, change: str, quantity: Quantity, budget: str) -> Limit:
    """`original-1%`, `baseline`. Raises UsageError."""
    if beside not in BESIDE:
        near = did_you_mean(beside, BESIDE) or f"; write it like {quantity.example}."
        raise _refused(budget, f"{beside!r} is neither a figure nor one of {', '.join(BESIDE)}{near}")
    if beside == "original" and not quantity.of_original:
        raise _refused(budget, f"{quantity.name} compares with the original already; write it like {quantity.example}.")
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
    """All budgets that were given, each once. The options are short for texts: `--max-drop 1` for `drop<=1`, and so on.

    `--no-worse 2%` asks for what the baseline has measured. Raises UsageError when there is no budget, or a baseline alone.
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
            "there is no budget to check: give some, as in --max-drop 1 --budget 'macs<=50%'.\n"
            f"What a budget can be about: {_examples()}."
        )
    beside = {budget.limit.beside for budget in budgets}
    if "baseline" in beside and baseline is None:
        raise UsageError("a budget speaks of a baseline, but there is none: give an earlier report with --baseline.")
    if "baseline" not in beside and baseline is not None:
        raise UsageError("--baseline is given, but no budget speaks of it: add --no-worse 2%, or --budget 'macs<=baseline+2%'.")
    return budgets


def _share(option: str, text: str) -> float:
    """`0.4` or `40%`. Raises UsageError unless it lies between 0 and 1."""
    match = _FIGURE.fullmatch(text.strip())
    share = float(match[1]) / (100 if match[2] == "%" else 1) if match and match[2] in ("", "%") else math.nan
    if not 0 < share < 1:
        raise UsageError(f"{option} is the share of MACs that must be gone, such as 0.4 or 40%; found {text!r}.")
    return share


def _no_worse(text: str, baseline: Report | None) -> list[str]:
    """The budgets of `--no-worse 2%`. Raises UsageError."""
    if not re.fullmatch(rf"\s*{_NUMBER}\s*%\s*", text, re.IGNORECASE):
        raise UsageError(f"--no-worse is a percentage, such as 2%; found {text!r}.")
    if baseline is None:
        raise UsageError("--no-worse compares with an earlier report: give it with --baseline.")
    asked = (QUANTITIES[name] for name in ("macs", "params", "size", "latency", "top1"))
    measured = (one for one in asked if one.figure(baseline, baseline.compressed, None) is not None)
    return [f"{one.name}{one.relation}{_beside_baseline(one, text)}" for one in measured]


# What was found -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """A budget held against a report. `value` and `limit` are None where something was not measured."""

    budget: Budget
    value: float | None
    limit: float | None
    text: str  # in words: one line of ASCII

    @property
    def met(self) -> bool:
        if self.value is None or self.limit is None:
            return False
        if math.isclose(self.value, self.limit, rel_tol=1e-9, abs_tol=1e-12):  # 0.8796 - 0.8696 is more than 0.01
            return True
        return self.value > self.limit if self.budget.quantity.more_is_better else self.value < self.limit

    @property
    def status(self) -> Status:
        if self.budget.level == "off":
            return "off"
        if self.met:
            return "ok"
        return "missed" if self.budget.level == "error" else "warn"

    @property
    def line(self) -> str:
        """`ok      macs 20.2 M <= 50 % of the original (40.6 M): 49.7 %`."""
        return f"{self.status:<6}  {self.text}"


@dataclass(frozen=True)
class Checked:
    """All budgets of a check."""

    findings: list[Finding]

    def having(self, status: Status) -> list[Finding]:
        return [finding for finding in self.findings if finding.status == status]

    @property
    def passed(self) -> bool:
        """Whether no budget is missed whose miss is an error."""
        return not self.having("missed")

    @property
    def verdict(self) -> str:
        """`FAIL: 2 of 4 budgets met, 1 missed, 1 warning`."""
        met, missed, warned, off = (len(self.having(status)) for status in ("ok", "missed", "warn", "off"))
        parts = [f"{met} of {len(self.findings) - off} budgets met"]
        parts += [f"{missed} missed"] if missed else []
        parts += [f"{warned} warning{'s' * (warned > 1)}"] if warned else []
        parts += [f"{off} off"] if off else []
        return f"{'PASS' if self.passed else 'FAIL'}: {', '.join(parts)}"


def check(report: Report, budgets: Iterable[Budget], baseline: Report | None = None) -> Checked:
    """Hold the report of a run against budgets, some of which may speak of the `baseline`."""
    return Checked([_judge(budget, report, baseline) for budget in budgets])


def measured(report: Report) -> dict[str, float]:
    """Every figure of a report's compressed network that can be budgeted and was measured."""
    found = {name: quantity.figure(report, report.compressed, None) for name, quantity in QUANTITIES.items()}
    return {name: value for name, value in found.items() if value is not None}


def _judge(budget: Budget, report: Report, baseline: Report | None) -> Finding:
    quantity, beside = budget.quantity, budget.limit.beside
    value = quantity.figure(report, report.compressed, budget.batch)
    if value is None:
        return Finding(budget, None, None, f"{budget.text}: not measured; {_missing(budget, report)}")
    other = _other(budget, report, baseline)
    if other is None:
        what = " in the same way" if quantity.name == "latency" else ""
        todo = quantity.missing if beside == "original" else "give another --baseline"
        return Finding(budget, value, None, f"{budget.text}: the {beside} was not measured{what}; {todo}")
    asked = f"{_name(budget)} {quantity.written(value)} {quantity.relation} {_asked(budget, other)}"
    found = Finding(budget, value, budget.limit.figure(quantity, other), asked)
    how = quantity.how(report, budget.batch)
    remarks = [_beside(found, other), _excess(found), how, _slowest(found, report), _caveat(budget, report, baseline)]
    told = ", ".join(remark for remark in remarks if remark)
    return replace(found, text=f"{asked}: {told}" if told else asked)


def _other(budget: Budget, report: Report, baseline: Report | None) -> float | None:
    """The figure that the limit lies beside; 0 where it stands alone."""
    if budget.limit.beside is None:
        return 0.0
    of, network = report, report.baseline
    if budget.limit.beside == "baseline":
        assert baseline is not None, "`collect` saw to it"
        of, network = baseline, baseline.compressed
    if timed := _clocked(budget, report):
        other = _alike(network, timed)
        scale = _scale(report, baseline, timed) if of is baseline else None
        return other and other * (scale or 1.0)
    return budget.quantity.figure(of, network, None)


def _clocked(budget: Budget, report: Report) -> Latency | None:
    """What a budget of latency is about."""
    return _timed(report.compressed, budget.batch) if budget.quantity.name == "latency" else None


def _alike(network: Profile, timed: Latency) -> float | None:
    """The median of `network`, timed as `timed` was."""
    ways = summary.timings(network, replace(network, latency=[timed]))
    return next((other.median_ms for other, _ in ways if other), None)


def _scale(report: Report, baseline: Report | None, timed: Latency) -> float | None:
    """How many times as long the same original took in this run as in the baseline's; None if that was another network.

    An original is timed in turns with its small network, a baseline was on another day. Held against the baseline's latency
    times this, a build does not fail because a machine is slower or busier than the last one.
    """
    if baseline is None or _costs(report.baseline) != _costs(baseline.baseline):
        return None
    now, then = _alike(report.baseline, timed), _alike(baseline.baseline, timed)
    return now / then if now and then else None


def _costs(network: Profile) -> tuple[int, int]:
    return network.macs, network.params


# In words -------------------------------------------------------------------------------------------------------------


def _missing(budget: Budget, report: Report) -> str:
    """What to do about a figure that is not there."""
    batches = sorted({latency.batch for latency in report.compressed.latency})
    if budget.batch is None or not batches:
        return budget.quantity.missing
    return f"write latency@N with a batch that was timed: {', '.join(map(str, batches[:9]))}"


def _name(budget: Budget) -> str:
    return budget.quantity.name if budget.batch is None else f"{budget.quantity.name}@{budget.batch}"


def _asked(budget: Budget, other: float) -> str:
    """`5.00 M`, `50 % of the original (40.6 M)`, `baseline (20.5 M) + 2 %`."""
    limit, written = budget.limit, budget.quantity.written
    if limit.beside is None:
        return written(limit.amount)
    if limit.beside == "original" and not budget.quantity.is_share:
        return f"{100 * (1 + limit.amount):g} % of the original ({written(other)})"
    change = f" {'-' if limit.amount < 0 else '+'} {abs(100 * limit.amount):g} %" if limit.amount else ""
    return f"{limit.beside} ({written(other)}){change}"


def _beside(found: Finding, other: float) -> str:
    """How the figure stands to the one that its limit lies beside."""
    quantity, beside = found.budget.quantity, found.budget.limit.beside
    assert found.value is not None
    if beside is None or not (other or quantity.is_share):
        return ""
    if quantity.is_share:
        return f"{figures.points(found.value - other)} points"
    return figures.share(found.value / other) if beside == "original" else figures.change(found.value / other)


def _excess(found: Finding) -> str:
    """By how much the budget is missed: with three digits, however near the two lie."""
    if found.met or found.value is None or found.limit is None:
        return ""
    quantity, much = found.budget.quantity, abs(found.value - found.limit)
    written = f"{figures.three_digits(100 * much)} points" if quantity.is_share else quantity.written(much)
    return f"{'short' if quantity.more_is_better else 'over'} by {written}"


def _slowest(found: Finding, report: Report) -> str:
    """Of a latency that is missed: whether it may be the noise."""
    timed = _clocked(found.budget, report)
    return f"p90 {figures.milliseconds(timed.p90_ms)}" if timed and not found.met else ""


def _caveat(budget: Budget, report: Report, baseline: Report | None) -> str:
    """What else is not the same in the report and the baseline."""
    if budget.limit.beside != "baseline" or baseline is None:
        return ""
    if timed := _clocked(budget, report):
        if scale := _scale(report, baseline, timed):
            return f"the baseline's time x {scale:.2f}, as the original's"
        return "not scaled: the originals differ or were not timed alike"
    now, then = report.compressed.accuracy, baseline.compressed.accuracy
    return f"the baseline's {figures.images(then.n)}" if budget.quantity.is_share and now and then and now.n != then.n else ""
