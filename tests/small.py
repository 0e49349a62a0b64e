"""A small user project: a network in a file, its checkpoint, and `compress` called in its directory.

The network is tiny and the images are scikit-learn's digits, so that a whole run takes two seconds.
"""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner, Result

import compressor
from compressor.channels import analyse
from compressor.cli import app
from compressor.demo import DigitsNet
from compressor.report import Report, read_report
from compressor.runs.journal import Journal
from compressor.tasks.classify import Classify
from compressor.training.goal import parse_rate
from compressor.training.method import Job, Method
from compressor.training.recipe import Recipe
from compressor.training.train import Training

NET = '''
from torch import nn


class Net(nn.Module):
    """[n, 1, 8, 8] -> [n, classes], with a residual connection and dropout."""

    def __init__(self, num_classes=10, width=8):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.conv1 = nn.Conv2d(width, 2 * width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(2 * width)
        self.conv2 = nn.Conv2d(2 * width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x):
        x = self.stem(x)
        x = (x + self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))).relu()
        return self.head(self.dropout(x.mean(dim=(2, 3))))
'''


def write_project(folder: Path) -> None:
    """net.py, and net.pt with weights for it."""
    (folder / "net.py").write_text(NET)
    torch.manual_seed(0)
    torch.save(make_net().state_dict(), folder / "net.pt")


def make_net(**arguments: int) -> nn.Module:
    """`Net` of net.py."""
    names: dict[str, type[nn.Module]] = {}
    exec(compile(NET, "net.py", "exec"), names)
    return names["Net"](**arguments)


def compress(*arguments: object) -> Result:
    """`compress ARGUMENTS`, in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def prune(*arguments: object) -> Result:
    """`compress prune` of the project's network."""
    return compress("prune", "net.pt", "--arch", "net.py:Net", *arguments)


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    """Whether two sets of weights are equal bit for bit."""
    return left.keys() == right.keys() and all(torch.equal(value, right[name]) for name, value in left.items())


def assert_same_result(left: Path, right: Path) -> None:
    """Weights and plan are equal bit for bit, and so are the accuracies of all stages and the losses of all epochs."""
    for name in ("model.safetensors", "plan.json", "config.toml"):
        assert (left / name).read_bytes() == (right / name).read_bytes()
    one, other = read_report(left), read_report(right)
    assert [(stage.name, stage.scores) for stage in one.stages] == [(stage.name, stage.scores) for stage in other.stages]
    assert [epoch.losses for epoch in one.epochs] == [epoch.losses for epoch in other.epochs]


def answers(run: Path) -> Tensor:
    """Logits of a run's reloaded network for five noise images, checked against ONNX Runtime."""
    network, images = compressor.load(run), torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(run / "model.onnx")
    with torch.no_grad():
        found: Tensor = network(images)
    np.testing.assert_allclose(session.run(None, {"images": images.numpy()})[0], found.numpy(), rtol=1e-4, atol=1e-4)
    return found


def stages_of(report: Report) -> list[str]:
    return [stage.name for stage in report.stages]


def interrupt_at(call: int, work: Callable[..., Any]) -> Callable[..., Any]:
    """`work`, interrupted (Ctrl-C) at its n-th call."""
    calls = []

    def worked(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return work(*args, **kwargs)

    return worked


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, which contains only net.py and net.pt."""
    write_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte. Only root can mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True)
    if mount.returncode != 0:
        pytest.skip("mounting a small disk is not allowed here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


TRAINED = (
    "--data",
    "digits",
    "--rate",
    "0.5",
    "--epochs",
    "3",
    "--ema-decay",
    "0.9",
    "--lr",
    "0.1",
    "--seed",
    "3",
    "--no-repair",
)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project in which `compress prune ... --out half` with the options of `TRAINED` was run. Read-only."""
    folder = tmp_path_factory.mktemp("finished")
    write_project(folder)
    with chdir(folder):
        result = prune(*TRAINED, "--out", "half")
    assert result.exit_code == 0, result.output
    (folder / "printed.txt").write_text(result.stdout)
    yield folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the demo's network after two epochs: better than chance, so that accuracy can be recovered."""
    torch.manual_seed(0)
    data, model = compressor.open_data("digits"), DigitsNet(16)
    method = Method(Job(model, data.shape, analyse(model, data.shape), parse_rate(0.5), Classify()))
    Training(method, data, Recipe(epochs=2, batch_size=32, lr=0.05), torch.device("cpu")).run(Journal(None))
    path = tmp_path_factory.mktemp("trained") / "digits.pt"
    torch.save(method.model.state_dict(), path)
    return path
