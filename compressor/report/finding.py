"""A report checked against budgets: for each the measured value, the limit, and whether it is met.

A budget on a metric that was not measured counts as missed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from compressor.report.budgets import Budget

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
        return self.value > self.limit if self.budget.relation == ">=" else self.value < self.limit

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
