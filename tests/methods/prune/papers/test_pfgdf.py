"""PFGDF: intervals around the mean of a layer, and the search for them."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from toy import Random, job

from compressor.errors import UsageError
from compressor.methods.prune.papers.pfgdf import PFGDF
from compressor.training.method import Job

SHAPE = (1, 2, 2)
SUMS = (1.0, 4.0, 5.0, 6.0, 9.0)  # mean 5, variance 6.8


class Branches(nn.Module):
    """Two layers side by side, each with the filters of SUMS; the output depends on the last filter of the first layer only."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = (nn.Conv2d(1, 5, 1, bias=False) for _ in range(2))
        self.head = nn.Linear(10, 5)
        with torch.no_grad():
            for layer in (self.one, self.other):
                layer.weight.copy_(torch.tensor(SUMS).view(5, 1, 1, 1))
            self.head.weight.zero_()
            self.head.weight[:, 4] = torch.arange(5) / 9.0  # the brighter, the higher the class ...
            self.head.bias.copy_(-(torch.arange(5) ** 2) / 2)  # ... and class k is nearest to brightness k

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.one(x), self.other(x)], 1).mean((2, 3)))


def branches(target: str = "filters=40%", **more: object) -> Job:
    return job(target, Branches(), SHAPE, round_to=1, **{"images": Random(SHAPE, images=64), **more})


def left(method: PFGDF) -> list[list[float]]:
    method.prepare()
    return [layer.weight.flatten().tolist() for layer in (method.model.one, method.model.other)]


@pytest.mark.parametrize(
    ("keep", "kept"), [("centre", [4.0, 5.0, 6.0]), ("tails", [1.0, 6.0, 9.0]), ("upper", [5.0, 6.0, 9.0])]
)
def test_what_lies_outside_the_interval_goes(keep: str, kept: list[float]) -> None:
    assert left(PFGDF(branches(), keep=keep)) == [kept, kept]


def test_strength_is_the_distance_in_standard_deviations() -> None:
    strengths = PFGDF(branches()).strengths(np.array(SUMS))
    assert strengths == pytest.approx(-np.abs(np.array(SUMS) - 5) / np.sqrt(6.8))


def test_equal_filters_are_all_in_the_middle() -> None:
    assert PFGDF(branches()).strengths(np.full(3, 2.0)).tolist() == [0, 0, 0]


def test_one_z_holds_for_all_layers() -> None:
    """The filters of the second layer are ten times as large, with the same distribution."""
    model = Branches()
    with torch.no_grad():
        model.other.weight.mul_(10)
    task = job("params=30%", model, SHAPE, round_to=1)
    scores = task.channels.split(PFGDF(task).scores(task.channels))
    assert scores["one"] == pytest.approx(scores["other"], abs=1e-6)


def test_the_search_takes_a_layer_as_far_as_the_accuracy_lasts() -> None:
    """In the first layer, the filter that the output depends on would be pruned first, so that layer is not pruned."""
    task = branches("params=20%")
    one, other = left(PFGDF(task, automatic=True))
    assert one == list(SUMS) and len(other) == 3
    assert left(PFGDF(task))[0] != list(SUMS)


def test_a_goal_that_costs_accuracy_is_met_all_the_same() -> None:
    one, other = left(PFGDF(branches("params=55%"), automatic=True))
    assert len(one) + len(other) == 4


def test_what_the_search_needs() -> None:
    with pytest.raises(UsageError, match="give --data"):
        PFGDF(branches(images=None), automatic=True).prepare()
    with pytest.raises(UsageError, match="has none: omit it"):
        PFGDF(branches(images=Random(SHAPE, images=0)), automatic=True).prepare()
    with pytest.raises(UsageError, match="use centre, tails, upper"):
        PFGDF(branches(), keep="middle")
