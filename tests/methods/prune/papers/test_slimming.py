"""Network slimming: the scores of shared batch norms, and channels without one."""

import numpy as np
import pytest
import torch
from torch import nn
from toy import Toy, job

from compressor.errors import UsageError
from compressor.methods.prune.papers.slimming import Slimming


def test_channels_of_small_scale_go_whatever_their_sign_and_layer() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 1, 1))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([1.0, -0.9, 0.8, -0.7]))
        model[3].weight.copy_(torch.tensor([-0.1, 0.2, 2.0, 0.3]))
    method = Slimming(job("macs=40%", model, (1, 4, 4), round_to=1))
    method.prepare()
    assert method.model[1].weight.tolist() == pytest.approx([1.0, -0.9, 0.8, -0.7])
    assert method.model[3].weight.tolist() == pytest.approx([2.0, 0.3])


def test_norms_of_one_stream_are_averaged_and_what_has_none_goes_last() -> None:
    model = Toy()
    model.stages[0].shortcut = nn.Sequential(model.stages[0].shortcut, nn.BatchNorm2d(8))
    nn.init.constant_(model.stages[0].shortcut[1].weight, 3.0)
    task = job("macs=50%", model)
    scores = task.channels.split(Slimming(task).scores(task.channels))
    assert scores["stages.0.conv2"].tolist() == [2.0] * 8
    assert np.isinf(scores["stem"]).all()


def test_a_network_without_batch_norms_is_told_what_to_do() -> None:
    task = job("macs=50%", nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 1, 1)), (1, 4, 4))
    with pytest.raises(UsageError, match="no channel has one: use --method magnitude"):
        Slimming(task).prepare()
