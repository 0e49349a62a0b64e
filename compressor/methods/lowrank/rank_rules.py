"""How many ranks each layer keeps: from tables of error and cost alone, so the search never runs the model.

A rule turns a strength between 0 and 1 into one choice for all layers together; `meet` finds the strength at which a budget is
met. A choice is an index into a layer's ladder, or None: the layer is left whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq, isotonic_regression, minimize_scalar

from compressor.errors import Infeasible

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
HALVINGS = 40  # of the range of strengths: to one part in 10^12
LEVEL = 1e-12  # of a whole layer's cost: less is no difference between two ranks


@dataclass(frozen=True)
class Ladder:
    """What one layer may become: with each of `ranks` [k], rising.

    `errors` [k]: the share of its energy that is lost, 0..1, falling. `costs` [k]: of the quantity that is budgeted, rising;
    `full`: the cost of the layer left whole. Only ranks that make it cheaper are on a ladder.
    """

    ranks: IntArray
    errors: FloatArray
    costs: FloatArray
    full: float
    singular: FloatArray  # singular values, falling (all of them, more than ranks as a rule)
    shape: tuple[int, int]  # of the matrix they belong to
    weight: float = 1.0  # how much the network suffers from this layer's error

    @cached_property
    def analytic(self) -> int:
        """The rank that `evbmf` finds; kept, for a search asks for it again and again."""
        return evbmf(self.singular, self.shape)

    @property
    def stairs(self) -> tuple[FloatArray, FloatArray]:
        """Errors and costs from the lowest rank up, the whole layer last [k + 1 each]."""
        return np.append(self.errors, 0.0), np.append(self.costs, self.full)

    def at(self, costs: Mapping[int, float], full: float) -> Ladder:
        """The same with other costs, known at some ranks: straight between these, and never less than at a lower rank."""
        known = sorted(costs)
        rising = np.maximum.accumulate(np.interp(self.ranks, known, [costs[rank] for rank in known]))
        return replace(self, costs=rising, full=full)


Choice = list[int | None]  # for each ladder an index into its ranks, or None: whole
Rule = Callable[[Sequence[Ladder], float], Choice]
"""Strength 0..1: 0 leaves everything (nearly) whole, 1 takes the lowest ranks, and the cost never rises with it."""


# Rules ----------------------------------------------------------------------------------------------------------------


def knapsack(ladders: Sequence[Ladder], strength: float) -> Choice:
    """The least sum of weight * error + lambda * cost: Lagrangian relaxation of the knapsack problem.

    All layers share one lambda, and `strength` is the share of all steps down that are worth it. So the sum of weight * error
    is the least for what the choice costs; at a cost between two choices, `meet` misses the least by less than what one layer
    loses between neighbours on the lower convex hull of its stairs.
    """
    return _worthwhile(ladders, strength, lambda ladder, errors: ladder.weight * np.diff(errors))


def greedy(ladders: Sequence[Ladder], strength: float) -> Choice:
    """Lower, again and again, the layer that loses the least share of its remaining energy per cost saved.

    So the product of all energies kept, each to the power of its weight, stays large: Zhang, Zou, He and Sun, "Accelerating
    Very Deep Convolutional Networks for Classification and Detection", TPAMI 2016, arXiv 1505.06798, section 2.4. `strength`
    is the share of all steps taken.
    Unlike the paper: steps that pay only together are taken together. The first step down from a whole layer loses much and
    saves next to nothing, if the highest rank hardly makes it cheaper.
    """

    def losses(ladder: Ladder, errors: FloatArray) -> FloatArray:
        return ladder.weight * np.diff(errors) / np.maximum(1 - errors[:-1], np.finfo(float).tiny)

    return _worthwhile(ladders, strength, losses)


def energy(ladders: Sequence[Ladder], threshold: float) -> Choice:
    """The smallest rank of each layer that keeps a share of the energy above the threshold; whole where none does.

    As in Lin et al., "Holistic CNN Compression via Low-rank Decomposition with Knowledge Transfer", TPAMI 2019.
    """
    return [_place(ladder, int(np.sum(1 - ladder.errors <= threshold))) for ladder in ladders]


def by_energy(ladders: Sequence[Ladder], strength: float) -> Choice:
    """`energy` with thresholds from 1 to just below 0, which every rank is above."""
    return energy(ladders, 1 - strength * (1 + LEVEL))


def minmax(ladders: Sequence[Ladder], strength: float) -> Choice:
    """Keep the singular values above one share of the layer's largest, the same for all: the largest relative error is least.

    As between the layers in ALDS (Liebenwein et al., "Compressing Neural Networks: Towards Determining the Optimal Layer-wise
    Decomposition", NeurIPS 2021); errors in the spectral norm.
    """
    counts = [int(np.sum(ladder.singular > strength * ladder.singular[:1])) for ladder in ladders]
    return [_at_least(ladder, count) for ladder, count in zip(ladders, counts, strict=True)]


def uniform(ladders: Sequence[Ladder], strength: float) -> Choice:
    """The same share of each layer's ladder."""
    return [_place(ladder, round((1 - strength) * len(ladder.ranks))) for ladder in ladders]


def by_evbmf(ladders: Sequence[Ladder], strength: float) -> Choice:
    """At strength 1/2 the ranks that `evbmf` finds; in proportion nearer to all ranks below, and to none above.

    Ranks by EVBMF: Kim et al., "Compression of Deep Convolutional Neural Networks for Fast and Low Power Mobile Applications",
    ICLR 2016, arXiv 1511.06530. Nearer to all: weakened ranks of Gusak et al., "Automated Multi-Stage Compression of Neural
    Networks", ICCV workshops 2019, arXiv 1903.09973.
    """
    knots = (0.0, 0.5, 1.0)
    return [_at_least(ladder, np.interp(strength, knots, (min(ladder.shape), ladder.analytic, 0))) for ladder in ladders]


RULES: dict[str, Rule] = {
    "knapsack": knapsack,
    "greedy": greedy,
    "energy": by_energy,
    "minmax": minmax,
    "uniform": uniform,
    "evbmf": by_evbmf,
}


def _worthwhile(ladders: Sequence[Ladder], strength: float, losses: Callable[[Ladder, FloatArray], FloatArray]) -> Choice:
    """Each layer as far down as steps lose no more per cost saved than the limit, under which lies the share `strength` of all.

    `losses` of a ladder, given its errors from whole downwards [k + 1], tells what each step down loses [k].
    """
    prices = []
    for ladder in ladders:
        errors, costs = (values[::-1] for values in ladder.stairs)
        saved = np.maximum(-np.diff(costs), LEVEL * ladder.full)
        lost = losses(ladder, errors)
        # Steps cheaper than one before them share one price with it: these are the slopes of the lower convex hull.
        prices.append(isotonic_regression(lost / saved, weights=saved).x if len(lost) else lost)
    ordered = np.sort(np.concatenate([np.zeros(0), *prices]))
    count = math.floor(strength * len(ordered))
    limit = ordered[count - 1] if count else -np.inf
    taken = [int(np.searchsorted(own, limit, side="right")) for own in prices]
    return [_place(ladder, len(ladder.ranks) - steps) for ladder, steps in zip(ladders, taken, strict=True)]


def _at_least(ladder: Ladder, rank: float) -> int | None:
    """The smallest rank on the ladder that is no lower."""
    return _place(ladder, int(np.searchsorted(ladder.ranks, rank)))


def _place(ladder: Ladder, index: int) -> int | None:
    return index if index < len(ladder.ranks) else None


# Budgets --------------------------------------------------------------------------------------------------------------


def cost(ladders: Sequence[Ladder], choice: Choice) -> float:
    """What all layers cost together."""
    return math.fsum(own.full if index is None else own.costs[index] for own, index in zip(ladders, choice, strict=True))


def meet(ladders: Sequence[Ladder], rule: Rule, budget: float) -> Choice:
    """The dearest choice of the rule that costs no more than `budget` in all; what is left over is spent where it helps most.

    Raises Infeasible, telling the least cost, when even the lowest ranks exceed the budget.
    """
    low, high = 0.0, 1.0
    best = rule(ladders, high)
    least = cost(ladders, best)
    if least > budget:
        raise Infeasible(
            f"A cost of at most {budget:,.12g} was asked for, but the lowest ranks of all layers cost {least:,.12g}.\n"
            "Ask for no less than that, or let more layers be factored."
        )
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        choice = rule(ladders, middle)
        if cost(ladders, choice) <= budget:
            high, best = middle, choice
        else:
            low = middle
    return _spend(ladders, best, budget)


def _spend(ladders: Sequence[Ladder], choice: Choice, budget: float) -> Choice:
    """Raise single layers, by the step that lowers weight * error most per cost, until none fits.

    A step may pass over ranks: where the whole layer is hardly dearer than its highest rank, it alone is worth its cost.
    """
    losses = np.zeros((len(ladders), 1 + max((len(ladder.ranks) for ladder in ladders), default=0)))
    costs = np.full(losses.shape, np.inf)  # [ladders, stairs]; what a shorter ladder lacks never fits
    for row, ladder in enumerate(ladders):
        errors, own = ladder.stairs
        losses[row, : len(errors)] = ladder.weight * errors
        costs[row, : len(own)] = own
    rows = np.arange(len(ladders))
    here = np.array([len(own.ranks) if index is None else index for own, index in zip(ladders, choice, strict=True)], np.int64)
    smallest = LEVEL * np.array([[ladder.full] for ladder in ladders])
    while True:
        gained = losses[rows, here, None] - losses
        added = costs - costs[rows, here, None]
        fits = (gained > 0) & (added <= budget - costs[rows, here].sum())
        if not fits.any():
            return [_place(ladder, int(index)) for ladder, index in zip(ladders, here, strict=True)]
        worth = np.where(fits, gained / np.maximum(added, smallest), 0.0)
        best, place = np.unravel_index(worth.argmax(), worth.shape)
        here[best] = place


# The analytic rank ----------------------------------------------------------------------------------------------------


def evbmf(singular: FloatArray, shape: tuple[int, int]) -> int:
    """The rank of a matrix under noise that empirical variational Bayesian factorization finds; may be 0.

    Nakajima, Sugiyama, Babacan and Tomioka, "Global Analytic Solution of Fully-observed Variational Bayesian Matrix
    Factorization", JMLR 14, 2013; with threshold, free energy and bounds of the noise in the explicit form of Nakajima,
    Tomioka, Sugiyama and Babacan, "Condition for Perfect Dimensionality Recovery by Variational Bayesian PCA", JMLR 16, 2015.
    With L <= M the sides of the matrix, a = L / M and x = s^2 / (M noise), a singular value s counts when

        x > (1 + t)(1 + a / t),    t the root of log(1 + t) / t + a log(1 + t / a) / t = 1

    and the variance of the noise is what minimises the free energy. The scale of the matrix does not matter.
    0 also where a singular value is not finite.
    """
    if not 0 < np.sum(singular) < np.inf:
        return 0
    short, long = sorted(shape)
    alpha = short / long
    squares = np.zeros(short)
    squares[: len(singular)] = (singular[:short] / singular[0]) ** 2
    root = brentq(lambda t: math.log1p(t) / t + alpha * math.log1p(t / alpha) / t - 1, 2.5 * alpha, 2.6)
    limit = (1 + root) * (1 + alpha / root)

    def free_energy(log_noise: FloatArray | float) -> FloatArray:
        """Twice the free energy, but for terms without noise [as `log_noise`]."""
        x = squares / (long * np.exp(np.asarray(log_noise)[..., None]))
        y = np.maximum(x, limit) - 1 - alpha
        tau = (y + np.sqrt(y**2 - 4 * alpha)) / 2  # of a component that is there
        present = 1 + alpha + alpha / tau + np.log1p(tau) + alpha * np.log1p(tau / alpha)
        energies: FloatArray = np.where(x > limit, present, x).sum(-1) + short * np.asarray(log_noise)
        return energies

    most = math.ceil(short / (1 + alpha)) - 1  # more components cannot be told from noise
    upper = squares.mean() / long
    lower = max(squares[most] / limit, squares[most:].mean(), np.finfo(float).eps ** 2) / long
    # The free energy has a valley for nearly every rank, so the deepest is looked for on a grid first.
    grid = np.linspace(math.log(min(lower, upper)), math.log(upper), 256)
    deepest = int(np.argmin(free_energy(grid)))
    around = grid[max(deepest - 1, 0)], grid[min(deepest + 1, len(grid) - 1)]
    noise = math.exp(minimize_scalar(free_energy, bounds=around, method="bounded").x)
    return int(np.sum(squares > limit * long * noise))
