"""CP decomposition: which layers are factored into four, and that the result is finite and trainable."""

from dataclasses import replace

import pytest
import torch
from splits import SPLITS
from torch import nn
from toy import Wide, job, optimizer, train

from compressor.methods.lowrank.decompositions import Layer
from compressor.methods.lowrank.papers.cp import CP
from compressor.network.cost import count_macs
from compressor.training.goal import parse_rank


@pytest.mark.parametrize(
    ("layer", "way"),
    [
        (nn.Conv2d(8, 16, 3), "cp"),
        (nn.Conv2d(8, 16, (1, 7)), "channel"),
        (nn.Conv2d(8, 16, 1), "channel"),
        (nn.Linear(8, 16), "linear"),
    ],
)
def test_kernels_are_split_in_four_and_what_has_none_in_two(layer: Layer, way: str) -> None:
    assert CP(job("macs=50%")).splits("layer", layer) == [SPLITS[way]]


def test_half_of_the_macs_go() -> None:
    task = job("macs=50%", Wide())
    method = CP(task)
    method.prepare()
    assert count_macs(method.model, task.inputs) / task.macs == pytest.approx(0.5, abs=0.02)
    kinds = [(tuple(part.kernel_size), part.groups > 1) for part in method.chains["conv"]]
    assert kinds == [((1, 1), False), ((3, 1), True), ((1, 3), True), ((1, 1), False)]


def test_components_that_would_cancel_each_other_stay_small_also_in_training() -> None:
    """This sum of three products, of which two factors are shared, has rank 3, but is a limit of tensors of rank 2."""
    model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Flatten(), nn.Linear(432, 5))
    a, b = torch.eye(3)[:2]
    products = [torch.einsum("n,c,y,x->ncyx", *vectors) for vectors in ((a, a, b, a), (a, b, a, a), (b, a, a, a))]
    model[0].weight.data = torch.stack(products).sum(0)
    task = replace(job("macs=20%", model, keep=("2",), round_to=1), goal=parse_rank(2))
    method = CP(task)
    method.prepare()
    assert method.ranks == {"0": 2}
    losses = train(method, optimizer(method, lr=1e-3), range(3), 3)
    assert losses[-1] < losses[0]
    assert max(float(parameter.detach().abs().max()) for parameter in method.chains["0"].parameters()) < 10
