"""Group Fisher: squared gradients, per image, of the gate shared by all coupled layers."""

import pytest
import torch
from torch import nn
from toy import Random, Toy, job

from compressor.methods.prune.importance import savings
from compressor.methods.prune.papers.fisher import Fisher
from compressor.tasks.classify import Classify


def test_each_image_is_squared_by_itself() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    task = job("macs=50%", model)
    by_hand = torch.zeros(4)
    for image in Random().batches("train", batch_size=1, limit=6):
        gate = torch.ones(4, 1, 1, requires_grad=True)
        (loss,) = Classify().loss(model[2:](model[:2](image.inputs) * gate), image).values()
        by_hand += torch.autograd.grad(loss, gate)[0].flatten() ** 2
    scores = Fisher(task, images=6, by_cost=False).scores(task.channels)
    assert scores == pytest.approx(by_hand.numpy(), rel=1e-3)


def test_coupled_layers_share_one_gate() -> None:
    """The residual stream after the first stage has two consumers, a convolution and a shortcut: gradients are summed first."""
    model = Toy().eval()
    task = job("macs=50%", model)
    by_hand = torch.zeros(8)
    for image in Random().batches("train", batch_size=1, limit=3):
        gate = torch.ones(8, 1, 1, requires_grad=True)
        stream = model.stages[0](model.stem(image.inputs).relu()) * gate
        (loss,) = Classify().loss(model.head(model.stages[1:](stream).mean((2, 3))), image).values()
        by_hand += torch.autograd.grad(loss, gate)[0].flatten() ** 2
    scores = task.channels.split(Fisher(task, images=3, by_cost=False).scores(task.channels))
    assert scores["stages.0.conv2"] == pytest.approx(by_hand.numpy(), rel=1e-3)


def test_of_channels_that_matter_alike_the_dearer_goes_first() -> None:
    task = job("macs=50%")
    plain = Fisher(task, images=3, by_cost=False).scores(task.channels)
    per_mac = Fisher(task, images=3).scores(task.channels)
    assert per_mac == pytest.approx(plain / savings(task.channels, task.channels.macs))
