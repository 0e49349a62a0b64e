"""Budgets: limits on the cost and the scores of a finished run, one line of text each.

    [LEVEL:] NAME[@BATCH] <= LIMIT        or >=

A name is a cost, a score of the run (`miou`, `psnr`), or `drop`, the loss of its headline score. `.low` and `.high` are
the bounds of a 95 % interval: `miou.low`, `drop.high`. Which scores there are is known when the report is judged.

A limit is a value with its unit (`params<=5M`, `size<=10MB`, `latency@8<=20ms`, `miou>=70%`, `psnr>=30dB`), or relative to the
same metric of the original or of a baseline, an earlier report (`macs<=50%`, `macs<=baseline+2%`, `miou>=original-1%`,
`psnr>=original-0.3dB`). A percentage is relative for costs, and means percentage points for scores, whose unit it is.

Costs are counted and scores are measured on the same images, so a missed budget is an error. Latency measurements are
noisy, so a missed latency is a warning unless the level of its budget is `error:`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal, cast, get_args

from compressor.errors import UsageError, did_you_mean
from compressor.report import formatting
from compressor.report.formatting import BYTES, COUNTS, MILLISECONDS
from compressor.report.schema import Latency, Profile, Report, headline

Level = Literal["off", "warn", "error"]
LEVELS: tuple[Level, ...] = get_args(Level)
BESIDE = ("original", "baseline")
CLOSE = 0.75  # a name as similar as this to the name of a cost is a misspelt cost; `map` and `mse` are scores

_NUMBER = r"[0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?"
_UNIT = r"[a-z%/]*"
_BUDGET = re.compile(
    r"\s*(?:(?P<level>\w+)\s*:)?\s*(?P<name>\w+)(?:\.(?P<bound>\w+))?\s*(?:@\s*(?P<batch>[0-9]{1,9}))?"
    r"\s*(?P<relation>[<>=]+)\s*(?P<limit>.*?)\s*",
    re.ASCII,
)
_FIGURE = re.compile(rf"({_NUMBER})\s*({_UNIT})", re.ASCII | re.IGNORECASE)
_BESIDE = re.compile(rf"([a-z]\w*)\s*(?:([+-])\s*({_NUMBER})\s*({_UNIT}))?", re.ASCII | re.IGNORECASE)


# Costs that can have a budget -----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Cost:
    """A cost in a report: less is better.

    `figure` takes one of the report's networks, and the batch size (None: the smallest); it returns None if the cost was not
    measured.
    """

    name: str
    example: str
    units: Mapping[str, float]
    written: Callable[[float], str]
    figure: Callable[[Profile, int | None], float | None]
    missing: str = "rerun the compression"  # what to do when it was not measured


def _count(value: float) -> str:
    return formatting.count(math.ceil(value))


def _size(value: float) -> str:
    return formatting.size(math.ceil(value))


def timed_at(network: Profile, batch: int | None) -> Latency | None:
    """At `batch`, or the smallest that was timed; if it was timed with several providers or threads, the one listed first."""
    ways = [latency for latency in network.latency if batch in (None, latency.batch)]
    return min(ways, key=lambda latency: latency.batch, default=None)


def _latency(network: Profile, batch: int | None) -> float | None:
    timed = timed_at(network, batch)
    return timed.median_ms if timed and timed.reliable else None


FILE = "it needs model.onnx: rerun without --no-onnx"
COSTS = {
    cost.name: cost
    for cost in (
        Cost("macs", "macs<=50%", COUNTS, _count, lambda network, _batch: network.macs),
        Cost("params", "params<=5M", COUNTS, _count, lambda network, _batch: network.params),
        Cost("size", "size<=10MB", BYTES, _size, lambda network, _batch: network.size_bytes, FILE),
        Cost("weights", "weights<=4MB", BYTES, _size, lambda network, _batch: network.weight_bytes),
        Cost("latency", "latency<=5ms", MILLISECONDS, formatting.milliseconds, _latency),
    )
}
DROP = "drop"


# Budgets --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Limit:
    """`amount` is an absolute value, or the allowed difference from `beside`.

    Of costs: counts, bytes or ms; a difference is a share. Of scores: with the `unit` that was given; a percentage as a share.
    """

    amount: float
    beside: str | None = None  # "original", "baseline"
    unit: str = ""


@dataclass(frozen=True)
class Budget:
    """One budget."""

    text: str  # as given, without its level and spaces
    name: str
    relation: str  # <= or >=
    limit: Limit
    level: Level
    batch: int | None = None  # of a latency; None: the smallest that was timed
    bound: str | None = None  # of the 95 % interval of a score: low, high

    @property
    def cost(self) -> Cost | None:
        """None for a score."""
        return COSTS.get(self.name)

    @property
    def of(self) -> str:
        """`macs`, `latency@8`, `drop.high`."""
        bound, batch = f".{self.bound}" if self.bound else "", "" if self.batch is None else f"@{self.batch}"
        return f"{self.name}{bound}{batch}"

    @staticmethod
    def parse(text: str) -> Budget:
        """Read `macs<=50%` or `warn: latency@8<=20ms`. Raises UsageError with an example of the syntax."""
        match = _BUDGET.fullmatch(text)
        if match is None:
            raise _refused(text, f"invalid syntax; write it like {_examples()}.")
        level, name, bound, batch, relation, limit = match.groups()
        cost = COSTS.get(name)
        if cost is None and name != DROP and (near := get_close_matches(name, [*COSTS, DROP], n=1, cutoff=CLOSE)):
            raise _refused(text, f"{name!r} is not one of {', '.join([*COSTS, DROP])}; did you mean {near[0]!r}?")
        if level is not None and level not in LEVELS:
            raise _refused(text, f"the level {level!r} is not one of {', '.join(LEVELS)}{did_you_mean(level, LEVELS) or '.'}")
        if batch is not None and name != "latency":
            raise _refused(text, f"only latency takes a batch size; write it like {_example(name)}.")
        if bound is not None and (cost or bound not in ("low", "high")):
            raise _refused(text, f"only .low and .high of a score are bounds of its interval; write it like {_example(name)}.")
        relations = ["<="] if cost or name == DROP else ["<=", ">="]
        if relation not in relations:
            raise _refused(text, f"{name} needs {' or '.join(relations)}; write it like {_example(name)}.")
        return Budget(
            "".join(text[match.start("name") :].split()),
            name,
            relation,
            _limit(limit, cost, name, text),
            cast(Level, level or ("warn" if name == "latency" else "error")),
            int(batch) if batch is not None else None,
            bound,
        )


def _refused(budget: str, why: str) -> UsageError:
    return UsageError(f"budget {formatting.shorten(repr(budget), 80)}: {why}")


def _example(name: str) -> str:
    if name in COSTS:
        return COSTS[name].example
    return f"{name}<=1" if name == DROP else f"{name}>=90%"


def _examples() -> str:
    return ", ".join(map(_example, [*COSTS, DROP, "SCORE"]))


def _limit(text: str, cost: Cost | None, name: str, budget: str) -> Limit:
    """The limit, to the right of `<=`. Raises UsageError."""
    if match := _FIGURE.fullmatch(text):
        number, unit = float(match[1]), match[2]
        limit = _of_score(number, unit) if cost is None else _of_cost(number, unit, cost, budget)
    elif (match := _BESIDE.fullmatch(text)) and not (cost and match[3] and match[4] != "%"):
        limit = _relative(match[1], float(f"{match[2] or ''}{match[3] or 0}"), match[4] or "", name, budget)
    else:
        other = f"{name}<=baseline+2%" if cost or name == DROP else f"{name}>=baseline-2%"
        raise _refused(budget, f"the limit is invalid.\nWrite a value, as in {_example(name)}, or {other}.")
    if not (math.isfinite(limit.amount) and _is_possible(limit, cost)):
        raise _refused(budget, f"the limit is out of range; write it like {_example(name)}.")
    return limit


def _is_possible(limit: Limit, cost: Cost | None) -> bool:
    if cost is None:
        return limit.unit != "%" or abs(limit.amount) <= 1
    return limit.amount > (0 if limit.beside is None else -1)


def _of_score(number: float, unit: str, beside: str | None = None) -> Limit:
    return Limit(number / 100 if unit == "%" else number, beside, unit)


def _of_cost(number: float, unit: str, cost: Cost, budget: str) -> Limit:
    """A value with its unit. Raises UsageError."""
    if unit == "%":
        return Limit(number / 100 - 1, "original")
    if unit.upper() not in cost.units:
        known = [word.lower() if cost.units is MILLISECONDS else word for word in {**cost.units, "%": 0} if word]
        told = f"the unit {unit!r} is not one of" if unit else "a unit is missing, one of"
        near = did_you_mean(unit, known) or f"; write it like {cost.example}."
        raise _refused(budget, f"{told} {', '.join(known)}{near}")
    return Limit(number * cost.units[unit.upper()])


def _relative(beside: str, change: float, unit: str, name: str, budget: str) -> Limit:
    """`original-1%`, `baseline`. Raises UsageError."""
    if beside not in BESIDE:
        near = did_you_mean(beside, BESIDE) or f"; write it like {_example(name)}."
        raise _refused(budget, f"{beside!r} is neither a value nor one of {', '.join(BESIDE)}{near}")
    if beside == "original" and name == DROP:
        raise _refused(budget, f"{name} already compares with the original; write it like {_example(name)}.")
    return Limit(change / 100, beside) if name in COSTS else _of_score(change, unit, beside)


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

    `--no-worse 2%` adds a budget for each cost that was measured in the baseline, and for its headline score. Raises UsageError
    if there is no budget, or a baseline that no budget refers to.
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
    after = baseline.compressed
    costs = [name for name in ("macs", "params", "size", "latency") if COSTS[name].figure(after, None) is not None]
    return [*(f"{name}<=baseline+{text}" for name in costs), *_no_worse_score(text, after)]


def _no_worse_score(text: str, network: Profile) -> list[str]:
    """A score in per cent may be so many points worse, another one so many per cent of its value."""
    score = headline(network.scores)
    if score is None:
        return []
    share = float(text.strip().rstrip("%")) / 100
    change = text if score.unit == "%" else f"{share * abs(score.value):.4g}"
    return [f"{score.name}{'>=baseline-' if score.more_is_better else '<=baseline+'}{change}"]
