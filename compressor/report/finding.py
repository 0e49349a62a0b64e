"""A report checked against one budget: the measured value, the limit, and whether the budget is met.

A budget on a metric that was not measured counts as missed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from compressor.report import summary
from compressor.report.budgets import Budget, timed_at
from compressor.report.schema import Latency, Profile, Report

Status = Literal["ok", "off", "warn", "missed"]


@dataclass(frozen=True)
class Finding:
    """The result of checking a budget. `value` or `limit` is None if it was not measured."""

    budget: Budget
    value: float | None
    limit: float | None
    text: str  # one line of ASCII

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
        """Whether no budget at level `error` is missed."""
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


def figure_beside(budget: Budget, report: Report, baseline: Report | None) -> float | None:
    """The value that the limit is relative to; 0 for an absolute limit."""
    if budget.limit.beside is None:
        return 0.0
    of, network = report, report.baseline
    if budget.limit.beside == "baseline":
        assert baseline is not None, "`collect` saw to it"
        of, network = baseline, baseline.compressed
    if timed := latency_of(budget, report):
        other = alike(network, timed)
        scale = clock_ratio(report, baseline, timed) if of is baseline else None
        return other and other * (scale or 1.0)
    return budget.quantity.figure(of, network, None)


def latency_of(budget: Budget, report: Report) -> Latency | None:
    """The latency that a latency budget refers to; None for other budgets."""
    return timed_at(report.compressed, budget.batch) if budget.quantity.name == "latency" else None


def alike(network: Profile, timed: Latency) -> float | None:
    """The median latency of `network` at the batch size, provider and threads of `timed`."""
    ways = summary.timings(network, replace(network, latency=[timed]))
    return next((other.median_ms for other, _ in ways if other), None)


def clock_ratio(report: Report, baseline: Report | None, timed: Latency) -> float | None:
    """The original's latency in this run over that in the baseline; None if the originals are different networks.

    The original is timed interleaved with the compressed network, but the baseline was timed on another day. The baseline's
    latency is scaled by this ratio, so that a build does not fail because the machine is slower or busier than the last one.
    """
    if baseline is None or _costs(report.baseline) != _costs(baseline.baseline):
        return None
    now, then = alike(report.baseline, timed), alike(baseline.baseline, timed)
    return now / then if now and then else None


def _costs(network: Profile) -> tuple[int, int]:
    return network.macs, network.params
