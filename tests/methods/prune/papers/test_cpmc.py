"""CPMC on two layers: each criterion computed by hand, and the effect of each setting."""

import numpy as np
import pytest
import torch
from torch import nn
from toy import job

from compressor.methods.prune.papers.cpmc import CPMC
from compressor.training.method import Job


def two_groups() -> Job:
    """1 -> 2 -> 2 -> 1 channels, 1 x 1, of 4 x 4 pixels, then 2 x 2: every channel has known producer and consumer weights."""
    model = nn.Sequential(
        nn.Conv2d(1, 2, 1, bias=False), nn.Conv2d(2, 2, 1, stride=2, bias=False), nn.Conv2d(2, 1, 1, bias=False)
    )
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([3.0, -1.0]).view(2, 1, 1, 1))
        model[1].weight.copy_(torch.tensor([[1.0, -2.0], [0.0, 5.0]]).view(2, 2, 1, 1))
        model[2].weight.copy_(torch.tensor([-4.0, 6.0]).view(1, 2, 1, 1))
    return job("macs=40%", model, (1, 4, 4))


SUMS = np.array([3 + 1, 1 + 7, 3 + 4, 5 + 6])  # |W| of the producers and of the consumers of each channel
MACS = np.array([16 + 8, 16 + 8, 8 + 4, 8 + 4])
PARAMS = np.array([1 + 2, 1 + 2, 2 + 1, 2 + 1])


def scores(**settings: float) -> np.ndarray:
    task = two_groups()
    return CPMC(task, **settings).scores(task.channels)


def test_weight_is_the_sum_over_all_that_goes_with_the_channel() -> None:
    assert scores(macs=0.0, params=0.0) == pytest.approx(SUMS / SUMS.mean())


def test_or_the_mean() -> None:
    """Two layers, with four and three weights per channel."""
    model = nn.Sequential(*(nn.Conv2d(*widths, 1, bias=False) for widths in ((1, 2), (2, 3), (3, 1))))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([2.0, 4.0]).view(2, 1, 1, 1))
        model[1].weight.copy_(torch.tensor([[1.0, -2.0], [3.0, 0.0], [0.0, 6.0]]).view(3, 2, 1, 1))
        model[2].weight.copy_(torch.tensor([3.0, -6.0, 9.0]).view(1, 3, 1, 1))
    task = job("macs=40%", model, (1, 4, 4))
    weights = task.channels.split(CPMC(task, mean=True).weight(task.channels))
    assert weights["0"].tolist() == [(2 + 1 + 3) / 4, (4 + 2 + 6) / 4]
    assert weights["1"].tolist() == [(1 + 2 + 3) / 3, (3 + 6) / 3, (6 + 9) / 3]


def test_squares_make_it_the_root_of_the_sum_of_squares() -> None:
    roots = np.sqrt(np.array([9 + 1, 1 + 4 + 25, 1 + 4 + 16, 25 + 36]))
    assert scores(macs=0.0, params=0.0, squares=True) == pytest.approx(roots / roots.mean())


def test_cost_and_parameters_count_against_it() -> None:
    weight, cost, params = (values / values.mean() for values in (SUMS, MACS, PARAMS))
    assert scores(macs=0.3, params=0.2) == pytest.approx(weight - 0.3 * cost - 0.2 * params)
    assert scores(macs=0.3, params=0.2, ratio=True) == pytest.approx(weight / (cost**0.3 * params**0.2))


def test_one_ranking_over_all_layers_decides() -> None:
    method = CPMC(two_groups())
    method.prepare()
    assert method.model[0].weight.flatten().tolist() == [-1.0]  # the lowest of all four is pruned
    assert method.model[2].weight.flatten().tolist() == [-4.0, 6.0]
