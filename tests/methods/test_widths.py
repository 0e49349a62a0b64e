"""Goals are parsed, met within one percentage point, or rejected with the nearest feasible goal."""

import itertools
import math
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.models import get_model
from torchvision.models.resnet import BasicBlock, ResNet

from compressor.channels import Channels, analyse
from compressor.errors import Infeasible, UsageError
from compressor.methods.widths import Shelf, choose, hold, reached, uniform, units
from compressor.training.goal import WITHIN, Goal, Quantity, parse_rate, parse_target

SHAPE = (3, 8, 8)


def network() -> Channels:
    """Widths 16, 12 and 40; nothing is coupled."""
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 12, 3), nn.Conv2d(12, 40, 1), nn.Flatten(), nn.Linear(640, 5))
    return analyse(model, SHAPE)


def scores(channels: Channels, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(channels.atoms)


def widths(channels: Channels, mask: np.ndarray) -> list[int]:
    return [int(kept.sum()) for kept in channels.split(mask).values()]


# Goals ------------------------------------------------------------------------------------------------------------------


def test_a_rate_is_a_share_of_macs() -> None:
    assert parse_rate(0.5) == Goal("macs", "--rate 0.5", share=0.5)


@pytest.mark.parametrize("rate", [0, 1, 1.5, -1, math.nan, math.inf, 50])
def test_a_rate_lies_between_nothing_and_all(rate: float) -> None:
    with pytest.raises(UsageError, match="--rate is the share of MACs to remove, between 0 and 1") as caught:
        parse_rate(rate)
    assert ("for 50 % write 0.5" in str(caught.value)) == (rate == 50)


@pytest.mark.parametrize(
    ("text", "goal"),
    [
        ("macs=50%", Goal("macs", "macs=50%", share=0.5)),
        (" filters = 40% ", Goal("filters", "filters = 40%", share=0.4)),
        ("params<=5M", Goal("params", "params<=5M", limit=5e6)),
        ("params<=250k", Goal("params", "params<=250k", limit=250e3)),
        ("size<=1.5MB", Goal("size", "size<=1.5MB", limit=1.5e6)),
        ("macs<=2e9", Goal("macs", "macs<=2e9", limit=2e9)),
        ("macs<=25%", Goal("macs", "macs<=25%", share=0.75)),
    ],
)
def test_targets_are_understood(text: str, goal: Goal) -> None:
    assert parse_target(text) == goal


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("", "was not understood: write it like macs=50%"),
        ("half", "was not understood"),
        ("macs", "was not understood"),
        ("macs=nan%", "was not understood"),
        ("macs=5", "was not understood"),
        ("params<=5X", "was not understood"),
        ("params<=0", "was not understood"),
        ("params<=-5M", "was not understood"),
        ("params<=1e999", "was not understood"),
        ("filters<=40", "was not understood"),
        ("macs=1e%", "'1e' is not a number"),
        ("mac=50%", "--target 'mac' is not one of macs, params, size, filters, weights; did you mean 'macs'"),
        ("latency<=5", "--target 'latency' is not one of macs"),
        ("macs=0%", "removes 0%; the share must be between 0 % and 100 %"),
        ("macs=100%", "removes 100%"),
        ("macs=150%", "removes 150%"),
        ("macs=-5%", "removes -5%"),
        ("macs<=0%", "removes 100%"),
    ],
)
def test_targets_that_make_no_sense_are_told(text: str, answer: str) -> None:
    with pytest.raises(UsageError, match="--target") as caught:
        parse_target(text)
    assert answer in str(caught.value)


# Shelf ------------------------------------------------------------------------------------------------------------------


def test_the_weakest_of_all_groups_go_first() -> None:
    channels = network()
    own = np.concatenate([np.arange(16), np.arange(12) + 0.5, np.arange(40) + 100.0])
    mask = Shelf(channels, own, round_to=1, most=0.95).without_weakest(5)  # 0, 0.5, 1, 1.5 and 2
    first, second, third = channels.split(mask).values()
    assert np.flatnonzero(~first).tolist() == [0, 1, 2]
    assert np.flatnonzero(~second).tolist() == [0, 1]
    assert third.all()


def test_widths_are_rounded_up_to_whole_multiples() -> None:
    channels = network()
    shelf = Shelf(channels, scores(channels), round_to=8, most=0.95)
    assert widths(channels, shelf.without(np.array([1, 1, 1]))) == [16, 12, 40]
    assert widths(channels, shelf.without(np.array([7, 5, 9]))) == [16, 8, 32]
    assert widths(channels, shelf.without(np.array([8, 4, 99]))) == [8, 8, 8]


def test_widths_suit_processors_where_nothing_is_asked() -> None:
    assert units(np.array([1, 3, 4, 12, 16, 31, 32, 512])).tolist() == [1, 1, 1, 2, 4, 4, 8, 8]


def test_most_of_a_group_may_go_but_never_all() -> None:
    channels = network()
    everything = np.array([99, 99, 99])
    assert widths(channels, Shelf(channels, scores(channels), 1, 0.75).without(everything)) == [4, 3, 10]
    assert widths(channels, Shelf(channels, scores(channels), 1, 1.0).without(everything)) == [1, 1, 1]


def test_equal_scores_go_in_order() -> None:
    channels = network()
    mask = Shelf(channels, np.zeros(channels.atoms), 1, 0.95).without_weakest(3)
    assert np.flatnonzero(~mask).tolist() == [0, 1, 2]


def test_uniform_scores_take_the_same_share_of_every_group() -> None:
    channels = network()
    mask = Shelf(channels, uniform(channels, scores(channels)), 1, 0.95).without_weakest(channels.atoms // 2)
    assert widths(channels, mask) == [8, 6, 20]
    own = channels.split(scores(channels))
    for name, kept in channels.split(mask).items():
        assert own[name][~kept].max() < own[name][kept].min()


# Choices ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def resnet() -> Channels:
    return analyse(get_model("resnet18"), (3, 64, 64))


@pytest.mark.parametrize("quantity", ["macs", "params", "size"])
@pytest.mark.parametrize("round_to", [None, 1])
def test_a_share_is_met_within_a_point(resnet: Channels, quantity: Quantity, round_to: int | None) -> None:
    for share in (0.1, 0.3, 0.5, 0.7, 0.9):
        goal = Goal(quantity, "", share=share)
        mask = choose(resnet, scores(resnet), goal, round_to=round_to)
        assert reached(resnet, mask, goal) == pytest.approx(share, abs=WITHIN)


def test_one_channel_more_or_less_whichever_lies_nearer() -> None:
    """Ten channels with a tenth of the cost each: 0.54 is nearer to five than to six."""
    channels = analyse(nn.Sequential(nn.Conv2d(3, 10, 1, bias=False), nn.Conv2d(10, 2, 1, bias=False)), SHAPE)
    for share, gone in [(0.5, 5), (0.54, 5), (0.56, 6)]:
        assert (~choose(channels, scores(channels), Goal("macs", "", share=share), round_to=1)).sum() == gone


def test_a_limit_is_never_exceeded() -> None:
    channels = network()
    for limit in (1000, 2345, 3456):
        mask = choose(channels, scores(channels), parse_target(f"params<={limit}"))
        assert limit * 0.8 < channels.params.total(mask) <= limit


def test_bytes_beside_the_weights_count_as_part_of_the_size() -> None:
    channels, goal = network(), parse_target("size<=12KB")
    mask = choose(channels, scores(channels), goal, overhead=2000)
    assert 10_000 * 0.9 < channels.bytes.total(mask) <= 10_000
    full = channels.bytes.total(channels.all_kept()) + 2000
    assert reached(channels, mask, goal, overhead=2000) == 1 - (channels.bytes.total(mask) + 2000) / full


def test_a_rate_of_filters_is_the_same_in_every_group_and_rounds_down() -> None:
    channels, goal = network(), parse_target("filters=40%")
    mask = choose(channels, scores(channels), goal)
    assert widths(channels, mask) == [16 - 6, 12 - 4, 40 - 16]
    assert reached(channels, mask, goal) == pytest.approx(26 / 68)


def test_a_higher_rate_never_costs_more(resnet: Channels) -> None:
    rates = np.arange(0.02, 0.92, 0.02)
    for seed in range(3):
        cuts = [choose(resnet, scores(resnet, seed), parse_rate(rate), round_to=1) for rate in rates]
        costs = [resnet.macs.total(mask) for mask in cuts]
        assert costs == sorted(costs, reverse=True)
        assert all((stronger <= weaker).all() for weaker, stronger in itertools.pairwise(cuts))
        rounded = [resnet.macs.total(choose(resnet, scores(resnet, seed), parse_rate(rate))) for rate in rates]
        assert rounded == sorted(rounded, reverse=True)


def test_coarse_steps_are_made_up_for_by_narrow_groups() -> None:
    """One step of 8 in the wide group is a fifth of the parameters; the narrow group has steps of two."""
    model = nn.Sequential(nn.Conv2d(3, 40, 1, bias=False), nn.Conv2d(40, 14, 1, bias=False), nn.Conv2d(14, 5, 1, bias=False))
    channels, goal = analyse(model, SHAPE), parse_target("params=50%")
    own = np.concatenate([np.arange(40) * 0.0, np.arange(14) + 1.0])  # the wide group is pruned first
    coarse = Shelf(channels, own, None, 0.95)
    alone = [1 - channels.params.total(coarse.without(np.array([8 * n, 0]))) / 750 for n in range(5)]
    assert min(abs(cut - 0.5) for cut in alone) > 0.04
    mask = choose(channels, own, goal)
    assert reached(channels, mask, goal) == pytest.approx(0.5, abs=WITHIN)


def test_what_cannot_be_reached_is_told_with_the_nearest() -> None:
    channels = network()
    with pytest.raises(Infeasible, match=r"--rate 0.999 requires 99.9% fewer macs, but at most 97.6% can be removed") as caught:
        choose(channels, scores(channels), parse_rate(0.999))
    nearest = float(str(caught.value).partition("--rate 0.999")[2].partition("--rate ")[2].split()[0])
    choose(channels, scores(channels), parse_rate(nearest))


@pytest.mark.parametrize("asked", ["params<=1", "params=99.9%", "size<=10"])
def test_the_nearest_goal_is_told_in_the_words_of_the_one_that_was_asked(asked: str) -> None:
    channels = network()
    with pytest.raises(Infeasible) as caught:
        choose(channels, scores(channels), parse_target(asked))
    nearest = str(caught.value).partition("--target ")[2].split()[0]
    assert nearest.startswith(asked.rstrip("0123456789.%"))
    choose(channels, scores(channels), parse_target(nearest))


def test_a_goal_that_is_met_already_is_told() -> None:
    channels = network()
    params = channels.params.total(channels.all_kept())
    with pytest.raises(Infeasible, match=f"params<=5M is already met: the model has {params:,.0f} parameters"):
        choose(channels, scores(channels), parse_target("params<=5M"))


def test_nothing_to_choose_from() -> None:
    channels = analyse(nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), SHAPE)
    with pytest.raises(Infeasible, match="No channel of this model can be pruned"):
        choose(channels, np.zeros(0), parse_rate(0.5))


# Excluded layers --------------------------------------------------------------------------------------------------------


def test_patterns_hold_the_groups_of_the_layers_they_name() -> None:
    channels = hold(network(), ["1"])
    assert [group.name for group in channels.groups] == ["0", "2"]
    assert channels.held == {"1": "excluded by --keep 1"}
    assert [group.name for group in hold(network(), ["[01]", "4"]).groups] == ["2"]
    assert not hold(network(), ["*"]).groups


def test_a_pattern_may_name_a_norm_or_a_depthwise_layer() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 5, 3))
    for pattern in "012":
        assert not hold(analyse(model, SHAPE), [pattern]).groups


def test_a_pattern_holds_what_a_layer_makes_not_what_it_reads() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 6, 2), nn.Conv2d(6, 5, 3))
    assert [group.name for group in hold(analyse(model, SHAPE), ["1"]).groups] == ["0"]


def test_a_pattern_that_names_nothing_is_told() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.backbone(x))

    with pytest.raises(UsageError, match=r"--keep 'backbon' matches no layer; did you mean 'backbone'\?"):
        hold(analyse(Named(), SHAPE), ["backbon"])
    assert len(hold(analyse(Named(), SHAPE), ["head"]).groups) == 1  # already frozen, but not an error


# Monotone ---------------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.floats(0.02, 0.85), st.floats(0.02, 0.9), st.integers(0, 20), st.sampled_from([None, 1]))
def test_a_higher_rate_never_gives_a_costlier_network(one: float, other: float, seed: int, round_to: int | None) -> None:
    """Goals are met within one point, so the order of rates two points apart is kept; with single channels, always."""
    low, high = sorted((one, other))
    assume(high - low > 2 * WITHIN or round_to == 1)
    channels = residual_network()
    least = Shelf(channels, scores(channels, seed), round_to, 0.95, 1).without_weakest(channels.atoms)
    assume(1 - channels.macs.total(least) / channels.macs.total(channels.all_kept()) > high)
    masks = [choose(channels, scores(channels, seed), parse_rate(rate), round_to=round_to) for rate in (low, high)]
    macs, params = ([table.total(mask) for mask in masks] for table in (channels.macs, channels.params))
    assert macs[0] >= macs[1]
    if round_to == 1:
        assert params[0] >= params[1]


@cache
def residual_network() -> Channels:
    return analyse(ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10), (3, 32, 32))
