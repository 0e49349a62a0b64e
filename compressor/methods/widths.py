"""Which channels go, so that exactly as much goes as was asked.

Given one score a channel (low = weak), `choose` removes the weakest until the goal is met; costs come from a table, so the
search never runs the model.
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
UNMEASURED = 2.0  # a loss above all that can be measured
TIE = 1e-6  # of equal losses, those of groups of which less is gone come first


def cost_of(channels: Channels, quantity: Quantity) -> Cost:
    """The table of what a goal counts."""
    tables = {"macs": lambda: channels.macs, "params": lambda: channels.params, "size": lambda: channels.bytes}
    return tables[quantity]()


def uniform(channels: Channels, scores: Scores) -> Scores:
    """Scores under which every group gives the same share: the rank of each channel inside its own group, 0..1."""
    ranks = np.empty(len(scores))
    start = 0
    for group in channels.groups:
        own = slice(start, start + group.size)
        ranks[own] = np.argsort(np.argsort(scores[own], kind="stable"), kind="stable") / group.size
        start += group.size
    return ranks


def by_sensitivity(channels: Channels, scores: Scores, curves: Mapping[str, Curve]) -> Scores:
    """Scores under which groups that lose little go first: the k-th weakest channel of a group has the loss at rate k/size.

    Inside a group the order of `scores` stays; groups without a curve come last.
    """
    ranks = channels.split(uniform(channels, scores))  # from 0
    lost = []
    for group in channels.groups:
        gone = ranks[group.name] + 1 / group.size  # the share of the group that is gone when this channel is, too
        curve = curves.get(group.name)
        lost.append((UNMEASURED if curve is None else curve.at(gone)) + TIE * gone)
    return np.concatenate(lost)


class Shelf:
    """Channels in the order in which they would go, the weakest first, with the bounds that every choice respects."""

    def __init__(self, channels: Channels, scores: Scores, round_to: int | None, most: float, coarsest: int = 8) -> None:
        self.sizes = np.array([group.size for group in channels.groups], np.int64)
        self.group = np.repeat(np.arange(len(self.sizes)), self.sizes)  # [atoms]
        order = np.argsort(scores, kind="stable")
        self.order = order
        by_group = order[np.argsort(self.group[order], kind="stable")]
        self.place = np.empty(len(scores), np.int64)  # place of each atom in its own group, the weakest first
        self.place[by_group] = np.arange(len(scores)) - np.repeat(np.cumsum(self.sizes) - self.sizes, self.sizes)
        self.units = units(self.sizes, coarsest) if round_to is None else np.full(len(self.sizes), round_to)
        self.least = np.maximum(1, np.ceil(self.sizes * (1 - most) - 1e-9)).astype(np.int64)

    def without(self, drops: npt.NDArray[np.int64]) -> Mask:
        """The mask when each group gives its `drops` [groups] weakest, bounded and rounded."""
        kept = np.maximum(self.sizes - drops, self.least)
        kept = np.minimum(-(-kept // self.units) * self.units, self.sizes)
        mask: Mask = self.place >= (self.sizes - kept)[self.group]
        return mask

    def drops(self, count: int) -> npt.NDArray[np.int64]:
        """How many of the `count` weakest channels of all groups together lie in each group [groups]."""
        return np.bincount(self.group[self.order[:count]], minlength=len(self.sizes))

    def without_weakest(self, count: int) -> Mask:
        return self.without(self.drops(count))


def units(sizes: npt.NDArray[np.int64], coarsest: int = 8) -> npt.NDArray[np.int64]:
    """The multiple that each group's width is rounded to [groups]: `coarsest` for groups four times as wide, fewer below.

    Processors compute several channels at once; odd widths can make a network slower than it was before channels were cut.
    A quarter of the width is the coarsest step that still leaves a choice.
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
    """Remove the lowest-scoring atoms until the goal is met; at most the share `most` of one group goes.

    `scores` [atoms]; widths become multiples of `round_to`, or of what `units` says; `overhead` is added to the cost of any
    choice (an ONNX file's bytes beside its weights).
    Raises Infeasible, telling the nearest point that can be reached.
    """
    if not channels.atoms:
        raise Infeasible("Nothing can be cut from this model: see `compress inspect` for what is frozen, and why.")
    if goal.quantity == "filters":
        assert goal.share is not None
        shelf = Shelf(channels, scores, round_to or 1, most)  # papers round down to whole filters, and to nothing else
        return shelf.without(np.floor(shelf.sizes * goal.share + 1e-9).astype(np.int64))
    table = cost_of(channels, goal.quantity)
    full = table.total(channels.all_kept()) + overhead
    limit = goal.limit if goal.limit is not None else full * (1 - goal.asked(full))
    if limit >= full:
        raise Infeasible(f"{goal.text} is met already: the model has {full:,.0f} {UNIT[goal.quantity]}. Ask for less.")
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
            f"{goal.text} asks for {1 - limit / full:.1%} fewer {goal.quantity}, but at most {1 - least / full:.1%} can go "
            f"(frozen layers, and at most {most:.0%} of any group's channels).\n"
            f"{_feasible(goal, least, full)} can be reached; `compress inspect` tells what is frozen, and why."
        )
    return mask


def _search(shelf: Shelf, table: Cost, limit: float, within: float) -> Mask:
    """The fewest removals that bring the cost to the limit; with `within` above 0, as near to it as can be from either side."""

    def cost(count: int) -> float:
        return table.total(shelf.without_weakest(count))

    low, high = 0, len(shelf.order)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if cost(middle) <= limit else (middle + 1, high)
    if within and low and cost(low - 1) - limit < limit - cost(low):
        low -= 1  # one removal fewer lies nearer to what was asked
    mask = shelf.without_weakest(low)
    if not within or abs(table.total(mask) - limit) <= within:
        return mask
    return _nearer(shelf, table, shelf.drops(low), limit, within)


def _feasible(goal: Goal, least: float, full: float) -> str:
    """The goal that can just be reached, in the words of the one that was asked; `least` and `full` are costs."""
    if goal.limit is not None:
        return f"--target {goal.quantity}<={math.ceil(least)}"
    share = math.floor((1 - least / full) * 1000) / 1000
    return f"--rate {share:g}" if goal.text.startswith("--rate") else f"--target {goal.quantity}={share * 100:g}%"


def _nearer(shelf: Shelf, table: Cost, drops: npt.NDArray[np.int64], limit: float, within: float) -> Mask:
    """Move single groups by one unit until the cost is `within` the limit, or no move brings it nearer.

    One step of a wide stream can cost many points at once; a few narrow groups then make up for the rest.
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
    """The share of the goal's quantity that is gone under `mask`."""
    if goal.quantity == "filters":
        weights = np.concatenate([np.full(g.size, len(g.layers)) for g in channels.groups])
        return float((~mask * weights).sum() / weights.sum())
    table = cost_of(channels, goal.quantity)
    full = table.total(channels.all_kept()) + overhead
    return 1 - (table.total(mask) + overhead) / full


def macs_at(channels: Channels, share: float) -> float:
    """The share of the MACs that is gone when every layer gives exactly `share` of its filters, also where that is no whole
    number: so the papers count that prune all layers alike.
    """
    kept = np.full(channels.atoms, 1.0 - share)
    return 1 - channels.macs.total(kept) / channels.macs.total(channels.all_kept())


def check_keep(patterns: Iterable[str], layers: Collection[str]) -> None:
    """Raise UsageError for a pattern of --keep that matches none of the names of `layers`."""
    for pattern in patterns:
        if not any(fnmatch(layer, pattern) for layer in layers):
            raise UsageError(f"--keep {pattern!r} matches no layer{did_you_mean(pattern, layers)}: see `compress inspect`.")


def hold(channels: Channels, patterns: list[str]) -> Channels:
    """Keep whole every group that is the output of a layer whose name matches one of the shell patterns.

    Raises UsageError for a pattern that matches no layer.
    """
    held: dict[str, str] = {}
    layers = {member.tensor.rpartition(".")[0] for group in channels.groups for member in group.members}
    layers |= {row.name for row in channels.frozen()}
    check_keep(patterns, layers)
    for pattern in patterns:
        for group in channels.groups:
            if any(fnmatch(member.tensor.rpartition(".")[0], pattern) for member in group.members if member.role != "in"):
                held[group.name] = f"kept as asked (--keep {pattern})"
    return channels.without(held) if held else channels
