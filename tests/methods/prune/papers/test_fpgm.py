"""Filter pruning by the geometric median, on filters that lie on a line."""

import numpy as np
import pytest
import torch
from torch import nn
from toy import Toy, job

from compressor.methods.prune.papers.fpgm import FPGM
from compressor.training.method import Job


def on_a_line(target: str = "filters=50%") -> Job:
    """Four filters at 0, 1, 2 and 10."""
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 2, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([0.0, 1.0, 2.0, 10.0]).view(4, 1, 1, 1))
    return job(target, model, (1, 4, 4))


def test_distances_are_summed_over_all_filters_of_the_layer() -> None:
    task = on_a_line()
    (group,) = task.channels.groups
    assert FPGM(task).distances(group).tolist() == [13, 11, 11, 27]


def test_filters_in_the_middle_go_even_before_a_filter_of_zeros() -> None:
    method = FPGM(on_a_line())
    method.prepare()
    assert method.model[0].weight.flatten().tolist() == [0, 10]


def test_every_layer_gives_the_same_share() -> None:
    task = job("macs=50%", round_to=1)
    shares = [own.mean() for own in task.channels.split(FPGM(task).kept(task.channels)).values()]
    assert max(shares) - min(shares) <= 1 / 8


def test_filters_of_coupled_layers_are_laid_end_to_end() -> None:
    task = job("filters=50%", Toy())
    (stream,) = [group for group in task.channels.groups if "stages.1.conv2" in group.layers]
    stage = task.model.stages[1]
    filters = torch.cat([stage.conv2.weight.flatten(1), stage.shortcut.weight.flatten(1)], 1).detach().double().numpy()
    by_hand = np.linalg.norm(filters[:, None] - filters[None], axis=2).sum(1)
    assert FPGM(task).distances(stream) == pytest.approx(by_hand)
