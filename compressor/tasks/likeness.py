"""How similar the outputs of two networks are, on the same inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from compressor.tasks.meter import Measure, Meter

TEMPERATURE = 4.0  # of the softmax of teacher and student, where nothing else is said
TINY = 1e-12


def softened(student: Tensor, teacher: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """T^2 KL(teacher || student) of logits [n, classes, ...] divided by T: the scale of the gradients does not depend on T.

    Hinton, Vinyals, Dean, 2015, arXiv 1503.02531, section 2. A mean over images and positions. The teacher's logits are not
    detached.
    """
    student, teacher = (F.log_softmax(logits.float() / temperature, dim=1) for logits in (student, teacher))
    positions = math.prod(teacher.shape[2:])
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True) / positions


def divergence(ours: Tensor, theirs: Tensor) -> Tensor:
    """KL(theirs || ours) of the softmax of logits [n, classes, ...], mean over positions [n], nats."""
    pointwise = F.kl_div(ours.log_softmax(1), theirs.log_softmax(1), log_target=True, reduction="none").sum(1)
    return pointwise.flatten(1).mean(1) if pointwise.dim() > 1 else pointwise


class Agreement(Meter):
    """Abstract. The share of equal predictions, and the mean divergence of the probabilities."""

    agreement: ClassVar[Measure]

    @property
    def measures(self) -> Sequence[Measure]:
        return [self.agreement, Measure("kl", "mean KL divergence", "nats", 3, more_is_better=False)]

    def values(self, sums: Tensor, n: int) -> Tensor:
        values = sums / n
        values[..., 1].clamp_(min=0)  # rounding can leave a sum just below zero
        return values


class SameClass(Agreement):
    """Of logits [n, classes]: top-1 predictions."""

    agreement = Measure("agreement", "same top-1 prediction", share=0)

    def row(self, ours: Tensor, wanted: Tensor) -> Tensor:
        ours, wanted = ours.float().cpu(), wanted.float().cpu()
        return torch.stack([(ours.argmax(1) == wanted.argmax(1)).float(), divergence(ours, wanted)], 1)


class SamePixels(Agreement):
    """Of logits of maps [n, classes, h, w]: classes of pixels."""

    agreement = Measure("agreement", "same class of pixel")

    def row(self, ours: Tensor, wanted: Tensor) -> Tensor:
        ours, wanted = ours.float(), wanted.float().to(ours.device)
        same = (ours.argmax(1) == wanted.argmax(1)).float().flatten(1).mean(1)
        return torch.stack([same, divergence(ours, wanted)], 1)


class RelativeError(Meter):
    """Of any outputs [n, ...]: the root of the squared error over the squared outputs of the original, over all images."""

    @property
    def measures(self) -> Sequence[Measure]:
        return [Measure("error", "relative error of the outputs", more_is_better=False)]

    def row(self, ours: Tensor, wanted: Tensor) -> Tensor:
        ours, wanted = ours.double().flatten(1), wanted.to(ours.device).double().flatten(1)
        return torch.stack([(ours - wanted).square().mean(1), wanted.square().mean(1)], 1)

    def values(self, sums: Tensor, n: int) -> Tensor:
        return (sums[..., :1] / sums[..., 1:].clamp(min=TINY)).sqrt()
