"""Check a report against budgets; each finding is one line of text."""

from __future__ import annotations

from collections.abc import Iterable

from compressor.report import cost_findings, score_findings
from compressor.report.budgets import COSTS, Budget
from compressor.report.finding import Checked, Finding
from compressor.report.schema import Report


def check(report: Report, budgets: Iterable[Budget], baseline: Report | None = None) -> Checked:
    """Check the report of a run against budgets, some of which may refer to the `baseline`."""
    return Checked([_judge(budget, report, baseline) for budget in budgets])


def _judge(budget: Budget, report: Report, baseline: Report | None) -> Finding:
    judge = score_findings.judge if budget.cost is None else cost_findings.judge
    return judge(budget, report, baseline)


def measured(report: Report) -> dict[str, float]:
    """Every metric of the compressed network that can have a budget and was measured."""
    costs = {name: cost.figure(report.compressed, None) for name, cost in COSTS.items()}
    return {name: value for name, value in costs.items() if value is not None} | score_findings.measured(report)
