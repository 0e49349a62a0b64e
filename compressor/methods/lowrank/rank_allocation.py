"""One rank for each layer that can be factored, so that a goal is met: in MACs or parameters, energy, ranks, or time."""

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

BYTES = 4  # of a parameter in a file
TIMED, BUDGETS = 5, 64  # ranks at which a layer is timed, and times of all layers that are tried


@dataclass(frozen=True)
class Allocation:
    """How ranks are shared out, in a network that has so many MACs and parameters."""

    goal: Goal
    rule: str  # of `ranks.RULES`
    macs: float
    params: float
    overhead: float = 0.0  # bytes of the ONNX file beside its weights, for a goal of size
    ms: Callable[[str, nn.Module], float] | None = None  # of what stands in a layer's place; None: time does not count

    def total(self, quantity: str) -> float:
        """MACs, or parameters, of the whole network."""
        return self.macs if quantity == "macs" else self.params

    def allowed(self) -> tuple[float, float]:
        """The share of the MACs or parameters that is to go, and how many are left to the whole network then."""
        in_bytes = self.goal.quantity == "size"
        aside = self.overhead / BYTES if in_bytes else 0.0  # the parameters that other bytes of the file amount to
        whole = self.total(self.goal.quantity) + aside
        asked = self.goal.asked(whole * (BYTES if in_bytes else 1))
        return asked, whole * (1 - asked) - aside

    def choose(self, sites: Sequence[Site], reasons: str = "") -> Choice:
        """A rank for each site. Raises Infeasible when the goal cannot be met; `reasons` say why layers were left out."""
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
                f"{goal.text} asks for {asked:.1%} fewer {UNIT[goal.quantity]}, but layers that can be factored hold "
                f"{1 - fixed / total:.1%} of them, and at their lowest ranks {1 - least / total:.1%} are saved.\n"
                f"Ask for less, or of another quantity. {reasons}"
            )
        if self.ms is not None:
            return self._soonest(sites, allowed - fixed, self.ms)
        return rank_rules.meet(ladders, RULES[self.rule], allowed - fixed)

    def reached(self, sites: Sequence[Site], choice: Choice) -> tuple[float, float] | None:
        """Of a goal that is no cost, energy or ranks: the share that was to go, and the share that goes."""
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
        """The ranks that lose the least error in a time in which they also cost no more than `allowed`.

        That time is looked for from the share that is allowed down. Where none will do, for what takes no time costs, too, the
        costs themselves decide.
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
    """Milliseconds at some of a layer's ranks, from the lowest to the highest."""
    few = np.unique(np.linspace(0, len(site.ladder.ranks) - 1, TIMED).astype(int))
    return {rank: ms(site.name, site.split.chain(site.layer, rank)) for rank in site.ladder.ranks[few].tolist()}


def _at_most(ladder: Ladder, rank: float) -> int:
    """The index of the highest rank that is at most `rank`, or of the lowest one, where all are higher."""
    return max(0, int(np.searchsorted(ladder.ranks, rank, side="right")) - 1)
