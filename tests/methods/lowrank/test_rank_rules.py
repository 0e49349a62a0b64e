"""Rank selection rules follow their papers, and budgets are met and used up."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.errors import Infeasible
from compressor.methods.lowrank.rank_rules import RULES, Choice, Ladder, cost, energy, evbmf, meet


def ladder(
    errors: Sequence[float],
    costs: Sequence[float],
    full: float,
    *,
    weight: float = 1.0,
    singular: Sequence[float] = (1.0,),
    shape: tuple[int, int] = (1, 1),
) -> Ladder:
    """With ranks 1, 2, 3, ..."""
    ranks = np.arange(1, len(errors) + 1)
    return Ladder(ranks, np.array(errors, float), np.array(costs, float), full, np.array(singular), shape, weight)


# From the dense layer downwards, each step saves 4 and loses
A = ladder([0.6, 0.3, 0.1], [4, 8, 12], 16)  # 0.1, 0.2, 0.3
B = ladder([0.7, 0.2, 0.05], [4, 8, 12], 16)  # 0.05, 0.15, 0.5
NONE = ladder([], [], 5)  # a layer without a cheaper rank
# The higher rank saves almost nothing.
STEEP = ladder([0.2, 0.15], [4, 15], 16)


@st.composite
def some_ladders(draw: st.DrawFn) -> list[Ladder]:
    """Three, with up to four ranks each; costs are whole numbers."""
    found = []
    for _ in range(3):
        count = draw(st.integers(0, 4))
        errors = sorted(draw(st.lists(st.floats(0, 1, width=16), min_size=count, max_size=count)), reverse=True)
        costs = np.cumsum(draw(st.lists(st.integers(1, 9), min_size=count + 1, max_size=count + 1)))
        singular = sorted(draw(st.lists(st.floats(0.125, 8, width=16), min_size=count + 1, max_size=6)), reverse=True)
        weight = draw(st.sampled_from([0.0, 0.5, 1.0, 3.0]))
        shape = (len(singular), 8)
        found.append(ladder(errors, costs[:-1].tolist(), float(costs[-1]), weight=weight, singular=singular, shape=shape))
    return found


def all_choices(ladders: list[Ladder]) -> list[Choice]:
    return [list(choice) for choice in itertools.product(*([*range(len(own.ranks)), None] for own in ladders))]


def loss(ladders: list[Ladder], choice: Choice) -> float:
    return sum(own.weight * own.stairs[0][len(own.ranks) if i is None else i] for own, i in zip(ladders, choice, strict=True))


# Rules ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["knapsack", "greedy"])
def test_the_step_that_loses_least_per_cost_comes_first(name: str) -> None:
    """0.05 of B, 0.1 of A, 0.15 of B, 0.2 and 0.3 of A, 0.5 of B."""
    found = [RULES[name]([A, B], (steps + 0.5) / 6) for steps in range(6)]
    assert found == [[None, None], [None, 2], [2, 2], [2, 1], [1, 1], [0, 1]]


def test_a_weight_makes_a_layer_dearer_to_lower() -> None:
    heavy = ladder([0.7, 0.2, 0.05], [4, 8, 12], 16, weight=10)  # 0.5, 1.5, 5
    for name in ("knapsack", "greedy"):
        assert RULES[name]([A, heavy], 0.5) == [0, None]


def test_knapsack_adds_errors_and_greedy_multiplies_what_is_kept() -> None:
    """The third step of the first layer loses 0.25 of the total, or 0.25 / 0.7 of the remaining energy; the other loses 0.3."""
    ladders = [ladder([0.55, 0.3, 0.1], [4, 8, 12], 16), ladder([0.3], [12], 16)]
    assert RULES["knapsack"](ladders, 0.75) == [0, None]  # 0.55 + 0 < 0.3 + 0.3
    assert RULES["greedy"](ladders, 0.75) == [1, 0]  # 0.7 * 0.7 > 0.45 * 1


@pytest.mark.parametrize("name", ["knapsack", "greedy"])
def test_steps_that_pay_only_together_are_taken_together(name: str) -> None:
    """0.15 for a cost of 1, then 0.05 for 11: together 0.2 for 12, less than the other's 0.3 for 12."""
    assert RULES[name]([STEEP, ladder([0.3], [4], 16)], 1 / 3) == [0, None]


def test_energy_must_be_above_the_threshold() -> None:
    ladders = [ladder([0.25, 0.0625], [4, 8], 16), NONE]  # keep 0.75 and 0.9375
    assert [energy(ladders, threshold)[0] for threshold in (0.7, 0.75, 0.9, 0.9375)] == [0, 1, 1, None]
    assert RULES["energy"](ladders, 0.2) == [1, None]  # above 0.8


def test_minmax_keeps_what_is_above_one_share_of_the_largest() -> None:
    ladders = [
        ladder([0.3, 0.1], [4, 8], 16, singular=[4, 2, 1]),
        ladder([0.5, 0.01], [4, 8], 16, singular=[10, 9, 1]),
    ]
    assert RULES["minmax"](ladders, 0.5) == [0, 1]  # above 2: one; above 5: two
    assert RULES["minmax"](ladders, 0.25) == [1, 1]
    assert RULES["minmax"](ladders, 0.1) == [None, 1]  # above 0.4: all three; above 1: two


def test_uniform_takes_the_same_share_of_every_ladder() -> None:
    ladders = [A, ladder([0.5], [4], 16), NONE]
    assert [RULES["uniform"](ladders, strength) for strength in (0, 1 / 3, 2 / 3, 1)] == [
        [None, None, None],
        [2, None, None],
        [1, 0, None],
        [0, 0, None],
    ]


def test_evbmf_ranks_are_weakened_and_strengthened() -> None:
    """EVBMF finds 5 of 40 ranks: 5 + 35 / 2 = 22.5 halfway to all, 5 / 2 = 2.5 halfway to none."""
    own = Ladder(np.arange(1, 24), np.linspace(0.9, 0.1, 23), np.arange(100.0, 2400, 100), 2400.0, noisy(40, 60, 5), (40, 60))
    found = [RULES["evbmf"]([own], strength)[0] for strength in (0, 0.24, 0.25, 0.5, 0.75, 1)]
    assert found == [None, None, 22, 4, 2, 0]  # ranks 23, 5, 3 and 1


@pytest.mark.parametrize("name", RULES)
@settings(deadline=None)  # the time depends on the load of the machine
@given(ladders=some_ladders(), strengths=st.lists(st.floats(0, 1), min_size=2, max_size=5))
def test_more_strength_never_costs_more(name: str, ladders: list[Ladder], strengths: list[float]) -> None:
    costs = [cost(ladders, RULES[name](ladders, strength)) for strength in sorted(strengths)]
    assert costs == sorted(costs, reverse=True)


@pytest.mark.parametrize("name", RULES)
@settings(deadline=None)  # the time depends on the load of the machine
@given(ladders=some_ladders())
def test_strength_goes_from_whole_to_the_lowest_ranks(name: str, ladders: list[Ladder]) -> None:
    assert RULES[name](ladders, 0.0) == [None] * 3
    assert RULES[name](ladders, 1.0) == [0 if len(own.ranks) else None for own in ladders]


# Budgets ----------------------------------------------------------------------------------------------------------------


def test_a_budget_is_met_by_the_dearest_choice_that_fits() -> None:
    assert cost([A, B, NONE], [2, None, None]) == 12 + 16 + 5
    assert meet([A, B, NONE], RULES["knapsack"], 25) == [2, 1, None]  # 12 + 8 + 5
    assert meet([A, B, NONE], RULES["knapsack"], 24.9) == [1, 1, None]
    assert meet([], RULES["knapsack"], 0) == []


def test_what_is_left_is_spent_where_it_lowers_the_error_most() -> None:
    """Rank 2 in all layers costs 16; the remaining 4 lower the error of A by 0.2, or that of B by 0.15."""
    assert meet([A, B], RULES["uniform"], 20) == [2, 1]


def test_layers_that_are_alike_need_not_fare_alike() -> None:
    """12 remain above the lowest ranks: the dense first layer gains 0.2, its next rank 0.05 at almost the same cost."""
    assert meet([STEEP, STEEP], RULES["knapsack"], 20) == [None, 0]


def test_a_budget_below_the_lowest_ranks_is_refused() -> None:
    for rule in RULES.values():
        assert meet([A, B], rule, 8) == [0, 0]
        with pytest.raises(Infeasible) as caught:
            meet([A, B, NONE], rule, 12.5)
        assert str(caught.value).splitlines() == [
            "The budget is 12.5, but the lowest ranks of all layers cost 13.",
            "Raise the budget, or allow more layers to be factored.",
        ]


@pytest.mark.parametrize("name", RULES)
@settings(deadline=None)  # the time depends on the load of the machine
@given(ladders=some_ladders(), share=st.floats(0, 1))
def test_every_rule_uses_its_budget(name: str, ladders: list[Ladder], share: float) -> None:
    """No single layer can be improved within the budget."""
    least, full = (sum(float(own.stairs[1][place]) for own in ladders) for place in (0, -1))
    budget = least + share * (full - least)
    choice = meet(ladders, RULES[name], budget)
    assert cost(ladders, choice) <= budget
    for row, own in enumerate(ladders):
        for place in (*range(len(own.ranks)), None):
            other = [*choice[:row], place, *choice[row + 1 :]]
            assert cost(ladders, other) > budget or loss(ladders, other) >= loss(ladders, choice)


@settings(deadline=None)  # the time depends on the load of the machine
@given(ladders=some_ladders(), share=st.floats(0, 1))
def test_knapsack_is_within_one_step_of_the_best_of_all_choices(ladders: list[Ladder], share: float) -> None:
    least, full = (sum(float(own.stairs[1][place]) for own in ladders) for place in (0, -1))
    budget = least + share * (full - least)
    found = loss(ladders, meet(ladders, RULES["knapsack"], budget))
    best = min(loss(ladders, choice) for choice in all_choices(ladders) if cost(ladders, choice) <= budget)
    assert best - 1e-9 <= found <= best + max(longest_step(own) for own in ladders) + 1e-9


def longest_step(own: Ladder) -> float:
    """The largest decrease of weight * error between neighbours on the lower convex hull of a ladder."""
    errors, costs = own.stairs
    hull = [0]
    while hull[-1] < len(errors) - 1:
        slopes = (errors[hull[-1] + 1 :] - errors[hull[-1]]) / (costs[hull[-1] + 1 :] - costs[hull[-1]])
        hull.append(hull[-1] + 1 + int(np.argmin(slopes)))
    return own.weight * float(np.max(-np.diff(errors[hull]), initial=0))


# Analytic rank ----------------------------------------------------------------------------------------------------------


def noisy(rows: int, columns: int, rank: int, scale: float = 1.0) -> np.ndarray:
    """Singular values of a product of `rank` random columns and rows, plus noise, all of variance `scale`^2."""
    draw = np.random.default_rng(rank).standard_normal
    return np.linalg.svd(scale * (draw((rows, rank)) @ draw((rank, columns)) + draw((rows, columns))), compute_uv=False)


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (64, 576), (100, 100)])
@pytest.mark.parametrize("rank", [0, 1, 5, 12])
@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_evbmf_tells_rank_from_noise(shape: tuple[int, int], rank: int, scale: float) -> None:
    assert evbmf(noisy(*shape, rank, scale), shape) == rank


@pytest.mark.parametrize(("square", "rank"), [(4.8, 0), (5.05, 1)])
def test_evbmf_counts_what_is_above_its_threshold(square: float, rank: int) -> None:
    """Noise of variance 1/1000 in a square matrix, so x = s^2. For a = 1, log(1 + t) / t is 1/2 at t = 2.513, and
    (1 + t)(1 + 1 / t) = 4.911.
    """
    assert evbmf(np.sqrt([square, *[1.0] * 999]), (1000, 1000)) == rank


@pytest.mark.parametrize(
    ("singular", "shape", "rank"),
    [
        ([], (0, 3), 0),
        ([0.0, 0.0], (2, 2), 0),
        ([1.0], (1, 1), 0),
        ([1.0, 1.0, 1.0], (3, 9), 0),
        ([np.nan, 1.0], (2, 2), 0),
        ([np.inf, 1.0], (2, 2), 0),
        ([5.0, 4.0, 0.0, 0.0, 0.0, 0.0], (6, 6), 2),
        ([1e200, 1e-200, 0.0], (3, 30), 1),
    ],
)
def test_evbmf_answers_for_any_matrix(singular: list[float], shape: tuple[int, int], rank: int) -> None:
    assert evbmf(np.array(singular), shape) == rank
