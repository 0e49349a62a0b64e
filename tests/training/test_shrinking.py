"""A network that is pruned for good during training ends like one that is pruned after training."""

from pathlib import Path

import pytest
import torch
from toy import SHAPE, Toy, job

from compressor.channels import Residual
from compressor.data import Data, open_data
from compressor.demo import DigitsNet
from compressor.methods.catalogue import catalogue, create
from compressor.methods.prune.filters import FilterPruning
from compressor.runs.journal import Journal
from compressor.training.method import Progress
from compressor.training.recipe import Recipe
from compressor.training.train import Training

EPOCHS = 5
CPU = torch.device("cpu")


def begun(name: str, residual: Residual, shrink: bool, optimizer: str = "sgd", state: Path | None = None) -> Training:
    torch.manual_seed(0)
    data = open_data("digits")
    method = create(catalogue()[name], job("filters=40%", DigitsNet(16), data.shape, residual), {})
    method.prepare()
    lr = 0.05 if optimizer == "sgd" else 5e-3
    recipe = Recipe(epochs=EPOCHS, batch_size=64, lr=lr, optimizer=optimizer)  # type: ignore[arg-type]
    return Training(method, data, recipe, CPU, state, shrink)


def width(training: Training) -> int:
    return sum(parameter.numel() for parameter in training.method.model.parameters())


@pytest.mark.parametrize("residual", ["coupled", "scatter"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_result_is_the_same_up_to_rounding(residual: Residual, optimizer: str) -> None:
    ends = []
    for shrink in (False, True):
        training = begun("ghfp", residual, shrink, optimizer)
        training.method.double()
        training.data = Doubled(training.data)
        training.optimizer = training.recipe.build(training.method.parameters())
        full = width(training)
        training.run(Journal(None))
        assert (width(training) < full) == shrink
        ends.append(training.method.finish().state_dict())
    assert ends[0].keys() == ends[1].keys()
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-6, atol=1e-9)


class Doubled:
    """Data with float64 images, so that rounding errors stay small during training."""

    def __init__(self, data: Data) -> None:
        self.data, self.counts = data, data.counts

    def batches(self, split: str, **more: object) -> "Twice":
        return Twice(self.data.batches(split, **more))  # type: ignore[arg-type]


class Twice(list):  # type: ignore[type-arg]
    def __init__(self, batches: object) -> None:
        super().__init__(batch._replace(inputs=batch.inputs.double()) for batch in batches)  # type: ignore[attr-defined]
        self.plan = batches.plan  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["ghfp", "pgmpf", "hfp"])
def test_a_run_that_was_stopped_after_it_shrank_ends_the_same(name: str, tmp_path: Path) -> None:
    whole = begun(name, "coupled", True)
    whole.run(Journal(None))

    class Stop(Journal):
        def epoch_ended(self, epoch: object, epochs: int) -> None:
            if epoch.epoch == EPOCHS - 1:  # type: ignore[attr-defined]
                raise KeyboardInterrupt

    stopped = begun(name, "coupled", True, state=tmp_path / "state.pt")
    with pytest.raises(KeyboardInterrupt):
        stopped.run(Stop(None))
    assert stopped.method.gone.any()
    resumed = begun(name, "coupled", True, state=tmp_path / "state.pt")
    assert resumed.resume()
    resumed.run(Journal(None))
    ends = [training.method.finish().state_dict() for training in (whole, resumed)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_what_is_hard_leaves_and_the_original_atoms_still_name_it() -> None:
    method = create(catalogue()["ghfp"], job("filters=40%"), {})
    assert isinstance(method, FilterPruning)
    assert method.shrink() is None  # nothing is hard
    method.weaken(rate=1.0, softness=0.0, hardness=0.5)
    wide = method.model.eval()
    images = torch.randn(2, *SHAPE)
    before = wide(images)
    places = method.shrink()
    assert places is not None and torch.equal(method.gone, method.hard)
    assert list(places["model.stages.1.conv1.weight"]) == [0, 1] and method.model.stages[1].conv1.weight.shape == (13, 7, 3, 3)
    torch.testing.assert_close(method.model.eval()(images), before)
    torch.testing.assert_close(method.wide()(images), before)
    assert method.shrink() is None  # nothing more is hard

    method.weaken(rate=1.0, softness=0.0, hardness=1.0)  # removed filters remain among the weakest
    assert (method.gone & ~method.hard).sum() == 0
    places = method.shrink()
    assert places is not None and len(places["model.stages.1.conv1.weight"][0]) == 10
    method.begin_epoch(Progress(1, 2))
    assert not method.holds  # nothing is left to hold
    small = method.finish()
    assert method.removed is not None and method.removed.difference < 1e-10
    assert small.stages[1].conv1.weight.shape == (10, 5, 3, 3)
    assert Toy().stages[1].conv1.weight.shape == (16, 8, 3, 3)
