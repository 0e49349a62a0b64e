"""SVD with activation statistics: the candidate decompositions, and the closed form of Zhang et al. in a network."""

import copy

import pytest
import torch
from splits import SPLITS
from torch import nn
from toy import Random, Wide, job

from compressor.errors import UsageError
from compressor.methods.lowrank.papers.svd import Svd
from compressor.network.cost import count_macs


def test_each_layer_may_be_split_in_every_way_unless_one_is_asked_for() -> None:
    conv, linear = nn.Conv2d(8, 8, 3), nn.Linear(8, 8)
    task = job("macs=50%")
    assert Svd(task).splits("", conv) == [SPLITS[way] for way in ("channel", "separable", "input")]
    assert Svd(task).splits("", linear) == [SPLITS["linear"]]
    for way in ("channel", "separable", "input"):
        method = Svd(task, split=way)
        assert method.splits("", conv) == [SPLITS[way]] and method.splits("", linear) == [SPLITS["linear"]]


def test_an_unknown_way_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"--set split=chanel is unknown: use auto, channel, .*channel"):
        Svd(job("macs=50%"), split="chanel")


@pytest.mark.parametrize("images", [Random(), None])
def test_half_of_the_macs_go(images: Random | None) -> None:
    task = job("macs=50%", Wide(), images=images)
    method = Svd(task)
    method.prepare()
    assert count_macs(method.model, task.inputs) / task.macs == pytest.approx(0.5, abs=0.02)


def test_the_chain_projects_the_output_on_its_principal_components() -> None:
    """y = U U^T (W x - mean) + mean at all positions of the images used for the statistics."""
    model = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.Flatten())
    task = job("macs=30%", copy.deepcopy(model), round_to=4)
    method = Svd(task, split="channel")
    method.prepare()
    (rank,) = method.ranks.values()
    images = torch.cat([batch.inputs for batch in Random().batches("train", batch_size=16)])
    with torch.no_grad():
        rows = model[0](images).movedim(1, -1).flatten(0, 2).double()  # [positions, 12]
        mean = rows.mean(0)
        basis = torch.linalg.svd(rows - mean, full_matrices=False).Vh[:rank]
        projected = (rows - mean) @ basis.T @ basis + mean
        found = method.chains["0"](images).movedim(1, -1).flatten(0, 2)
    torch.testing.assert_close(found, projected.float(), atol=1e-4, rtol=1e-4)
