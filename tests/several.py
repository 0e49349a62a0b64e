"""The program that torchrun starts in each process for `training/test_distributed.py`, with a folder for its results.

Without torchrun, one process does the same, for comparison, except for the final failure.
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from toy import job

from compressor.data import Data, open_data
from compressor.demo import DigitsNet
from compressor.errors import UsageError
from compressor.methods import catalogue
from compressor.report.schema import Epoch
from compressor.runs.journal import Journal
from compressor.runs.run import check_needs
from compressor.training import distributed
from compressor.training.recipe import Recipe
from compressor.training.train import Training

EPOCHS = 3
NET = '''
from torch import nn


class Net(nn.Sequential):
    """[n, 1, 8, 8] -> [n, 10], without batch norm and dropout: the gradient of a batch is the sum of those of its parts."""

    def __init__(self, width=16):
        super().__init__(
            nn.Conv2d(1, width, 3, padding=1), nn.ReLU(),
            nn.Conv2d(width, width, 3, stride=2), nn.ReLU(),
            nn.Flatten(), nn.Linear(9 * width, 10),
        )
'''
# The teacher is pruned as by `prune`, re-estimated by least squares, and trained by a distillation method.
DISTILL = ("distill", "--teacher", "net.pt", "--arch", "net.py:Net", "--rate", "0.5", "--epochs", "2", "--batch-size", "151")
RUN = (*DISTILL, "--data", "digits", "--device", "cpu", "--out", "run")


def write_project(folder: Path) -> None:
    """net.py, and net.pt with weights for it."""
    (folder / "net.py").write_text(NET)
    torch.manual_seed(0)
    torch.save(make_net().state_dict(), folder / "net.pt")


def make_net() -> nn.Module:
    names: dict[str, type[nn.Module]] = {}
    exec(compile(NET, "net.py", "exec"), names)
    return names["Net"]()


class Drowsy(DigitsNet):
    """With batch norm and dropout."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.dropout(x, 0.2, self.training))


class Stop(Journal):
    """Interrupts training after the last epoch but one is saved."""

    def epoch_ended(self, epoch: Epoch, epochs: int) -> None:
        if epoch.epoch == EPOCHS - 1:
            raise KeyboardInterrupt


def begun(name: str, model: nn.Module, data: Data, state: Path | None = None, **recipe: Any) -> Training:
    """A training of the method `name`, after its `prepare`."""
    torch.manual_seed(0)
    method = catalogue.create(catalogue.catalogue()[name], job("filters=40%", model, data.shape), {})
    method.prepare()
    return Training(method, data, Recipe(epochs=EPOCHS, batch_size=201, lr=0.1, **recipe), torch.device("cpu"), state)


def keep(folder: Path, name: str, training: Training) -> None:
    """Save the final state of this process."""
    history = [(row.losses, row.held_out and row.held_out.value) for row in training.history]
    torch.save((training.method.state_dict(), history), folder / f"{name}-{distributed.index()}.pt")


def train(folder: Path) -> None:
    """Train with several kinds of methods, and interrupt and resume one training."""
    data = open_data("digits")
    torch.manual_seed(1)
    flat, normed, drowsy = make_net(), DigitsNet(8), Drowsy(8)
    trainings = {
        "parts": begun("pgmpf", flat, data, accumulate=2, ema_decay=0.5, cutout=0.25),
        "norms": begun("sfp", normed, data, channels_last=True),
        "dropout": begun("gdp", drowsy, data),
        "shrunk": begun("ghfp", normed, data),
    }
    for name, training in trainings.items():
        training.run(Journal())
        keep(folder, name, training)
    state = folder / f"state-{distributed.index()}.pt"  # as on machines without a shared disk
    try:
        begun("ghfp", normed, data, state).run(Stop())
    except KeyboardInterrupt:
        resumed = begun("ghfp", normed, data, state)
        assert resumed.resume() and len(resumed.history) == EPOCHS - 1
        resumed.run(Journal())
        keep(folder, "resumed", resumed)


def compress(*arguments: str) -> None:
    """`compress ARGUMENTS`; exits on a failure."""
    from compressor.cli import main

    sys.argv = ["compress", *arguments]
    try:
        main()
    except SystemExit as done:
        if done.code:
            raise


def several(folder: Path) -> None:
    os.chdir(folder)
    compress(*RUN, "--json")
    train(folder)
    if distributed.count() > 1:
        try:
            check_needs(catalogue.find("l_mcl", "distill"), 1, "digits")
        except UsageError as error:
            (folder / f"refused-{distributed.index()}").write_text(str(error))
        if distributed.is_first():
            (folder / "almost").touch()
        compress(*RUN)  # exists already


if __name__ == "__main__":
    torch.set_num_threads(1)
    several(Path(sys.argv[1]))
