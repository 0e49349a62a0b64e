"""What training minimises: the loss of the task, and optionally the distance to the outputs of a teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compressor.data import Batch
from compressor.tasks import Task
from compressor.tasks.likeness import TEMPERATURE

SOFT = 0.5  # weight of the distance to the teacher; the rest is that of the task's loss


@dataclass(frozen=True)
class Objective:
    """The task's loss, or its weighted sum with a distillation loss; `teacher` is in eval mode, on the device of the batches.

    Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv 1503.02531, section 2.
    """

    task: Task
    teacher: nn.Module | None = None
    soft: float = SOFT

    def loss(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """Named, weighted scalar terms."""
        terms = self.task.loss(outputs, batch)
        if self.teacher is None:
            return terms
        with torch.no_grad():
            answers = self.task.compared(self.task.call(self.teacher, batch.inputs))
        distance = self.task.distance(self.task.compared(outputs), answers, TEMPERATURE)
        hard = {name: (1 - self.soft) * term for name, term in terms.items()}
        return hard | {"teacher": self.soft * distance}
