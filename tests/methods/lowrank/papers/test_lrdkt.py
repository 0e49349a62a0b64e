"""LRDKT: the decomposition of the authors' code, the ranks for a given theta, and each term of the loss in numbers."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toy import SHAPE, Random, Toy, Wide, batches, job, optimizer, train

from compressor.errors import UsageError
from compressor.methods.lowrank.papers.lrdkt import Lrdkt
from compressor.network.meta_device import frozen
from compressor.tasks.classify import Classify
from compressor.training.goal import parse_energy
from compressor.training.method import Job


def at_energy(energy: float, model: nn.Module, shape: tuple[int, ...], **more: int) -> Lrdkt:
    method = Lrdkt(Job(model, shape, None, parse_energy(energy), Classify(), images=Random(), **more))
    method.prepare()
    return method


def test_the_decomposition_of_the_authors() -> None:
    """Unfold W [N, C, rows, columns] to [C rows, N columns]; vertical filters U S^1/2, then horizontal ones S^1/2 V^T."""
    conv = nn.Conv2d(12, 16, 3, padding=1)
    weight = conv.weight.detach().double().numpy()
    u, s, vt = np.linalg.svd(weight.transpose(1, 2, 0, 3).reshape(36, 48))
    rank = int(np.argmax(np.cumsum(s**2) / np.sum(s**2) > 0.5)) + 1
    wanted = ((u[:, :rank] * s[:rank]) @ vt[:rank]).reshape(12, 3, 16, 3).transpose(2, 0, 1, 3)

    method = at_energy(0.5, nn.Sequential(conv), (12, 8, 8), round_to=1)
    up, down = method.chains["0"]
    assert method.ranks == {"0": rank}
    assert (up.weight.shape, down.weight.shape) == ((rank, 12, 3, 1), (16, rank, 1, 3))
    found = torch.einsum("rcy,nrx->ncyx", up.weight.detach().double()[..., 0], down.weight.detach().double()[:, :, 0])
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-6)
    np.testing.assert_allclose(up.weight.detach().flatten(1).norm(dim=1).numpy(), np.sqrt(s[:rank]), rtol=1e-5)
    assert up.bias is None and torch.equal(down.bias, conv.bias)


def test_the_rank_is_the_smallest_above_theta() -> None:
    """Squares of 5, 3, 1 and 1: the first keeps 0.5 of the energy, two 0.8, three 0.9."""
    layer = nn.Linear(16, 16)
    layer.weight.data = torch.diag(F.pad(torch.tensor([5.0, 3.0, 1.0, 1.0]).sqrt(), (0, 12)))
    thetas = (0.49, 0.51, 0.79, 0.81, 0.91)
    assert [at_energy(theta, nn.Sequential(layer), (16,), round_to=1).ranks["0"] for theta in thetas] == [1, 2, 2, 3, 4]


def test_all_layers_are_split_the_first_and_the_last_too() -> None:
    assert set(at_energy(0.2, Wide(), SHAPE, round_to=1).chains) == {"stem", "conv", "fc1", "fc2", "head"}
    one_by_one = nn.Sequential(nn.Conv2d(8, 16, 1))
    assert [part.kernel_size for part in at_energy(0.2, one_by_one, (8, 4, 4), round_to=1).chains["0"]] == [(1, 1), (1, 1)]


class Twice(nn.Module):
    """[n, channels, height, width] -> [n, classes]: both halves of the features through one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(SHAPE[0], 32, 3), nn.Linear(16, 10)

    def halves(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.stem(x).relu().mean((2, 3)).chunk(2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = self.halves(x)
        return self.head(first) - self.head(second)


def test_the_hint_of_a_layer_that_is_called_twice_is_the_sum_over_its_calls() -> None:
    method = Lrdkt(job("params=50%", Twice()), hints=0.125)
    method.prepare()
    method.eval()
    (batch,) = batches(1)
    terms = method.loss(batch)
    pairs = zip(method.model.halves(batch.inputs), method.original.halves(batch.inputs), strict=True)
    wanted = 0.125 * 0.5 * sum(F.mse_loss(ours, theirs) for ours, theirs in pairs)
    torch.testing.assert_close(terms["last_hint"], wanted)
    assert wanted > 0 and "first_hint" not in terms


def test_each_term_by_hand() -> None:
    task = job("params=50%", Wide())
    method = Lrdkt(task, soft=0.25, hints=0.125, temperature=2.0)
    method.prepare()
    method.eval()
    (batch,) = batches(1)

    def passed(model: Wide) -> tuple[torch.Tensor, ...]:
        """pool5, fc7 and logits, with their names in VGG."""
        pool = F.max_pool2d(F.relu(model.bn(model.conv(F.relu(model.stem(batch.inputs))))), 2).flatten(1)
        last = F.relu(model.fc2(F.relu(model.fc1(pool))))
        return pool, last, model.head(last)

    with torch.no_grad():
        terms = method.loss(batch)
        (pool, last, z), (pool_t, last_t, z_t) = passed(method.model), passed(task.model.eval())
    p, q = (z_t / 2).exp(), (z / 2).exp()
    p, q = p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)
    wanted = {
        "cross_entropy": F.cross_entropy(z, batch.targets),
        "teacher": -0.25 * (p * q.log()).sum() / 8,
        "first_hint": 0.125 * 0.5 * (pool - pool_t).square().sum() / (8 * 288),
        "last_hint": 0.125 * 0.5 * (last - last_t).square().sum() / (8 * 256),
    }
    assert list(terms) == list(wanted)
    for name, value in wanted.items():
        assert terms[name].item() == pytest.approx(value.item(), rel=1e-4), name


def test_its_weights_are_those_of_the_authors() -> None:
    method = Lrdkt(job("params=50%", Wide()))
    assert (method.soft, method.hints, method.temperature, method.rule) == (0.003, 0.0005, 5.0, "energy")


def test_one_linear_layer_has_one_hint_and_none_has_none() -> None:
    bare = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for model, hints in ((Toy(), ["first_hint"]), (bare, [])):
        method = Lrdkt(job("macs=20%", model))
        method.prepare()
        (batch,) = batches(1)
        assert list(method.loss(batch)) == ["cross_entropy", "teacher", *hints]


def test_the_original_teaches_and_neither_learns_nor_is_saved() -> None:
    task = job("macs=30%", Wide())
    task = replace(task, guide=frozen(task.model, torch.device("cpu")))  # as in a recipe: not used twice
    method = Lrdkt(task)
    method.prepare()
    losses = train(method, optimizer(method), range(2), 2)
    (batch,) = batches(1)
    assert all(map(math.isfinite, losses)) and method.loss(batch)["teacher"] < 0.02
    assert not any(parameter.requires_grad for parameter in method.original.parameters()) and not method.original.training
    weights = task.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in method.original.state_dict().items())
    assert {name.partition(".")[0] for name in method.state_dict()} == {"model"}


def test_a_temperature_of_nothing() -> None:
    with pytest.raises(UsageError, match="--set temperature=0"):
        Lrdkt(job("macs=30%", Wide()), temperature=0.0)
