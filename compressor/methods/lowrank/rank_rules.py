"""Rank selection rules. They use tables of error and cost alone, so the search never runs the model.

A rule maps a strength between 0 and 1 to a choice of ranks for all layers; `meet` finds the strength at which a budget is met.
A choice is an index into the ladder of a layer, its candidate ranks, or None: the layer is not factored.
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
HALVINGS = 40  # bisection steps for the strength, to one part in 10^12
LEVEL = 1e-12  # of the cost of the dense layer: smaller differences between two ranks count as none


@dataclass(frozen=True)
class Ladder:
    """The candidate `ranks` [k] of one layer, ascending, with their errors and costs.

    `errors` [k]: fraction of the energy that is lost, 0..1, descending. `costs` [k]: cost in the quantity of the budget,
    ascending. `full`: cost of the dense layer. Only ranks that are cheaper than the dense layer are on a ladder.
    """

    ranks: IntArray
    errors: FloatArray
    costs: FloatArray
    full: float
    singular: FloatArray  # all singular values, descending (usually more than `ranks`)
    shape: tuple[int, int]  # of the matrix with these singular values
    weight: float = 1.0  # sensitivity of the network to the error of this layer

    @cached_property
    def analytic(self) -> int:
        """The rank found by `evbmf`; cached, because the search uses it many times."""
        return evbmf(self.singular, self.shape)

    @property
    def stairs(self) -> tuple[FloatArray, FloatArray]:
        """Errors and costs from the lowest rank upwards, the dense layer last [k + 1 each]."""
        return np.append(self.errors, 0.0), np.append(self.costs, self.full)

    def at(self, costs: Mapping[int, float], full: float) -> Ladder:
        """The same ladder with costs known at some ranks: linear interpolation, made non-decreasing in the rank."""
        known = sorted(costs)
        rising = np.maximum.accumulate(np.interp(self.ranks, known, [costs[rank] for rank in known]))
        return replace(self, costs=rising, full=full)


Choice = list[int | None]  # for each ladder an index into its ranks, or None: not factored
Rule = Callable[[Sequence[Ladder], float], Choice]
"""Strength 0..1: 0 factors (nearly) nothing, 1 uses the lowest ranks, and the cost never increases with the strength."""


# Rules ----------------------------------------------------------------------------------------------------------------


def knapsack(ladders: Sequence[Ladder], strength: float) -> Choice:
    """Minimise the sum of weight * error + lambda * cost: Lagrangian relaxation of the knapsack problem.

    All layers share one lambda, and `strength` is the fraction of all rank reductions that pay at this lambda. The sum of
    weight * error is then minimal for the cost of the choice; at a cost between two choices, `meet` exceeds the minimum by less
    than the error difference of one layer between neighbours on the lower convex hull of its (cost, error) points.
    """
    return _worthwhile(ladders, strength, lambda ladder, errors: ladder.weight * np.diff(errors))


def greedy(ladders: Sequence[Ladder], strength: float) -> Choice:
    """Repeatedly lower the rank of the layer that loses the smallest fraction of its remaining energy per cost saved.

    This maximises the product of the kept energies, each to the power of its weight: Zhang, Zou, He and Sun, "Accelerating
    Very Deep Convolutional Networks for Classification and Detection", TPAMI 2016, arXiv 1505.06798, section 2.4. `strength`
    is the fraction of all steps taken.
    Unlike the paper: steps that pay only together are taken together. The first step from a dense layer loses much and saves
    almost nothing if the highest rank is hardly cheaper.
    """

    def losses(ladder: Ladder, errors: FloatArray) -> FloatArray:
        return ladder.weight * np.diff(errors) / np.maximum(1 - errors[:-1], np.finfo(float).tiny)

    return _worthwhile(ladders, strength, losses)


def energy(ladders: Sequence[Ladder], threshold: float) -> Choice:
    """The smallest rank of each layer that keeps a fraction of the energy above the threshold; dense if no rank does.

    As in Lin et al., "Holistic CNN Compression via Low-rank Decomposition with Knowledge Transfer", TPAMI 2019.
    """
    return [_place(ladder, int(np.sum(1 - ladder.errors <= threshold))) for ladder in ladders]


def by_energy(ladders: Sequence[Ladder], strength: float) -> Choice:
    """`energy` with thresholds from 1 to just below 0, which every rank exceeds."""
    return energy(ladders, 1 - strength * (1 + LEVEL))


def minmax(ladders: Sequence[Ladder], strength: float) -> Choice:
    """Keep singular values above the same fraction of the largest in each layer, which minimises the largest relative error.

    As the allocation in ALDS (Liebenwein et al., "Compressing Neural Networks: Towards Determining the Optimal Layer-wise
    Decomposition", NeurIPS 2021); errors in the spectral norm.
    """
    counts = [int(np.sum(ladder.singular > strength * ladder.singular[:1])) for ladder in ladders]
    return [_at_least(ladder, count) for ladder, count in zip(ladders, counts, strict=True)]


def uniform(ladders: Sequence[Ladder], strength: float) -> Choice:
    """The same fraction of the ladder of each layer."""
    return [_place(ladder, round((1 - strength) * len(ladder.ranks))) for ladder in ladders]


def by_evbmf(ladders: Sequence[Ladder], strength: float) -> Choice:
    """The ranks found by `evbmf` at strength 1/2; interpolated to full rank at strength 0 and to none at strength 1.

    Ranks by EVBMF: Kim et al., "Compression of Deep Convolutional Neural Networks for Fast and Low Power Mobile Applications",
    ICLR 2016, arXiv 1511.06530. Interpolation: the weakened ranks of Gusak et al., "Automated Multi-Stage Compression of Neural
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
    """Lower each rank as long as the loss per cost saved is within a limit that the fraction `strength` of all steps meets.

    `losses` maps a ladder and its errors, from the dense layer downwards [k + 1], to the loss of each step [k].
    """
    prices = []
    for ladder in ladders:
        errors, costs = (values[::-1] for values in ladder.stairs)
        saved = np.maximum(-np.diff(costs), LEVEL * ladder.full)
        lost = losses(ladder, errors)
        # Isotonic regression merges a step with a cheaper one after it: the slopes of the lower convex hull.
        prices.append(isotonic_regression(lost / saved, weights=saved).x if len(lost) else lost)
    ordered = np.sort(np.concatenate([np.zeros(0), *prices]))
    count = math.floor(strength * len(ordered))
    limit = ordered[count - 1] if count else -np.inf
    taken = [int(np.searchsorted(own, limit, side="right")) for own in prices]
    return [_place(ladder, len(ladder.ranks) - steps) for ladder, steps in zip(ladders, taken, strict=True)]


def _at_least(ladder: Ladder, rank: float) -> int | None:
    """The smallest rank on the ladder that is at least `rank`."""
    return _place(ladder, int(np.searchsorted(ladder.ranks, rank)))


def _place(ladder: Ladder, index: int) -> int | None:
    return index if index < len(ladder.ranks) else None


# Budgets --------------------------------------------------------------------------------------------------------------


def cost(ladders: Sequence[Ladder], choice: Choice) -> float:
    """The total cost of all layers."""
    return math.fsum(own.full if index is None else own.costs[index] for own, index in zip(ladders, choice, strict=True))


def meet(ladders: Sequence[Ladder], rule: Rule, budget: float) -> Choice:
    """The most expensive choice of the rule within `budget`; the rest of the budget is spent on the most useful single ranks.

    Raises Infeasible, with the minimum cost, if even the lowest ranks exceed the budget.
    """
    low, high = 0.0, 1.0
    best = rule(ladders, high)
    least = cost(ladders, best)
    if least > budget:
        raise Infeasible(
            f"The budget is {budget:,.12g}, but the lowest ranks of all layers cost {least:,.12g}.\n"
            "Raise the budget, or allow more layers to be factored."
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
    """Raise the ranks of single layers by the step that lowers weight * error most per cost, until no step fits.

    A step may skip ranks: if the dense layer is hardly more expensive than its highest rank, only the dense layer pays.
    """
    losses = np.zeros((len(ladders), 1 + max((len(ladder.ranks) for ladder in ladders), default=0)))
    costs = np.full(losses.shape, np.inf)  # [ladders, stairs]; padding of shorter ladders never fits
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


# Analytic rank --------------------------------------------------------------------------------------------------------


def evbmf(singular: FloatArray, shape: tuple[int, int]) -> int:
    """The rank of a noisy matrix by empirical variational Bayesian matrix factorization (EVBMF); can be 0.

    Nakajima, Sugiyama, Babacan and Tomioka, "Global Analytic Solution of Fully-observed Variational Bayesian Matrix
    Factorization", JMLR 14, 2013; with threshold, free energy and bounds of the noise in the explicit form of Nakajima,
    Tomioka, Sugiyama and Babacan, "Condition for Perfect Dimensionality Recovery by Variational Bayesian PCA", JMLR 16, 2015.
    With L <= M the sides of the matrix, a = L / M and x = s^2 / (M noise), a singular value s is kept if

        x > (1 + t)(1 + a / t),    t the root of log(1 + t) / t + a log(1 + t / a) / t = 1

    where the variance of the noise minimises the free energy. The result does not depend on the scale of the matrix.
    It is 0 if a singular value is not finite.
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
        """Twice the free energy without constant terms [shape of `log_noise`]."""
        x = squares / (long * np.exp(np.asarray(log_noise)[..., None]))
        y = np.maximum(x, limit) - 1 - alpha
        tau = (y + np.sqrt(y**2 - 4 * alpha)) / 2  # of a retained component
        present = 1 + alpha + alpha / tau + np.log1p(tau) + alpha * np.log1p(tau / alpha)
        energies: FloatArray = np.where(x > limit, present, x).sum(-1) + short * np.asarray(log_noise)
        return energies

    most = math.ceil(short / (1 + alpha)) - 1  # more components cannot be distinguished from noise
    upper = squares.mean() / long
    lower = max(squares[most] / limit, squares[most:].mean(), np.finfo(float).eps ** 2) / long
    # The free energy has a local minimum for nearly every rank, so the lowest is first searched on a grid.
    grid = np.linspace(math.log(min(lower, upper)), math.log(upper), 256)
    deepest = int(np.argmin(free_energy(grid)))
    around = grid[max(deepest - 1, 0)], grid[min(deepest + 1, len(grid) - 1)]
    noise = math.exp(minimize_scalar(free_energy, bounds=around, method="bounded").x)
    return int(np.sum(squares > limit * long * noise))
