"""Group Taylor: scores compared with the change of the loss when the weights of a channel are scaled down slightly."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toy import Random, Toy, batches, job

from compressor.errors import UsageError
from compressor.methods.prune.papers.taylor import Taylor
from compressor.tasks.classify import Classify


def test_it_is_the_slope_of_the_loss_when_all_weights_of_a_channel_shrink() -> None:
    task = job("macs=50%", images=Random(images=8))
    model, (batch,) = copy.deepcopy(task.model).double().eval(), batches(1)

    def loss(factor: float, atom: int) -> float:
        weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        for place in task.channels.places:
            if place.tensor in weights:
                at = torch.from_numpy(np.flatnonzero(place.atoms == atom))
                own = weights[place.tensor].index_select(place.dim, at)
                weights[place.tensor].index_copy_(place.dim, at, own * factor)
        return F.cross_entropy(torch.func.functional_call(model, weights, (batch.inputs.double(),)), batch.targets).item()

    scores = Taylor(task).scores(task.channels)
    for atom in (0, 10, 20, 40):
        slope = (loss(1 + 1e-5, atom) - loss(1 - 1e-5, atom)) / 2e-5
        assert np.sqrt(scores[atom]) == pytest.approx(abs(slope), rel=1e-3, abs=1e-6)


def test_apart_each_weight_counts_by_itself() -> None:
    task = job("macs=50%", nn.Sequential(nn.Conv2d(1, 3, 1, bias=False), nn.Conv2d(3, 5, 1), nn.Flatten()), (1, 1, 1))
    model = task.model
    squares = torch.zeros(3)
    for batch in Random((1, 1, 1)).batches("train", batch_size=128):
        (loss,) = Classify().loss(model(batch.inputs), batch).values()
        made, read = torch.autograd.grad(loss, [model[0].weight, model[1].weight])
        squares += (made * model[0].weight).square().sum((1, 2, 3)) + (read * model[1].weight).square().sum((0, 2, 3))
    scores = Taylor(task, together=False).scores(task.channels)
    assert scores == pytest.approx(squares.detach().numpy(), rel=1e-4)


def test_by_group_each_has_the_same_mean() -> None:
    task = job("macs=50%")
    plain, scaled = (task.channels.split(Taylor(task, by_group=on).scores(task.channels)) for on in (False, True))
    for name, own in scaled.items():
        assert own.mean() == pytest.approx(1) and own == pytest.approx(plain[name] / plain[name].mean())


def test_what_nothing_reads_goes_first() -> None:
    model = Toy()
    with torch.no_grad():
        model.stages[1].conv2.weight[:, [3, 5]] = 0
    task = job("macs=20%", model)
    scores = task.channels.split(Taylor(task).scores(task.channels))["stages.1.conv1"]
    assert np.flatnonzero(scores < 1e-12).tolist() == [3, 5]


def test_without_images_it_says_what_is_missing() -> None:
    with pytest.raises(UsageError, match="give --data"):
        Taylor(job("macs=50%", images=None)).prepare()
