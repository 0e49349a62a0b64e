"""The baseline in the benchmark of repair: removed channels are replaced by their mean, from batch-norm statistics."""

import sys
from pathlib import Path

import pytest
import torch
from test_repair import Normed, Odd, cut
from torch import nn

from compressor.recovery.repair import Repaired

sys.path.append(str(Path(__file__).parents[2] / "examples/benchmarks"))
from absorb import absorb


def test_absorb_needs_no_image_for_what_is_always_the_same() -> None:
    model, shape = Normed(), (1, 4, 4)
    small = cut(model, shape, conv1=[1])
    for _ in range(2):  # a second call changes nothing
        assert absorb(model, small.model, small.cut, shape) == Repaired(["conv2"], {})
        assert small.model.bn2.running_mean.item() == pytest.approx(1 - 3 * 5)


def test_absorb_samples_what_an_activation_makes_of_a_normal_channel() -> None:
    model, shape = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 1, 3, bias=True)), (1, 32, 32)
    model[1].weight.data, model[1].bias.data = torch.tensor([1.0, -2.0]), torch.tensor([0.0, 0.0])
    model[3].weight.data.fill_(1 / 9)
    before = model[3].bias.item()
    small = cut(model, shape, **{"0": [1]})
    absorb(model, small.model, small.cut, shape)
    expected = 2 / (2 * torch.pi) ** 0.5  # of max(0, x), x normal with standard deviation 2
    assert small.model[3].bias.item() - before == pytest.approx(expected, rel=0.02)


def test_absorb_counts_what_each_group_lost() -> None:
    model, shape = nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1, groups=2)), (1, 4, 4)
    model[1].weight.data.zero_()
    model[1].bias.data = torch.tensor([1.0, 2.0, 3.0, 4.0])
    model[2].weight.data = torch.tensor([[10.0, 20.0], [30.0, 40.0]]).reshape(2, 2, 1, 1)
    before = model[2].bias.tolist()
    small = cut(model, shape, **{"0": [1]})  # the second of each group
    absorb(model, small.model, small.cut, shape)
    assert small.model[2].bias.tolist() == pytest.approx([before[0] + 2 * 20, before[1] + 4 * 40], rel=1e-5)


def test_where_no_batch_norm_says_anything_layers_are_left_alone() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Conv2d(3, 2, 1))
    small = cut(model, (1, 4, 4), **{"0": [1]})
    assert absorb(model, small.model, small.cut, (1, 4, 4)) == Repaired([], {"2": "no batch norm comes before it"})
    odd = Odd()
    small = cut(odd, (4,), first=[0])
    assert list(absorb(odd, small.model, small.cut, (4,)).left) == ["own", "one", "again"]
