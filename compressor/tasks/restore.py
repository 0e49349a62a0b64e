"""Restoration: an image from a degraded one, as in super-resolution, denoising and enhancement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compressor.data import Batch, Data, input_shape
from compressor.data.pixels import to_bytes
from compressor.errors import DataError
from compressor.tasks.likeness import RelativeError
from compressor.tasks.meter import Measure, Meter
from compressor.tasks.task import Task, one_sample

LEAST = 1e-10  # of a mean squared error, relative to the squared range: 100 dB
LUMA = (65.481, 128.553, 24.966)  # ITU-R BT.601: Y = 16 + LUMA . (r, g, b), of colours from 0 to 1


@dataclass(frozen=True)
class Restore(Task):
    """The mean absolute error; PSNR and SSIM.

    `max_value` is the value of white. With a `scale` above 1, as is usual in super-resolution, scores are measured on luma (Y)
    without a border of `scale` pixels; else on all channels of the whole image. `bgr`: the order of the channels.
    """

    name = "restore"
    kinds = ("images",)
    output = "image"
    enlarges = True

    max_value: float = 1.0
    scale: int = 1
    bgr: bool = False

    def loss(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        main, _ = self.split(outputs)
        gap = (_cropped(main, batch.targets).float() - batch.targets) / self.max_value
        return {"l1": gap.abs().mean()}

    def distance(self, ours: Sequence[Tensor], theirs: Sequence[Tensor], temperature: float = 1.0) -> Tensor:
        """The mean squared error, relative to the range."""
        pairs = zip(ours, theirs, strict=True)
        return torch.stack([((a.float() - b.float()) / self.max_value).square().mean() for a, b in pairs]).sum()

    def decode(self, main: Tensor, batch: Batch) -> Tensor:
        """Images [n, channels, height, width] in the size of the targets, with values from 0 to `max_value`."""
        return _cropped(main, batch.targets).clamp(0, self.max_value)

    def meter(self) -> Meter:
        return Similarity(self)

    def likeness(self) -> Meter:
        return RelativeError()

    def picture(self, answers: Tensor, index: int) -> Tensor | None:
        image = answers[index].float() / self.max_value
        return to_bytes(image.flip(0) if self.bgr else image)

    def check(self, model: nn.Module, data: Data) -> None:
        sample = one_sample(data)
        main = self.main_of(model, sample)
        if sample.targets is None:
            channels, *size = input_shape(data)
            wanted = [channels, *(side * self.scale for side in size)]
        else:
            wanted = [*sample.targets.shape[1:]]
        if list(main.shape[1:]) != wanted:
            given = "x".join(map(str, input_shape(data)))
            raise DataError(
                f"For inputs of {given} the network outputs {'x'.join(map(str, main.shape[1:]))}, but "
                f"the targets of {data.spec} have {'x'.join(map(str, wanted))}: use data for which the network was made."
            )


class Similarity(Meter):
    """PSNR, in dB, and SSIM: means over images.

    SSIM: Wang, Bovik, Sheikh, Simoncelli, IEEE TIP 2004, with a Gaussian window of 11 pixels and a deviation of 1.5.
    """

    def __init__(self, task: Restore) -> None:
        super().__init__()
        self.task = task
        self.luma = False

    @property
    def measures(self) -> Sequence[Measure]:
        where = " (Y)" if self.luma else ""
        return [Measure("psnr", f"PSNR{where}", "dB"), Measure("ssim", f"SSIM{where}", "", 4)]

    def row(self, ours: Tensor, wanted: Tensor) -> Tensor:
        from torchmetrics.functional.image import structural_similarity_index_measure  # takes seconds to import

        border = self.task.scale if self.task.scale > 1 else 0
        self.luma = self.task.scale > 1 and ours.shape[1] == 3
        one, other = (self._seen(images.double() / self.task.max_value, border) for images in (ours, wanted.to(ours.device)))
        error = (one - other).square().flatten(1).mean(1).clamp(min=LEAST)
        psnr = -10 * error.log10()
        if min(one.shape[-2:]) < 11:
            raise DataError(f"An image of {one.shape[-1]}x{one.shape[-2]} pixels is too small for SSIM: 11 are needed.")
        ssim = structural_similarity_index_measure(one, other, reduction="none", data_range=1.0)
        assert isinstance(ssim, Tensor)
        return torch.stack([psnr, ssim.reshape(len(one))], 1)

    def values(self, sums: Tensor, n: int) -> Tensor:
        return sums / n

    def _seen(self, images: Tensor, border: int) -> Tensor:
        """Without the border; luma, from 16 to 235 of 255, if that is measured."""
        if border:
            images = images[..., border:-border, border:-border]
        if not self.luma:
            return images
        weights = torch.tensor(LUMA[::-1] if self.task.bgr else LUMA, dtype=images.dtype, device=images.device)
        return (16 + (images * weights[:, None, None]).sum(1, keepdim=True)) / 255


def _cropped(images: Tensor, targets: Tensor) -> Tensor:
    """Without what was padded at the right and bottom."""
    return images[..., : targets.shape[-2], : targets.shape[-1]]
