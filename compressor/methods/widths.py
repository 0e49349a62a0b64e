"""Select the channels to prune so that a goal is met.

Given one importance score per channel (low = unimportant), `choose` removes the channels with the lowest scores until the goal
is met. Costs come from a table, so the search never runs the model.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatch

import numpy as np
import numpy.typing as npt

from compressor.channels import Channels, Mask
from compressor.channels.groups import Cost
from compressor.errors import Infeasible, UsageError, did_you_mean
from compressor.training.goal import UNIT, WITHIN, Curve, Goal, Quantity

Scores = npt.NDArray[np.float64]
UNMEASURED = 2.0  # above every loss of quality that can be measured
TIE = 1e-6  # of channels with equal loss, those of the less pruned group come first


def cost_of(channels: Channels, quantity: Quantity) -> Cost:
    """The cost table of the quantity that a goal limits."""
    tables = {"macs": lambda: channels.macs, "params": lambda: channels.params, "size": lambda: channels.bytes}
    return tables[quantity]()


def uniform(channels: Channels, scores: Scores) -> Scores:
    """Scores that prune the same fraction of every group: the rank of each channel within its group, 0..1."""
    ranks = np.empty(len(scores))
    start = 0
    for group in channels.groups:
        own = slice(start, start + group.size)
        ranks[own] = np.argsort(np.argsort(scores[own], kind="stable"), kind="stable") / group.size
        start += group.size
    return ranks


def by_sensitivity(channels: Channels, scores: Scores, curves: Mapping[str, Curve]) -> Scores:
    """Scores from sensitivity curves: the k-th weakest channel of a group gets the loss of quality measured at rate k/size.

    Insensitive groups are pruned first. Within a group the order of `scores` is kept; groups without a curve come last.
    """
    ranks = channels.split(uniform(channels, scores))  # from 0
    lost = []
    for group in channels.groups:
        gone = ranks[group.name] + 1 / group.size  # fraction of the group that is pruned when this channel is
        curve = curves.get(group.name)
        lost.append((UNMEASURED if curve is None else curve.at(gone)) + TIE * gone)
    return np.concatenate(lost)


class Shelf:
    """Channels in the order in which they are pruned, the weakest first, with the bounds that every mask respects."""

    def __init__(self, channels: Channels, scores: Scores, round_to: int | None, most: float, coarsest: int = 8) -> None:
        self.sizes = np.array([group.size for group in channels.groups], np.int64)
        self.group = np.repeat(np.arange(len(self.sizes)), self.sizes)  # [atoms]
        order = np.argsort(scores, kind="stable")
        self.order = order
        by_group = order[np.argsort(self.group[order], kind="stable")]
        self.place = np.empty(len(scores), np.int64)  # rank of each atom within its group, the weakest first
        self.place[by_group] = np.arange(len(scores)) - np.repeat(np.cumsum(self.sizes) - self.sizes, self.sizes)
        self.units = units(self.sizes, coarsest) if round_to is None else np.full(len(self.sizes), round_to)
        self.least = np.maximum(1, np.ceil(self.sizes * (1 - most) - 1e-9)).astype(np.int64)

    def without(self, drops: npt.NDArray[np.int64]) -> Mask:
        """The mask that prunes the `drops` [groups] weakest channels of each group, bounded and rounded."""
        kept = np.maximum(self.sizes - drops, self.least)
        kept = np.minimum(-(-kept // self.units) * self.units, self.sizes)
        mask: Mask = self.place >= (self.sizes - kept)[self.group]
        return mask

    def drops(self, count: int) -> npt.NDArray[np.int64]:
        """How many of the `count` globally weakest channels belong to each group [groups]."""
        return np.bincount(self.group[self.order[:count]], minlength=len(self.sizes))

    def without_weakest(self, count: int) -> Mask:
        return self.without(self.drops(count))


def units(sizes: npt.NDArray[np.int64], coarsest: int = 8) -> npt.NDArray[np.int64]:
    """The multiple that the width of each group is rounded to [groups]: `coarsest` if the group is at least four times as wide.

    Narrower groups are rounded to the largest power of two that is at most a quarter of their width. Processors compute several
    channels at once, so a network with odd widths can be slower than the unpruned one.
    """
    quarter = np.clip(sizes // 4, 1, coarsest)
    return np.asarray(2 ** np.floor(np.log2(quarter)), np.int64)


def choose(
    channels: Channels,
    scores: Scores,
    goal: Goal,
    *,
    round_to: int | None = None,
    most: float = 0.95,
    overhead: float = 0.0,
) -> Mask:
    """The mask without the lowest-scoring atoms that meets the goal; prunes at most the fraction `most` of a group.

    `scores` [atoms]; widths become multiples of `round_to`, or by default of `units`; `overhead` is added to the cost of every
    mask (the bytes of an ONNX file that are not weights).
    Raises Infeasible, with the nearest feasible goal.
    """
    if not channels.atoms:
        raise Infeasible("No channel of this model can be pruned: `compress inspect` lists the frozen layers, with the reason.")
    if goal.quantity == "filters":
        assert goal.share is not None
        shelf = Shelf(channels, scores, round_to or 1, most)  # as in the papers: rounded down to whole filters only
        return shelf.without(np.floor(shelf.sizes * goal.share + 1e-9).astype(np.int64))
    table = cost_of(channels, goal.quantity)
    full = table.total(channels.all_kept()) + overhead
    limit = goal.limit if goal.limit is not None else full * (1 - goal.asked(full))
    if limit >= full:
        raise Infeasible(f"{goal.text} is already met: the model has {full:,.0f} {UNIT[goal.quantity]}. Set a lower limit.")
    within = WITHIN * full if goal.share is not None else 0.0
    for coarsest in (8, 4, 2, 1) if round_to is None else (8,):
        shelf = Shelf(channels, scores, round_to, most, coarsest)
        least = table.total(shelf.without_weakest(channels.atoms)) + overhead
        if least > limit + within:
            continue
        mask = _search(shelf, table, limit - overhead, within)
        if goal.share is None or abs(table.total(mask) + overhead - limit) <= within:
            return mask
    if least > limit + within:
        raise Infeasible(
            f"{goal.text} requires {1 - limit / full:.1%} fewer {goal.quantity}, but at most {1 - least / full:.1%} can be "
            f"removed (layers are frozen, and at most {most:.0%} of a group's channels are pruned).\n"
            f"{_feasible(goal, least, full)} is feasible; `compress inspect` lists the frozen layers, with the reason."
        )
    return mask


def _search(shelf: Shelf, table: Cost, limit: float, within: float) -> Mask:
    """The fewest removals that bring the cost to the limit; with `within` above 0, as near as possible from either side."""

    def cost(count: int) -> float:
        return table.total(shelf.without_weakest(count))

    low, high = 0, len(shelf.order)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if cost(middle) <= limit else (middle + 1, high)
    if within and low and cost(low - 1) - limit < limit - cost(low):
        low -= 1  # one removal fewer is nearer to the target
    mask = shelf.without_weakest(low)
    if not within or abs(table.total(mask) - limit) <= within:
        return mask
    return _nearer(shelf, table, shelf.drops(low), limit, within)


def _feasible(goal: Goal, least: float, full: float) -> str:
    """The strictest feasible goal, in the form of the requested one; `least` and `full` are costs."""
    if goal.limit is not None:
        return f"--target {goal.quantity}<={math.ceil(least)}"
    share = math.floor((1 - least / full) * 1000) / 1000
    return f"--rate {share:g}" if goal.text.startswith("--rate") else f"--target {goal.quantity}={share * 100:g}%"


def _nearer(shelf: Shelf, table: Cost, drops: npt.NDArray[np.int64], limit: float, within: float) -> Mask:
    """Move single groups by one unit until the cost is `within` the limit, or no move brings it nearer.

    One step of a wide residual stream can change the cost by many points; a few narrow groups then compensate.
    """
    best = shelf.without(drops)
    gap = abs(table.total(best) - limit)
    while gap > within:
        moves = []
        for group, unit in enumerate(shelf.units):
            for step in (unit, -unit):
                moved = drops.copy()
                moved[group] = min(max(moved[group] + step, 0), shelf.sizes[group])
                mask = shelf.without(moved)
                moves.append((abs(table.total(mask) - limit), group, moved, mask))
        nearest, _, moved, mask = min(moves, key=lambda move: move[:2])
        if nearest >= gap:
            break
        gap, drops, best = nearest, moved, mask
    return best


def reached(channels: Channels, mask: Mask, goal: Goal, overhead: float = 0.0) -> float:
    """The fraction of the goal's quantity that `mask` removes."""
    if goal.quantity == "filters":
        weights = np.concatenate([np.full(g.size, len(g.layers)) for g in channels.groups])
        return float((~mask * weights).sum() / weights.sum())
    table = cost_of(channels, goal.quantity)
    full = table.total(channels.all_kept()) + overhead
    return 1 - (table.total(mask) + overhead) / full


def macs_at(channels: Channels, share: float) -> float:
    """The fraction of the MACs removed when exactly `share` of the filters of every layer is pruned.

    Fractional filter counts are allowed, as in papers that prune all layers at the same rate.
    """
    kept = np.full(channels.atoms, 1.0 - share)
    return 1 - channels.macs.total(kept) / channels.macs.total(channels.all_kept())


def check_keep(patterns: Iterable[str], layers: Collection[str]) -> None:
    """Raise UsageError for a pattern of --keep that matches none of the names of `layers`."""
    for pattern in patterns:
        if not any(fnmatch(layer, pattern) for layer in layers):
            raise UsageError(f"--keep {pattern!r} matches no layer{did_you_mean(pattern, layers)}: see `compress inspect`.")


def hold(channels: Channels, patterns: list[str]) -> Channels:
    """Do not prune groups that are the output of a layer whose name matches one of the shell patterns.

    Raises UsageError for a pattern that matches no layer.
    """
    held: dict[str, str] = {}
    layers = {member.tensor.rpartition(".")[0] for group in channels.groups for member in group.members}
    layers |= {row.name for row in channels.frozen()}
    check_keep(patterns, layers)
    for pattern in patterns:
        for group in channels.groups:
            if any(fnmatch(member.tensor.rpartition(".")[0], pattern) for member in group.members if member.role != "in"):
                held[group.name] = f"excluded by --keep {pattern}"
    return channels.without(held) if held else channels
