"""Image classification: the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compressor.network.outputs import logits_of, main_first

if TYPE_CHECKING:
    from compressor.data import Batch

TEMPERATURE = 4.0  # of the softmax of teacher and student
AUXILIARY = 0.3  # weight of auxiliary classifiers' losses: Szegedy et al., CVPR 2015, section 5


@dataclass(frozen=True)
class Classify:
    """Cross-entropy, including weighted auxiliary classifiers if the network has them, and optionally knowledge distillation.

    `teacher` is a network in eval mode, on the device of the batches. `soft` is the weight of the distillation loss:
    Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv 1503.02531, section 2.
    """

    label_smoothing: float = 0.0
    teacher: nn.Module | None = None
    soft: float = 0.5

    def loss(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """Named, weighted scalar terms. `outputs`: logits [n, classes], or a tuple or mapping that contains them.

        Further tensors of the same shape are the auxiliary classifiers' logits (googlenet, inception).
        """
        logits, *others = main_first(outputs)
        all_logits = [logits, *(tensor for tensor in others if tensor.shape == logits.shape)]
        hard = 1.0 if self.teacher is None else 1.0 - self.soft
        main, *auxiliary = (
            hard * F.cross_entropy(o.float(), batch.targets, label_smoothing=self.label_smoothing) for o in all_logits
        )
        terms = {"cross_entropy": main}
        if auxiliary:
            terms["auxiliary"] = AUXILIARY * sum(auxiliary[1:], auxiliary[0])
        if self.teacher is not None:
            with torch.no_grad():
                answers = logits_of(self.teacher(batch.inputs))
            terms["teacher"] = self.soft * softened(logits, answers)
        return terms


def softened(student: Tensor, teacher: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """T^2 KL(teacher || student) of logits [n, classes] divided by T: the scale of the gradients does not depend on T.

    Hinton, Vinyals, Dean, 2015, arXiv 1503.02531, section 2. The teacher's logits are not detached.
    """
    student, teacher = (F.log_softmax(logits.float() / temperature, dim=1) for logits in (student, teacher))
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)
