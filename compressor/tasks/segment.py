"""Semantic segmentation: a class for each pixel."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compressor.data import IGNORED, Batch, Data, input_shape
from compressor.errors import DataError
from compressor.tasks.likeness import SamePixels, softened
from compressor.tasks.meter import Measure, Meter
from compressor.tasks.task import Task

COLORS = (
    (127, 127, 127), (31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189), (140, 86, 75),
    (227, 119, 194), (188, 189, 34), (23, 190, 207), (174, 199, 232), (255, 187, 120), (152, 223, 138), (255, 152, 150),
    (197, 176, 213), (196, 156, 148), (247, 182, 210), (219, 219, 141), (158, 218, 229), (57, 59, 121),
)  # fmt: skip  # of classes in pictures
AUXILIARY = 0.4  # weight of auxiliary heads' losses: Zhao et al., "Pyramid Scene Parsing Network", CVPR 2017, section 3.3


@dataclass(frozen=True)
class Segment(Task):
    """Cross-entropy of pixels, including weighted auxiliary heads if the network has them; mean IoU and pixel accuracy.

    The main output has logits [n, classes, h, w] at any size, or [n, 1, h, w] for a background and one class. It is resized to
    the targets bilinearly. It may have more channels than the data have classes, for example one for pixels without a class.
    """

    name = "segment"
    kinds = ("masks",)
    output = "map"

    classes: tuple[str, ...]

    def loss(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """`outputs`: the logits, or a tuple or mapping that contains them; further maps are auxiliary heads."""
        main, others = self.split(outputs)
        auxiliary = [_cross_entropy(tensor, batch.targets) for tensor in others if tensor.dim() == 4]
        terms = {"cross_entropy": _cross_entropy(main, batch.targets)}
        if auxiliary:
            terms["auxiliary"] = AUXILIARY * sum(auxiliary[1:], auxiliary[0])
        return terms

    def distance(self, ours: Sequence[Tensor], theirs: Sequence[Tensor], temperature: float = 1.0) -> Tensor:
        pairs = [(_two_classes(a), _two_classes(b)) for a, b in zip(ours, theirs, strict=True)]
        return torch.stack([softened(*pair, temperature) for pair in pairs]).sum()

    def decode(self, main: Tensor, batch: Batch) -> Tensor:
        """Class numbers [n, height, width], in the size of the targets."""
        return _two_classes(_resized(main.float(), batch.targets)).argmax(1)

    def meter(self) -> Meter:
        return Overlaps(self.classes)

    def likeness(self) -> Meter:
        return SamePixels()

    def picture(self, answers: Tensor, index: int) -> Tensor | None:
        """Each class in a color of its own; pixels without a class are black."""
        mask = answers[index].cpu()
        colors = torch.tensor(COLORS, dtype=torch.uint8)[mask.clamp(min=0) % len(COLORS)]  # [h, w, 3]
        return colors.masked_fill((mask == IGNORED)[..., None], 0).permute(2, 0, 1)

    def check(self, model: nn.Module, data: Data) -> None:
        with torch.no_grad():
            main, _ = self.split(model(torch.zeros(1, *input_shape(data))))
        if main.dim() != 4:
            raise DataError(f"The network outputs {list(main.shape)}, but masks need logits [images, classes, height, width].")
        if max(main.shape[1], 2) < len(self.classes):
            raise DataError(
                f"The network has {main.shape[1]} classes, but {data.spec} has {len(self.classes)}: use the data that the "
                "network was trained on, or a network trained on this data."
            )


class Overlaps(Meter):
    """Mean IoU over the classes that occur, pixel accuracy, and the IoU of each class, over all pixels of all images."""

    def __init__(self, classes: Sequence[str]) -> None:
        super().__init__()
        self.classes = list(classes)

    @property
    def measures(self) -> Sequence[Measure]:
        words = [re.sub(r"\W+", "_", name.lower()).strip("_") or str(number) for number, name in enumerate(self.classes)]
        each = [Measure(f"iou_{word}", f"IoU of {name}") for word, name in zip(words, self.classes, strict=True)]
        return [Measure("miou", "mIoU"), Measure("pixel_accuracy", "pixel accuracy"), *each]

    def row(self, ours: Tensor, wanted: Tensor) -> Tensor:
        """`ours` and `wanted`: class numbers [n, height, width]. Returns true and false positives and false negatives."""
        from torchmetrics.functional.classification import multiclass_stat_scores  # takes seconds to import

        wanted = wanted.to(ours.device)
        if (found := wanted[wanted != IGNORED]).numel() and not 0 <= int(found.min()) <= int(found.max()) < len(self.classes):
            raise DataError(f"Masks have the classes {int(found.min())} to {int(found.max())} of {len(self.classes)}.")
        most = max(len(self.classes), int(ours.max()) + 1)
        counts = multiclass_stat_scores(  # [n, classes, 5]: true positives, false ones, true negatives, false ones, support
            ours, wanted, most, average="none", multidim_average="samplewise", ignore_index=IGNORED, validate_args=False
        )
        return counts[:, : len(self.classes), [0, 1, 3]].flatten(1)

    def values(self, sums: Tensor, n: int) -> Tensor:
        right, false, missed = sums.reshape(*sums.shape[:-1], -1, 3).unbind(-1)  # [..., classes]
        each = right / (right + false + missed)  # NaN for a class that does not occur
        pixels = right.sum(-1, keepdim=True) / (right + missed).sum(-1, keepdim=True)
        return torch.cat([each.nanmean(-1, keepdim=True), pixels, each], -1)


def _resized(logits: Tensor, targets: Tensor) -> Tensor:
    size = targets.shape[-2:]
    if logits.shape[-2:] == size:
        return logits
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)


def _two_classes(logits: Tensor) -> Tensor:
    """Logits of one class against the background, as logits of two."""
    return torch.cat([torch.zeros_like(logits), logits], 1) if logits.shape[1] == 1 else logits


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """The mean over all pixels that have a class; 0 if none has."""
    losses = F.cross_entropy(_two_classes(_resized(logits.float(), targets)), targets, ignore_index=IGNORED, reduction="sum")
    mean: Tensor = losses / (targets != IGNORED).sum().clamp(min=1)
    return mean
