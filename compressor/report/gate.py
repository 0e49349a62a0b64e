"""Check a report against budgets; each finding is one line of text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from compressor.report import formatting
from compressor.report.budgets import QUANTITIES, Budget
from compressor.report.finding import Checked, Finding, clock_ratio, figure_beside, latency_of
from compressor.report.schema import Report


def check(report: Report, budgets: Iterable[Budget], baseline: Report | None = None) -> Checked:
    """Check the report of a run against budgets, some of which may refer to the `baseline`."""
    return Checked([_judge(budget, report, baseline) for budget in budgets])


def measured(report: Report) -> dict[str, float]:
    """Every metric of the compressed network that can have a budget and was measured."""
    found = {name: quantity.figure(report, report.compressed, None) for name, quantity in QUANTITIES.items()}
    return {name: value for name, value in found.items() if value is not None}


def _judge(budget: Budget, report: Report, baseline: Report | None) -> Finding:
    quantity, beside = budget.quantity, budget.limit.beside
    value = quantity.figure(report, report.compressed, budget.batch)
    if value is None:
        return Finding(budget, None, None, f"{budget.text}: not measured; {_missing(budget, report)}")
    other = figure_beside(budget, report, baseline)
    if other is None:
        what = " in the same way" if quantity.name == "latency" else ""
        todo = quantity.missing if beside == "original" else "use another --baseline"
        return Finding(budget, value, None, f"{budget.text}: the {beside} was not measured{what}; {todo}")
    asked = f"{_name(budget)} {quantity.written(value)} {quantity.relation} {_asked(budget, other)}"
    found = Finding(budget, value, budget.limit.figure(quantity, other), asked)
    how = quantity.how(report, budget.batch)
    remarks = [_beside(found, other), _excess(found), how, _slowest(found, report), _caveat(budget, report, baseline)]
    told = ", ".join(remark for remark in remarks if remark)
    return replace(found, text=f"{asked}: {told}" if told else asked)


# Text of a finding ----------------------------------------------------------------------------------------------------


def _missing(budget: Budget, report: Report) -> str:
    """What to do about a metric that was not measured."""
    batches = sorted({latency.batch for latency in report.compressed.latency})
    if budget.batch is None or not batches:
        return budget.quantity.missing
    return f"use latency@N with a batch size that was timed: {', '.join(map(str, batches[:9]))}"


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
    """The value relative to the one that its limit refers to."""
    quantity, beside = found.budget.quantity, found.budget.limit.beside
    assert found.value is not None
    if beside is None or not (other or quantity.is_share):
        return ""
    if quantity.is_share:
        return f"{formatting.points(found.value - other)} points"
    return formatting.share(found.value / other) if beside == "original" else formatting.change(found.value / other)


def _excess(found: Finding) -> str:
    """By how much the budget is missed, with three significant digits."""
    if found.met or found.value is None or found.limit is None:
        return ""
    quantity, much = found.budget.quantity, abs(found.value - found.limit)
    written = f"{formatting.three_digits(100 * much)} points" if quantity.is_share else quantity.written(much)
    return f"{'short' if quantity.more_is_better else 'over'} by {written}"


def _slowest(found: Finding, report: Report) -> str:
    """The 90th percentile of a missed latency, which shows how noisy the measurement is."""
    timed = latency_of(found.budget, report)
    return f"p90 {formatting.milliseconds(timed.p90_ms)}" if timed and not found.met else ""


def _caveat(budget: Budget, report: Report, baseline: Report | None) -> str:
    """Other differences between the report and the baseline."""
    if budget.limit.beside != "baseline" or baseline is None:
        return ""
    if timed := latency_of(budget, report):
        if scale := clock_ratio(report, baseline, timed):
            return f"baseline latency scaled by {scale:.2f}, the ratio of the originals' latencies"
        return "baseline latency not scaled: the originals differ or were not timed in the same way"
    now, then = report.compressed.accuracy, baseline.compressed.accuracy
    return f"baseline {formatting.images(then.n)}" if budget.quantity.is_share and now and then and now.n != then.n else ""
