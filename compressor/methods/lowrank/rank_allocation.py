"""Rank allocation: one rank for each factorable layer, so that a goal in MACs, parameters, energy, rank or latency is met."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from compressor.errors import Infeasible
from compressor.methods.lowrank import rank_rules
from compressor.methods.lowrank.factorable import Site
from compressor.methods.lowrank.rank_rules import RULES, Choice, Ladder
from compressor.training.goal import UNIT, Goal

BYTES = 4  # bytes per parameter in a file
TIMED, BUDGETS = 5, 64  # ranks at which the latency of a layer is measured, and latency budgets to try


@dataclass(frozen=True)
class Allocation:
    """Rank allocation for a network with `macs` MACs and `params` parameters."""

    goal: Goal
    rule: str  # a key of `rank_rules.RULES`
    macs: float
    params: float
    overhead: float = 0.0  # bytes of the ONNX file that are not weights, for a goal in file size
    ms: Callable[[str, nn.Module], float] | None = None  # latency of the replacement of a layer; None: do not use latency

    def total(self, quantity: str) -> float:
        """MACs or parameters of the whole network."""
        return self.macs if quantity == "macs" else self.params

    def allowed(self) -> tuple[float, float]:
        """The fraction of MACs or parameters to remove, and the number that the whole network may keep."""
        in_bytes = self.goal.quantity == "size"
        aside = self.overhead / BYTES if in_bytes else 0.0  # the other bytes of the file, in parameters
        whole = self.total(self.goal.quantity) + aside
        asked = self.goal.asked(whole * (BYTES if in_bytes else 1))
        return asked, whole * (1 - asked) - aside

    def choose(self, sites: Sequence[Site], reasons: str = "") -> Choice:
        """A rank for each site. Raises Infeasible if the goal cannot be met; `reasons` tell why layers cannot be factored."""
        goal, ladders = self.goal, [site.ladder for site in sites]
        if goal.quantity == "energy":
            return rank_rules.energy(ladders, 1 - goal.asked(1))
        if goal.quantity == "rank":
            assert goal.limit is not None
            return [_at_most(ladder, goal.limit) for ladder in ladders]
        total, (asked, allowed) = self.total(goal.quantity), self.allowed()
        fixed = total - sum(ladder.full for ladder in ladders)
        least = fixed + sum(ladder.costs[0] for ladder in ladders)
        if least > allowed:
            raise Infeasible(
                f"{goal.text} requires {asked:.1%} fewer {UNIT[goal.quantity]}, but the layers that can be factored have "
                f"{1 - fixed / total:.1%} of them, and their lowest ranks save {1 - least / total:.1%}.\n"
                f"Request a smaller reduction, or one of another quantity. {reasons}"
            )
        if self.ms is not None:
            return self._soonest(sites, allowed - fixed, self.ms)
        return rank_rules.meet(ladders, RULES[self.rule], allowed - fixed)

    def reached(self, sites: Sequence[Site], choice: Choice) -> tuple[float, float] | None:
        """For a goal in energy or rank: the requested and the achieved reduction, 0..1."""
        goal, pairs = self.goal, list(zip(sites, choice, strict=True))
        if goal.quantity == "energy":
            lost = [site.ladder.errors[i] for site, i in pairs if i is not None]
            return goal.asked(1), float(np.mean(lost)) if lost else 0.0
        if goal.quantity == "rank":
            assert goal.limit is not None
            full = [site.split.most(site.layer) for site in sites]
            kept = [n if i is None else int(site.ladder.ranks[i]) for n, (site, i) in zip(full, pairs, strict=True)]
            return 1 - sum(min(n, goal.limit) for n in full) / sum(full), 1 - sum(kept) / sum(full)
        return None

    def _soonest(self, sites: Sequence[Site], allowed: float, ms: Callable[[str, nn.Module], float]) -> Choice:
        """The ranks with the least error within a latency budget at which they also cost no more than `allowed`.

        Latency budgets are tried from the allowed fraction downwards. If none meets `allowed`, because layers that take no time
        have most of the cost, ranks are chosen by cost.
        """
        ladders, rule = [site.ladder for site in sites], RULES[self.rule]
        timed = [site.ladder.at(_times(site, ms), ms(site.name, site.layer)) for site in sites]
        share = allowed / sum(ladder.full for ladder in ladders)
        least, most = rank_rules.cost(timed, [0] * len(timed)), share * sum(ladder.full for ladder in timed)
        for time in np.linspace(most, least, BUDGETS) if least < most else ():
            choice = rank_rules.meet(timed, rule, float(time))
            if rank_rules.cost(ladders, choice) <= allowed:
                return choice
        return rank_rules.meet(ladders, rule, allowed)


def _times(site: Site, ms: Callable[[str, nn.Module], float]) -> dict[int, float]:
    """Milliseconds at some ranks of a layer, from the lowest to the highest."""
    few = np.unique(np.linspace(0, len(site.ladder.ranks) - 1, TIMED).astype(int))
    return {rank: ms(site.name, site.split.chain(site.layer, rank)) for rank in site.ladder.ranks[few].tolist()}


def _at_most(ladder: Ladder, rank: float) -> int:
    """The index of the highest rank that is at most `rank`, or of the lowest one if all are higher."""
    return max(0, int(np.searchsorted(ladder.ranks, rank, side="right")) - 1)
