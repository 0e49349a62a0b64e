"""Check the costs in a report against budgets."""

from __future__ import annotations

from dataclasses import replace

from compressor.report import formatting, summary
from compressor.report.budgets import Budget, Cost, Limit, timed_at
from compressor.report.finding import Finding
from compressor.report.schema import Latency, Profile, Report


def judge(budget: Budget, report: Report, baseline: Report | None) -> Finding:
    """The finding on a budget that limits a cost."""
    cost, beside = budget.cost, budget.limit.beside
    assert cost is not None
    value = cost.figure(report.compressed, budget.batch)
    if value is None:
        return Finding(budget, None, None, f"{budget.text}: not measured; {_missing(budget, cost, report)}")
    other = _other(budget, cost, report, baseline)
    if other is None:
        what = " in the same way" if cost.name == "latency" else ""
        todo = cost.missing if beside == "original" else "use another --baseline"
        return Finding(budget, value, None, f"{budget.text}: the {beside} was not measured{what}; {todo}")
    asked = f"{budget.of} {cost.written(value)} {budget.relation} {_asked(budget.limit, cost, other)}"
    limit = budget.limit.amount if beside is None else other * (1 + budget.limit.amount)
    found = Finding(budget, value, limit, asked)
    remarks = [_beside(found, value, other), _excess(found, cost, value, limit), *_timing(found, report, baseline)]
    told = ", ".join(remark for remark in remarks if remark)
    return replace(found, text=f"{asked}: {told}" if told else asked)


def _other(budget: Budget, cost: Cost, report: Report, baseline: Report | None) -> float | None:
    """The value that the limit is relative to; 0 for an absolute limit."""
    if budget.limit.beside is None:
        return 0.0
    network = report.baseline
    if budget.limit.beside == "baseline":
        assert baseline is not None, "`collect` saw to it"
        network = baseline.compressed
    if timed := _latency_of(budget, report):
        other = _alike(network, timed)
        scale = _clock_ratio(report, baseline, timed) if budget.limit.beside == "baseline" else None
        return other and other * (scale or 1.0)
    return cost.figure(network, None)


def _latency_of(budget: Budget, report: Report) -> Latency | None:
    """The latency that a latency budget refers to; None for other budgets."""
    return timed_at(report.compressed, budget.batch) if budget.name == "latency" else None


def _alike(network: Profile, timed: Latency) -> float | None:
    """The median latency of `network` at the batch size, provider and threads of `timed`; None if it is not reliable."""
    ways = summary.timings(network, replace(network, latency=[timed]))
    return next((other.median_ms for other, _ in ways if other and other.reliable), None)


def _clock_ratio(report: Report, baseline: Report | None, timed: Latency) -> float | None:
    """The original's latency in this run over that in the baseline; None if the originals are different networks.

    The original is timed interleaved with the compressed network, but the baseline was timed on another day. The baseline's
    latency is scaled by this ratio, so that a build does not fail because the machine is slower or busier than the last one.
    """
    if baseline is None or _costs(report.baseline) != _costs(baseline.baseline):
        return None
    now, then = _alike(report.baseline, timed), _alike(baseline.baseline, timed)
    return now / then if now and then else None


def _costs(network: Profile) -> tuple[int, int]:
    return network.macs, network.params


# Text of a finding ----------------------------------------------------------------------------------------------------


def _missing(budget: Budget, cost: Cost, report: Report) -> str:
    """What to do about a cost that was not measured."""
    timed = _latency_of(budget, report)
    if timed is not None and not timed.reliable:
        return f"{formatting.unreliable(timed)}: measure on a machine that is not busy"
    batches = sorted({latency.batch for latency in report.compressed.latency})
    if budget.batch is None or not batches:
        return cost.missing
    return f"use latency@N with a batch size that was timed: {', '.join(map(str, batches[:9]))}"


def _asked(limit: Limit, cost: Cost, other: float) -> str:
    """`5.00 M`, `50 % of the original (40.6 M)`, `baseline (20.5 M) + 2 %`."""
    if limit.beside is None:
        return cost.written(limit.amount)
    if limit.beside == "original":
        return f"{100 * (1 + limit.amount):g} % of the original ({cost.written(other)})"
    change = f" {'-' if limit.amount < 0 else '+'} {abs(100 * limit.amount):g} %" if limit.amount else ""
    return f"{limit.beside} ({cost.written(other)}){change}"


def _beside(found: Finding, value: float, other: float) -> str:
    """The value relative to the one that its limit refers to."""
    beside = found.budget.limit.beside
    if beside is None or not other:
        return ""
    return formatting.share(value / other) if beside == "original" else formatting.change(value / other)


def _excess(found: Finding, cost: Cost, value: float, limit: float) -> str:
    """By how much the budget is missed, with three significant digits."""
    return "" if found.met else f"over by {cost.written(value - limit)}"


def _timing(found: Finding, report: Report, baseline: Report | None) -> list[str]:
    """How a latency was measured; of a missed one its 90th percentile, which shows how noisy the measurement is."""
    timed = _latency_of(found.budget, report)
    if timed is None:
        return []
    told = [f"median of {timed.runs} runs, {formatting.plain(formatting.timing(timed))}"]
    told += [] if found.met else [f"p90 {formatting.milliseconds(timed.p90_ms)}"]
    if found.budget.limit.beside != "baseline":
        return told
    if scale := _clock_ratio(report, baseline, timed):
        return [*told, f"baseline latency scaled by {scale:.2f}, the ratio of the originals' latencies"]
    return [*told, "baseline latency not scaled: the originals differ or were not timed in the same way"]
