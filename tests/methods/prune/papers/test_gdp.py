"""Global and dynamic pruning: which filters are masked, how they recover, and when masks are final."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from toy import SHAPE, Random, Toy, batches, job, optimizer, train

from compressor.data import open_data
from compressor.demo import DigitsNet
from compressor.methods.prune.importance import first_order
from compressor.methods.prune.papers.gdp import GDP
from compressor.runs.journal import Journal
from compressor.training.method import Progress
from compressor.training.recipe import Recipe
from compressor.training.train import Training


def prepared(target: str = "macs=50%", residual: str = "coupled", **settings: Any) -> GDP:
    method = GDP(job(target, Toy(), residual=residual, round_to=1), **settings)
    method.prepare()
    method.train()
    return method


def step(method: GDP, sgd: torch.optim.SGD) -> None:
    """One step on one batch."""
    (batch,) = batches(1)
    sgd.zero_grad()
    method.loss(batch)["cross_entropy"].backward()
    method.edit_gradients()
    sgd.step()
    method.end_step(batch)


def inside(method: GDP) -> tuple[nn.Conv2d, nn.Conv2d, Tensor]:
    """The two convolutions of the last stage, and the mask of weak channels between them [16]."""
    stage = method.model.stages[2]
    weak = method.channels.split(method.weak.numpy())["stages.2.conv1"]
    return stage.conv1, stage.conv2, torch.from_numpy(weak)


# Scores -----------------------------------------------------------------------------------------------------------------


def test_theta_is_the_mean_size_of_the_slope_over_batches() -> None:
    """For two layers without norms: the sum of W dL/dW and b dL/db over each filter, as in the paper."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    task = job("macs=50%", model, images=Random(images=256))
    by_hand = sum(
        (terms["0.weight"].sum((1, 2, 3)) + terms["0.bias"]).abs()
        for terms in first_order(model, task.objective, Random(images=256).batches("train", batch_size=128))
    )
    assert GDP(task).scores(task.channels) == pytest.approx(by_hand.numpy(), rel=1e-3)


def test_all_filters_stand_in_one_list_with_a_floor_in_each_layer() -> None:
    method = prepared("macs=80%")
    method.begin_epoch(Progress(0, 5))
    scores, weak = method.scores(method.channels), method.channels.split(method.weak.numpy())
    assert scores.shape == (method.channels.atoms,)
    gone = [own.mean() for own in weak.values()]
    assert max(gone) <= 0.95 and max(gone) - min(gone) > 0.1


# Masks ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("residual", ["coupled", "scatter"])
def test_the_masked_network_is_the_small_one(residual: str) -> None:
    method = prepared(residual=residual)
    for module in method.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias)
    method.begin_epoch(Progress(0, 5))
    images = torch.randn(4, *SHAPE)
    masked = method.model.eval()(images)
    assert torch.allclose(method.finish().eval()(images), masked, atol=1e-5)
    assert method.removed is not None and not method.removed.mask.all()


def test_masks_sit_where_the_channel_is_read() -> None:
    method = prepared()
    method.begin_epoch(Progress(0, 5))
    makes, reads, weak = inside(method)
    assert weak.any() and makes.weight.flatten(1).any(1).all()
    assert torch.equal((reads.weight == 0).all(3).all(2).all(0), weak)


@pytest.mark.parametrize("straight_through", [True, False])
def test_masked_weights_learn_straight_through_or_rest(straight_through: bool) -> None:
    method = prepared(straight_through=straight_through)
    before = method.model.stages[2].conv2.weight.detach().clone()
    sgd = torch.optim.SGD(method.parameters(), lr=0.1)
    method.begin_epoch(Progress(0, 5))
    step(method, sgd)
    _, reads, weak = inside(method)
    assert not reads.weight[:, weak].any()
    asleep = dict(zip(method.masked, method.asleep, strict=True))["stages.2.conv2.weight"]
    assert torch.equal(asleep[:, weak], before[:, weak]) != straight_through
    assert not asleep[:, ~weak].any()


def test_a_filter_that_matters_again_comes_back_with_its_weights() -> None:
    """Its consumers kept their weights while it was masked; with a larger norm it has the largest effect on the loss."""
    method = prepared()
    before = method.model.stages[2].conv2.weight.detach().clone()
    method.begin_epoch(Progress(0, 5))
    _, reads, weak = inside(method)
    (channel, *_) = torch.nonzero(weak).flatten().tolist()
    with torch.no_grad():
        method.model.stages[2].bn1.weight[channel] = 50.0
        method.model.stages[2].bn1.bias[channel] = 50.0
    method.choose()
    _, reads, weak = inside(method)
    assert not weak[channel] and torch.equal(reads.weight[:, channel], before[:, channel])


# Schedule ---------------------------------------------------------------------------------------------------------------


def choices(method: GDP) -> list[int]:
    """The steps, in an epoch of five, after which masks are updated."""
    chosen, choose, steps = [], method.choose, 0
    method.choose = lambda: (chosen.append(steps), choose())[1]  # type: ignore[method-assign]
    sgd = optimizer(method)
    method.begin_epoch(Progress(0, 5))
    for steps in range(1, 6):  # noqa: B007
        step(method, sgd)
    return chosen


def test_masks_are_chosen_every_so_many_steps() -> None:
    assert choices(prepared(every=2)) == [0, 2, 4]


@pytest.mark.parametrize(("epochs", "frozen"), [(1, [True]), (2, [True, True]), (5, [False, False, True, True, True])])
def test_masks_are_frozen_after_three_fifths_of_the_training(epochs: int, frozen: list[bool]) -> None:
    method = prepared()
    sgd, seen = optimizer(method), []
    for epoch in range(epochs):
        train(method, sgd, range(epoch, epoch + 1), epochs)
        seen.append(bool(method.hard.any()))
    assert seen == frozen


def test_what_is_frozen_stays_zero_and_the_rest_is_fine_tuned() -> None:
    method = prepared()
    sgd = optimizer(method)
    train(method, sgd, range(3), 5)
    weak, before = method.weak.clone(), method.model.stages[2].conv1.weight.detach().clone()
    train(method, sgd, range(3, 5), 5)
    makes, _, own = inside(method)
    assert torch.equal(method.weak, weak) and torch.equal(method.hard, weak)
    assert not makes.weight[own].any() and (makes.weight != before).flatten(1).any(1)[~own].all()
    assert not any(asleep.any() for asleep in method.asleep)


def test_frozen_filters_leave_the_network_while_it_trains() -> None:
    method = prepared()
    sgd = optimizer(method)
    train(method, sgd, range(3), 5)
    images = torch.randn(4, *SHAPE)
    masked = method.model.eval()(images)
    assert method.shrink() is not None
    assert torch.allclose(method.model.eval()(images), masked, atol=1e-5)
    train(method, optimizer(method), range(3, 5), 5)
    assert np.array_equal(method.gone.numpy(), method.weak.numpy())
    assert method.finish().stages[2].conv1.out_channels < 16


def test_its_training_is_saved_though_some_of_its_parameters_are_not_trained(tmp_path: Path) -> None:
    data = open_data("digits")
    method = GDP(job("filters=40%", DigitsNet(8), data.shape, images=data), images=128)
    state = tmp_path / "state.pt"
    Training(method, data, Recipe(epochs=3, batch_size=256), torch.device("cpu"), state).run(Journal(None))
    assert method.gone.any() and state.exists()
    resumed = Training(GDP(method.job), data, Recipe(epochs=3, batch_size=256), torch.device("cpu"), state)
    assert resumed.resume() and torch.equal(resumed.method.gone, method.gone)
