"""Image classification with one label for each image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compressor.data import Batch, Data, check_classes
from compressor.errors import DataError
from compressor.tasks.likeness import SameClass, softened
from compressor.tasks.meter import Measure, Meter
from compressor.tasks.task import Task, one_sample

AUXILIARY = 0.3  # weight of auxiliary classifiers' losses: Szegedy et al., CVPR 2015, section 5
LEAST_FOR_TOP5 = 10  # classes


@dataclass(frozen=True)
class Classify(Task):
    """Cross-entropy, including weighted auxiliary classifiers if the network has them; top-1 and top-5."""

    name = "classify"
    kinds = ("classes",)

    label_smoothing: float = 0.0

    def loss(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """`outputs`: logits [n, classes], or a tuple or mapping that contains them.

        Further tensors of the same shape are the auxiliary classifiers' logits (googlenet, inception).
        """
        logits, others = self.split(outputs)
        all_logits = [logits, *(tensor for tensor in others if tensor.shape == logits.shape)]
        main, *auxiliary = (F.cross_entropy(o.float(), batch.targets, label_smoothing=self.label_smoothing) for o in all_logits)
        terms = {"cross_entropy": main}
        if auxiliary:
            terms["auxiliary"] = AUXILIARY * sum(auxiliary[1:], auxiliary[0])
        return terms

    def distance(self, ours: Sequence[Tensor], theirs: Sequence[Tensor], temperature: float = 1.0) -> Tensor:
        return torch.stack([softened(*pair, temperature) for pair in zip(ours, theirs, strict=True)]).sum()

    def meter(self) -> Meter:
        return Hits()

    def likeness(self) -> Meter:
        return SameClass()

    def trained_with(self, label_smoothing: float) -> Task:
        return replace(self, label_smoothing=label_smoothing)

    def check(self, model: nn.Module, data: Data) -> None:
        check_classes(data, self.main_of(model, one_sample(data)).shape[-1])


class Hits(Meter):
    """Top-1, top-5 (with ten or more classes), and the mean cross-entropy."""

    classes = 0

    @property
    def measures(self) -> Sequence[Measure]:
        top5 = [Measure("top5", "top-5", share=1)] if self.classes >= LEAST_FOR_TOP5 else []
        return [Measure("top1", "top-1", share=0), *top5, Measure("loss", "cross-entropy", "", 4, more_is_better=False)]

    def row(self, ours: Tensor, wanted: Tensor) -> Tensor:
        """`ours`: logits [n, classes]; `wanted`: class numbers [n]. Raises DataError for a label that is no class.

        Of equal logits, the one of the lowest class is the prediction, as in `argmax`.
        """
        wanted = wanted.to(ours.device)
        self.classes = ours.shape[1]
        if wanted.min() < 0 or wanted.max() >= self.classes:
            raise DataError(
                f"The network has the classes 0 to {self.classes - 1}, but the labels range from {int(wanted.min())} to "
                f"{int(wanted.max())}: use the data that it was trained on."
            )
        own, below = ours.gather(1, wanted[:, None]), torch.arange(self.classes, device=ours.device) < wanted[:, None]
        rank = ((ours > own) | (ours == own) & below).sum(1)  # [n], 0 if it is the prediction
        return torch.stack([rank < 1, rank < 5, F.cross_entropy(ours, wanted, reduction="none")], 1)

    def values(self, sums: Tensor, n: int) -> Tensor:
        return (sums if self.classes >= LEAST_FOR_TOP5 else sums[..., [0, 2]]) / n
