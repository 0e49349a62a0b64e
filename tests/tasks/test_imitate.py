"""Without labels: the loss and the score of a network are its distance from the original."""

import pytest
import torch
from torch import Tensor, nn

from compressor.data import Batch
from compressor.tasks.imitate import Imitate


class Twice(nn.Module):
    """Two outputs of two inputs."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.tensor(by))

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        return {"left": self.by * left, "right": self.by * right.mean((1, 2, 3))}


BATCH = Batch({"left": torch.rand(3, 2, 4, 4) + 1, "right": torch.rand(3, 1, 2, 2) + 1}, None, torch.arange(3))


def test_every_output_counts_relative_to_its_size() -> None:
    """Outputs that are 1.5 times as large differ by 0.5 of their size: a squared error of 0.25 of the mean square."""
    task, small = Imitate(Twice(2.0)), Twice(3.0)
    loss = task.loss(task.call(small, BATCH.inputs), BATCH)["imitation"]
    assert loss.item() == pytest.approx(0.25)
    loss.backward()
    assert small.by.grad is not None and small.by.grad > 0
    assert all(parameter.grad is None for parameter in task.original.parameters())
    assert task.loss(task.call(task.original, BATCH.inputs), BATCH)["imitation"].item() == 0


def test_the_score_is_the_relative_error() -> None:
    (score,) = Imitate(Twice(2.0)).measured(Twice(3.0), [BATCH, BATCH]).compute()
    assert (score.name, score.n, score.more_is_better) == ("error", 6, False)
    assert score.value == pytest.approx(0.5)
