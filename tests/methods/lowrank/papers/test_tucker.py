"""Tucker decomposition: which layers are factored into three, and the rank by variational Bayes."""

import pytest
import torch
from splits import SPLITS
from torch import nn
from toy import Wide, job

from compressor.methods.lowrank.decompositions import Layer
from compressor.methods.lowrank.papers.tucker import Tucker
from compressor.network.cost import count_macs


@pytest.mark.parametrize(
    ("layer", "way"),
    [
        (nn.Conv2d(8, 16, 3), "tucker"),
        (nn.Conv2d(8, 16, (1, 7)), "tucker"),
        (nn.Conv2d(8, 16, 1), "channel"),
        (nn.Linear(8, 16), "linear"),
    ],
)
def test_kernels_are_split_in_three_and_what_has_none_in_two(layer: Layer, way: str) -> None:
    assert Tucker(job("macs=50%")).splits("layer", layer) == [SPLITS[way]]


def test_half_of_the_macs_go() -> None:
    task = job("macs=50%", Wide())
    method = Tucker(task)
    method.prepare()
    assert count_macs(method.model, task.inputs) / task.macs == pytest.approx(0.5, abs=0.02)
    assert [tuple(part.kernel_size) for part in method.chains["conv"]] == [(1, 1), (3, 3), (1, 1)]


def test_variational_bayes_finds_the_rank_under_noise_in_the_unfolding_that_needs_more() -> None:
    """A core of 3 x 5, so the unfolding by inputs has rank 5, and noise of a tenth of its magnitude."""
    model = nn.Sequential(nn.Conv2d(24, 40, 3, padding=1, bias=False), nn.Flatten())
    core = torch.einsum("na,abyx,bc->ncyx", torch.randn(40, 3), torch.randn(3, 5, 3, 3), torch.randn(5, 24))
    model[0].weight.data = core / core.std() + 0.1 * torch.randn(40, 24, 3, 3)
    method = Tucker(job("macs=50%", model, (24, 4, 4), images=None), ranks="evbmf")
    (site,) = method.sites(method.watched())
    assert site.split is SPLITS["tucker"] and site.ladder.analytic == 5
