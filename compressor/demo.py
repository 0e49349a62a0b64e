"""The whole job on embedded data: train a small residual network on scikit-learn's digits, and prune half of its MACs."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

from compressor.channels import analyse
from compressor.data import open_data
from compressor.errors import OutputError
from compressor.files import write_whole
from compressor.report import Report
from compressor.runs.journal import Journal
from compressor.runs.prune import Pruning, Wish
from compressor.runs.run import Order
from compressor.runs.sources import Images, Source
from compressor.tasks.classify import Classify
from compressor.training.goal import parse_rate
from compressor.training.method import Job, Method
from compressor.training.recipe import Recipe
from compressor.training.train import Training, seed_all

EPOCHS, FINE_TUNING = 15, 10


class Block(nn.Module):
    """Two 3 x 3 convolutions with a residual connection: [n, width, h, w] -> the same shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class DigitsNet(nn.Module):
    """[n, 1, 8, 8] -> logits [n, 10]."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.stage1 = Block(width)
        self.down = nn.Sequential(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(2 * width))
        self.stage2 = Block(2 * width)
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage2(F.relu(self.down(self.stage1(self.stem(x)))))
        logits: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits


def train_digits(checkpoint: Path, journal: Journal) -> None:
    """Train `DigitsNet` and write its state dict."""
    seed_all(0)
    data, model = open_data("digits"), DigitsNet()
    job = Job(model, data.shape, analyse(model, data.shape), parse_rate(0.5), Classify())
    method = Method(job)
    recipe = Recipe(epochs=EPOCHS, batch_size=64, lr=0.05, warmup=1)
    Training(method, data, recipe, torch.device("cpu")).run(journal)
    write_whole(checkpoint, lambda path: torch.save(method.model.state_dict(), path))


def run(out: Path, console: Console, *, force: bool = False) -> Report:
    """Train, prune and report into `out`. Raises OutputError when it holds a demo already."""
    checkpoint = out / "digits.pt"
    if not force and (checkpoint.exists() or (out / "half").exists()):
        raise OutputError(f"{out} holds a demo already: --force replaces it, --out DIR chooses another directory.")
    console.print("Training a digits classifier on scikit-learn's digits data set", highlight=False)
    train_digits(checkpoint, Journal(console))
    settings = f"--arch compressor.demo:DigitsNet --data digits --rate 0.5 --epochs {FINE_TUNING}"
    command = f"compress prune {checkpoint} {settings} --out {out / 'half'}"
    console.print(f"\n$ {command}", highlight=False, soft_wrap=True)
    order = Order(
        Source(str(checkpoint), "compressor.demo:DigitsNet"),
        Images("digits"),
        Recipe(epochs=FINE_TUNING),
        out / "half",
        console=console,
        force=force,
        command=command,
    )
    return Pruning(order, Wish(parse_rate(0.5))).run()
