"""The report of a run on its result: target and reached values, and an error if the cost is not the planned one."""

import numpy as np
import pytest
from small import make_net

from compressor.channels import Channels, Mask, analyse, remove
from compressor.errors import VerificationFailed
from compressor.network.cost import count_macs, count_params
from compressor.report import Change, Profile, Target
from compressor.runs import reporting
from compressor.training.goal import parse_rate, parse_target
from compressor.training.method import Made

SHAPE = (1, 8, 8)


@pytest.fixture
def channels() -> Channels:
    return analyse(make_net(), SHAPE)


def kept(channels: Channels, share: float) -> Mask:
    """All but the first channels of each group."""
    return channels.join({group.name: np.arange(group.size) >= round(share * group.size) for group in channels.groups})


def profile_of(macs: int, params: int) -> Profile:
    return Profile(macs, params, 4 * params, size_bytes=5 * params)


def test_a_cost_that_was_not_planned_is_a_failure(channels: Channels) -> None:
    mask = kept(channels, 0.5)
    small = remove(make_net(), channels, lambda _: mask, SHAPE).model
    true = profile_of(count_macs(small, SHAPE), count_params(small))
    planned = {"macs": channels.macs.total(mask), "params": channels.params.total(mask)}
    reporting.check_cost(true, planned)
    for wrong, words in (
        (profile_of(true.macs + 64, true.params), "MACs"),
        (profile_of(true.macs, true.params - 2), "parameters"),
    ):
        with pytest.raises(VerificationFailed, match=rf"The compressed network has \d+ {words}, but \d+ were planned"):
            reporting.check_cost(wrong, planned)


@pytest.mark.parametrize(
    ("wish", "round_to", "reached", "note"),
    [
        ("macs=50%", None, 0.5, ""),
        ("macs=49.5%", None, 0.5, ""),
        ("macs=40%", 1, 0.5, "whole channels only"),
        ("macs=40%", 8, 0.5, "widths are multiples of 8"),
        ("macs=60%", None, 0.5, "widths are multiples of up to 8"),
        ("params<=50", None, 0.6, ""),
        ("params<=30", None, 0.6, "widths are multiples of up to 8"),
        ("size<=200", None, 0.6, ""),
        ("size<=250", None, 0.6, ""),
        ("filters=25%", None, 0.25, ""),
        ("filters=30%", None, 0.25, "filters are removed in whole numbers"),
    ],
)
def test_the_target_is_reported_with_what_was_reached(
    channels: Channels, wish: str, round_to: int | None, reached: float, note: str
) -> None:
    goal, mask = parse_target(wish), kept(channels, 0.25)
    target = reporting.target_of_cut(goal, channels, mask, profile_of(1000, 100), profile_of(500, 40), round_to)
    assert target.reached == pytest.approx(reached)
    assert (target.quantity, target.text, target.note) == (goal.quantity, wish, note)
    assert (target.macs_at_asked is not None) == (goal.quantity == "filters")


def test_frozen_groups_are_the_reason(channels: Channels) -> None:
    held = channels.without({"conv1": "because"})
    half = profile_of(500, 40)
    target = reporting.target_of_cut(parse_rate(0.9), held, held.all_kept(), profile_of(1000, 100), half, round_to=None)
    assert (target.asked, target.note) == (0.9, "1 group is frozen")


def test_every_layer_is_listed_with_its_width_before_and_after(channels: Channels) -> None:
    mask, model = kept(channels, 0.5), make_net()
    small = remove(model, channels, lambda _: mask, SHAPE).model
    remarks = {"stem.0": "a group", "head": "it is an output of the model"}
    rows = reporting.layers(model, small, SHAPE, Made(remarks=remarks))
    assert [(row.name, row.kind, row.shape[0], row.shape_after[0]) for row in rows] == [
        ("stem.0", "Conv2d", 8, 4),
        ("conv1", "Conv2d", 16, 8),
        ("conv2", "Conv2d", 8, 4),
        ("head", "Linear", 10, 10),
    ]
    assert [row.group for row in rows] == ["a group", "", "", "it is an output of the model"]
    assert sum(row.macs_after for row in rows) == count_macs(small, SHAPE)


def test_the_warnings_of_a_report() -> None:
    change = Change(macs=0.5, params=0.5, weight_bytes=0.5, size_bytes=0.5, latency={"1": 0.8, "32": 1.9})
    target = Target("macs", 0.5, 0.4, "--rate 0.5", "whole channels only")
    assert reporting.warnings(Made(warnings=["see there"]), target, change) == [
        "see there",
        "target: 50.0% fewer macs, reached 40.0%: whole channels only",
        "no faster at batch 1: -50% MACs, +25% time",
    ]
