"""Recalibrated batch-norm statistics are the plain averages over the images, and nothing else changes."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from compressor.data import Batch
from compressor.recovery.recalibrate import recalibrate


def network() -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2)
    )
    nn.init.constant_(model[1].running_mean, 9.0)  # of another network
    return model.eval()


def batches(count: int = 3) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    nothing = torch.zeros(4, dtype=torch.int64)
    return [Batch(torch.randn(4, 3, 5, 5, generator=generator) + 2, nothing, nothing) for _ in range(count)]


def test_statistics_are_plain_averages_over_the_batches() -> None:
    model, images = network(), [batch.inputs for batch in batches()]
    assert recalibrate(model, batches()) == 12
    with torch.no_grad():
        features = [model[0](x) for x in images]  # [4, 4, 5, 5] each
    means = torch.stack([x.mean((0, 2, 3)) for x in features]).mean(0)
    variances = torch.stack([x.var((0, 2, 3)) for x in features]).mean(0)
    assert torch.allclose(model[1].running_mean, means, atol=1e-6)
    assert torch.allclose(model[1].running_var, variances, atol=1e-6)


def test_a_second_pass_changes_nothing() -> None:
    model = network()
    recalibrate(model, batches())
    once = copy.deepcopy(model.state_dict())
    recalibrate(model, batches())
    assert all(torch.equal(value, once[name]) for name, value in model.state_dict().items())


def test_dropout_is_off_and_no_weight_moves() -> None:
    model, other = network(), network()
    other.load_state_dict(model.state_dict())
    del other[3]
    recalibrate(model, batches())
    recalibrate(other, batches())
    assert torch.equal(model[5].running_mean, other[4].running_mean)
    assert torch.equal(model[0].weight, other[0].weight)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_modes_and_momenta_are_given_back() -> None:
    model = network().train()
    model[1].eval()
    model[5].momentum = 0.25
    before = [module.training for module in model.modules()]
    recalibrate(model, batches())
    assert [module.training for module in model.modules()] == before
    assert (model[1].momentum, model[5].momentum) == (0.1, 0.25)


def test_a_network_without_statistics_is_left_alone() -> None:
    unused: Iterator[Batch] = iter(batches())
    assert recalibrate(nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2, track_running_stats=False)), unused) == 0
    assert len(list(unused)) == 3


def test_without_images_the_old_statistics_stay() -> None:
    model = network()
    assert recalibrate(model, []) == 0
    assert model[1].running_mean.tolist() == [9.0] * 4


def test_modes_are_given_back_when_the_network_fails() -> None:
    model = network()
    wrong = [Batch(torch.zeros(4, 7, 5, 5), *batches()[0][1:])]
    with pytest.raises(RuntimeError, match="channels"):
        recalibrate(model, wrong)
    assert not any(module.training for module in model.modules())
    assert model[1].running_mean.tolist() == [9.0] * 4
