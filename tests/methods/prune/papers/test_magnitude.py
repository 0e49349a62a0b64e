"""Magnitude pruning of a small network, with scores computed by hand."""

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet
from toy import Toy, job

from compressor.channels import analyse
from compressor.channels.surgery import apply, plan
from compressor.methods.prune.filters import energies, norms
from compressor.methods.prune.papers.magnitude import Magnitude


def two_layers() -> nn.Sequential:
    """Three channels between two 1 x 1 convolutions, with norms 3, 4, 0 of producers and 4, 3, 1 of consumers."""
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.Conv2d(3, 2, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, 0.0], [0.0, -4.0], [0.0, 0.0]])[:, :, None, None])
        model[0].bias.fill_(100.0)  # does not count in the score
        model[1].weight.copy_(torch.tensor([[4.0, 0.0, 1.0], [0.0, 3.0, 0.0]])[:, :, None, None])
    return model


def test_the_norm_runs_over_all_weights_that_make_or_read_a_channel() -> None:
    task = job("filters=40%", two_layers(), (2, 4, 4))
    assert energies(task.model, task.channels).tolist() == [9, 16, 0]
    assert energies(task.model, task.channels, roles=("in",)).tolist() == [16, 9, 1]
    assert energies(task.model, task.channels, p=1).tolist() == [3, 4, 0]
    assert norms(task.model, task.channels, roles=("out", "in")).tolist() == [5, 5, 1]


def test_scores_are_scaled_by_their_root_mean_square_or_by_the_largest_of_the_group() -> None:
    """The norms are 5, 5 and 1; their mean square is 17."""
    task = job("filters=40%", two_layers(), (2, 4, 4))
    assert Magnitude(task).scores(task.channels) == pytest.approx(np.array([5, 5, 1]) / 17**0.5)
    assert Magnitude(task, largest=True).scores(task.channels).tolist() == [1, 1, 0.2]


def test_the_weakest_channel_goes() -> None:
    method = Magnitude(job("filters=40%", two_layers(), (2, 4, 4)))  # 1.2 of three channels
    method.prepare()
    assert torch.equal(method.model[0].weight, two_layers()[0].weight[:2])
    assert torch.equal(method.model[1].weight, two_layers()[1].weight[:, :2])


def test_groups_are_ranked_together_whatever_their_scale() -> None:
    """Every channel of the second group is larger than any of the first; within their group, all but one are weak."""
    model = nn.Sequential(nn.Conv2d(1, 4, 1, bias=False), nn.Conv2d(4, 4, 1, bias=False), nn.Conv2d(4, 1, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([0.9, 1.0, 0.8, 0.85]).view(4, 1, 1, 1))
        model[1].weight.copy_(torch.tensor([10.0, 1000.0, 20.0, 30.0]).view(4, 1, 1, 1).expand(4, 4, 1, 1))
        model[2].weight.zero_()
    task = job("macs=40%", model, (1, 4, 4), round_to=1)
    scores = task.channels.split(Magnitude(task).scores(task.channels))
    assert scores["1"].tolist() == pytest.approx([0.02, 2, 0.04, 0.06], rel=0.01)
    assert scores["0"].min() > 0.9  # the consumer weights of all four are equal
    method = Magnitude(task)
    method.prepare()
    assert (method.model[0].out_channels, method.model[1].out_channels) == (4, 2)


def test_a_group_of_zeros_scores_zero() -> None:
    model = two_layers()
    nn.init.zeros_(model[0].weight)
    nn.init.zeros_(model[1].weight)
    task = job("filters=40%", model, (2, 4, 4))
    assert Magnitude(task).scores(task.channels).tolist() == [0, 0, 0]


def test_channels_of_a_stream_count_the_weights_of_all_its_layers() -> None:
    task = job("macs=30%", Toy())
    (stream,) = [group for group in task.channels.groups if "stages.0.conv2" in group.layers]
    weights = dict(task.model.named_parameters())
    by_hand = np.zeros(stream.size)
    for name, dims in [
        ("stages.0.conv2.weight", (1, 2, 3)),  # producer
        ("stages.0.shortcut.weight", (1, 2, 3)),  # producer
        ("stages.1.conv1.weight", (0, 2, 3)),  # consumer
        ("stages.1.shortcut.weight", (0, 2, 3)),  # consumer
    ]:
        by_hand += weights[name].detach().double().square().sum(dims).numpy()
    found = task.channels.split(norms(task.model, task.channels, roles=("out", "in")))[stream.name]
    assert found == pytest.approx(np.sqrt(by_hand))


def test_it_cuts_before_training_and_only_once() -> None:
    method = Magnitude(job("macs=50%"))
    method.prepare()
    small = method.model
    assert method.removed is not None and method.finish() is small


def test_the_importance_of_a_group_is_that_of_the_weights_that_leave_with_it() -> None:
    """For coupled layers, the scores add up to the energy that pruning removes."""
    model = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10).eval()
    channels = analyse(model, (3, 32, 32))
    energy = energies(model, channels, roles=("out", "in"))

    def left(network: nn.Module) -> float:
        return sum(float(p.detach().double().square().sum()) for p in network.parameters() if p.dim() > 1)

    for group in channels.groups:
        kept = channels.join({group.name: np.arange(group.size) % 3 > 0})
        small = apply(model, plan(model, channels, kept))
        assert left(model) - left(small) == pytest.approx(energy[~kept].sum(), rel=1e-4)
