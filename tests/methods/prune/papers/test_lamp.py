"""LAMP scores of small examples, computed by hand."""

import numpy as np
import pytest
import torch
from torch import nn
from toy import job

from compressor.methods.prune.papers.lamp import LAMP, adapted


def test_each_is_measured_by_what_would_remain_with_it() -> None:
    assert adapted(np.array([16.0, 1.0, 9.0, 4.0])) == pytest.approx([1, 1 / 30, 9 / 25, 4 / 29])


def test_the_scale_of_a_layer_does_not_matter() -> None:
    energy = np.array([3.0, 1.0, 2.0])
    assert adapted(1000 * energy) == pytest.approx(adapted(energy))


def test_a_layer_of_zeros_scores_zero() -> None:
    assert adapted(np.zeros(3)).tolist() == [0, 0, 0]


def test_layers_are_ranked_together_by_all_weights_of_a_channel() -> None:
    """Energies of 1 + 1, 4 + 1, 9 + 1 of producers and consumers."""
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Conv2d(3, 1, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1))
        model[1].weight.fill_(1.0)
    task = job("macs=40%", model, (1, 4, 4))
    assert LAMP(task).scores(task.channels) == pytest.approx([2 / 17, 5 / 15, 1])
