"""Two small networks and a few steps of training, for fast tests of methods."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compressor.channels import Residual, analyse
from compressor.data import Batch
from compressor.network.cost import count_macs
from compressor.tasks.classify import Classify
from compressor.training.goal import parse_target
from compressor.training.method import Job, Method, Progress

SHAPE = (3, 12, 12)


class Stage(nn.Module):
    """A basic residual block of He et al. with a convolution as shortcut."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.shortcut = nn.Conv2d(inputs, width, 1, stride=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.shortcut(x))


class Toy(nn.Module):
    """[n, 3, 12, 12] -> logits [n, 5]; stages of 8, 16 and 16 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.stages = nn.Sequential(Stage(8, 8), Stage(8, 16), Stage(16, 16))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(F.relu(self.stem(x))).mean((2, 3)))


class Wide(nn.Module):
    """[n, 3, 12, 12] -> logits [n, 5]; half of the MACs are in the convolutions, half in the fully-connected layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.conv, self.bn = nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.fc1, self.fc2, self.head = nn.Linear(288, 320), nn.Linear(320, 256), nn.Linear(256, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn(self.conv(F.relu(self.stem(x))))), 2)
        return self.head(F.relu(self.fc2(F.relu(self.fc1(x.flatten(1))))))


def job(
    target: str,
    model: nn.Module | None = None,
    shape: tuple[int, int, int] = SHAPE,
    residual: Residual = "coupled",
    **more: Any,
) -> Job:
    """`target` is a value of --target. The images that methods may use are random."""
    model = model or Toy()
    more = {"images": Random(shape), "macs": count_macs(model, shape), **more}
    return Job(model, shape, analyse(model, shape, residual), parse_target(target), Classify(), **more)


@dataclass(frozen=True)
class Random:
    """`images` random images, the same for every split."""

    shape: tuple[int, ...] = SHAPE
    images: int = 16

    def batches(self, split: str, *, batch_size: int, limit: int | None = None, **_: object) -> Iterator[Batch]:
        for first in range(0, count := min(self.images, limit or self.images), batch_size):
            whole = zip(*(batch[:3] for batch in batches(self.images // 8, self.shape)), strict=True)
            yield Batch(*(torch.cat(part)[first : min(first + batch_size, count)] for part in whole))

    def targets(self, split: str) -> tuple[Tensor, Tensor]:
        """Indices and targets of the images that `train` uses in four epochs."""
        shown = [batch for epoch in range(4) for batch in batches(2, self.shape, seed=epoch)]
        return torch.cat([batch.indices for batch in shown]), torch.cat([batch.targets for batch in shown])


def batches(count: int, shape: tuple[int, ...] = SHAPE, seed: int = 0) -> Iterator[Batch]:
    """Batches of eight random images whose class determines their brightness. Another seed gives other images."""
    generator = torch.Generator().manual_seed(seed)
    for first in range(0, 8 * count, 8):
        targets = torch.randint(5, (8,), generator=generator)
        images = torch.randn(8, *shape, generator=generator) + targets.view(8, 1, 1, 1)
        yield Batch(images, targets, torch.arange(first, first + 8) + 8 * count * seed)


def optimizer(method: Method, lr: float = 0.05) -> torch.optim.SGD:
    return torch.optim.SGD(method.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=5e-4)


def train(method: Method, sgd: torch.optim.SGD, epochs: range, of: int) -> list[float]:
    """The training loop of `method.py`, with two steps per epoch. Returns the losses."""
    losses = []
    for epoch in epochs:
        method.train()
        method.begin_epoch(Progress(epoch, of))
        for batch in batches(2, SHAPE, seed=epoch):
            sgd.zero_grad()
            loss = torch.stack(list(method.loss(batch).values())).sum()
            loss.backward()
            method.edit_gradients()
            sgd.step()
            method.end_step(batch)
            losses.append(loss.item())
        method.end_epoch(Progress(epoch, of))
    return losses
