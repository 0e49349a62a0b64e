"""How a sample becomes one of a batch: cropped and flipped with its target in training, whole otherwise.

Transforms of torchvision (`transforms.v2`) change an image and its mask alike. Random numbers are torch's; whoever prepares a
sample seeds them for it.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from compressor.data.batches import IGNORED, Fit
from compressor.data.images import centred, inside
from compressor.data.pixels import Scale
from compressor.data.readers import random_numbers, seed_from
from compressor.data.samples import VOID, Sample, Size

TEST_SEED = 0  # of the noise of test images: the same for every run
SMALLEST, LARGEST = 0.5, 2.0  # scales of training images with masks: Chen et al., arXiv 1706.05587, section 4


class Preparation(ABC):
    """Prepares single samples, stacks them, and makes what a network takes of a stacked batch, on its device."""

    @property
    @abstractmethod
    def fit(self) -> Fit:
        """How images are brought to a size; see `Data`."""

    @abstractmethod
    def train(self, sample: Sample, seed: int) -> Sample:
        """A random crop, flipped."""

    @abstractmethod
    def evaluate(self, sample: Sample, index: int) -> Sample:
        """The whole image."""

    @abstractmethod
    def sizes(self, found: tuple[Size, ...]) -> tuple[Size, ...]:
        """The sizes that images of these sizes have in `evaluate`: input and target."""

    @abstractmethod
    def finish(self, inputs: Any, targets: Any) -> tuple[Any, Any]:
        """What the network takes, and targets, of bytes."""

    def stack(self, rows: Sequence[Sample]) -> Sample:
        """Samples as a batch."""
        return Sample(torch.stack([row.input for row in rows]), torch.stack([row.target for row in rows]))


@dataclass(frozen=True)
class ForMasks(Preparation):
    """Training images are scaled at random, cropped to `crop` (height, width) and mirrored; what lies outside has no class.

    Images are resized to `size` first, if it is given. With `letterbox` they keep their aspect ratio, and whole images are
    centred between bars of the mean color, where masks have no class.
    """

    scale: Scale
    crop: Size
    pad_to: int
    size: Size | None = None
    letterbox: bool = False

    @property
    def fit(self) -> Fit:
        return "whole" if self.size is None else "letterbox" if self.letterbox else "stretch"

    def train(self, sample: Sample, seed: int) -> Sample:
        from torchvision import tv_tensors
        from torchvision.transforms import v2

        with random_numbers(seed):
            factor = SMALLEST + (LARGEST - SMALLEST) * float(torch.rand(()))
            # First the crop, then the scale: only what is seen is resized.
            region = [max(1, round(side / factor)) for side in self.crop]
            image, mask = self._fitted(sample)
            fill = {tv_tensors.Image: self.scale.mean_color, tv_tensors.Mask: _void(mask)}
            moves = v2.Compose([v2.RandomCrop(region, pad_if_needed=True, fill=fill), v2.RandomHorizontalFlip()])
            image, mask = moves(tv_tensors.Image(image), tv_tensors.Mask(mask))
            return self._resized(Sample(image.as_subclass(Tensor), mask.as_subclass(Tensor)), self.crop)

    def evaluate(self, sample: Sample, index: int) -> Sample:
        image, mask = self._fitted(sample)
        if self.size is not None and self.letterbox:
            image = centred(image, self.size, self.scale.mean_color)
            mask = centred(mask[None], self.size, [_void(mask)])[0]
        return Sample(pad(image, self.pad_to), _pad_mask(mask, self.pad_to))

    def sizes(self, found: tuple[Size, ...]) -> tuple[Size, ...]:
        return (padded(self.size or found[0], self.pad_to),)

    def finish(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        numbers = targets.long()  # [n, h, w]
        return self.scale.inputs(inputs), numbers.masked_fill_(
            numbers == VOID, IGNORED
        ) if targets.dtype == torch.uint8 else numbers

    def _fitted(self, sample: Sample) -> Sample:
        """Image and mask, resized to `size` or, to be letterboxed, to what fits into it."""
        size = self.size
        if size is not None and self.letterbox:
            height, width = sample.input.shape[-2:]
            size = inside((height, width), size)
        return self._resized(sample, size)

    def _resized(self, sample: Sample, size: Size | None) -> Sample:
        """Image and mask in another size; each pixel of the mask keeps the class that is nearest."""
        from torchvision.transforms.v2 import InterpolationMode
        from torchvision.transforms.v2 import functional as TF

        image, mask = sample
        if size is None or image.shape[-2:] == size:
            return sample
        resized = TF.resize(image, [*size], antialias=True)
        return Sample(resized, TF.resize(mask[None], [*size], InterpolationMode.NEAREST_EXACT)[0])


@dataclass(frozen=True)
class ForImages(Preparation):
    """Inputs and targets are cropped at the same place to `crop` (of the input), mirrored and turned, but never resized.

    Targets are `ratio` times as large as inputs. Gaussian noise of standard deviation `sigma` / 255 of the range of values is
    added to inputs, without clipping: Zhang et al., arXiv 1608.03981, section 4.
    """

    scale: Scale
    crop: Size
    pad_to: int
    ratio: int = 1
    sigma: float = 0.0

    @property
    def fit(self) -> Fit:
        return "whole"

    def train(self, sample: Sample, seed: int) -> Sample:
        from torchvision import tv_tensors
        from torchvision.transforms import v2

        with random_numbers(seed):
            height, width = self.crop
            image, target = at_least(sample.input, self.crop), at_least(sample.target, self._scaled(self.crop))
            top, left = (int(torch.randint(n - side + 1, ())) for n, side in zip(image.shape[1:], self.crop, strict=True))
            image = image[:, top : top + height, left : left + width]
            (top, left), (rows, columns) = self._scaled((top, left)), self._scaled(self.crop)
            target = target[:, top : top + rows, left : left + columns]
            flips = v2.Compose([v2.RandomHorizontalFlip(), v2.RandomVerticalFlip()])
            image, target = (moved.as_subclass(Tensor) for moved in flips(tv_tensors.Image(image), tv_tensors.Image(target)))
            if height == width and torch.rand(()) < 0.5:
                image, target = image.mT, target.mT
            return Sample(self._noisy(image).contiguous(), target.contiguous())

    def evaluate(self, sample: Sample, index: int) -> Sample:
        with random_numbers(seed_from(TEST_SEED, index)):
            return Sample(pad(self._noisy(sample.input), self.pad_to), sample.target)

    def sizes(self, found: tuple[Size, ...]) -> tuple[Size, ...]:
        return padded(found[0], self.pad_to), found[-1]

    def finish(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return self.scale.inputs(inputs), self.scale.images(targets)

    def _scaled(self, size: Size) -> Size:
        return size[0] * self.ratio, size[1] * self.ratio

    def _noisy(self, image: Tensor) -> Tensor:
        """`image` with noise, from 0 to 1; as it is, without."""
        return image if not self.sigma else image / 255 + torch.randn(image.shape) * (self.sigma / 255)


def part_of(sample: Sample, size: Size | None, place: tuple[float, float] = (0.5, 0.5)) -> Sample:
    """A part of an image [..., h, w] of at most `size`, by default its middle, and the same part of its target.

    The target is a mask or an image that is a multiple as large, or None. `place`: from 0 (at the top, left) to 1.
    """
    if size is None:
        return sample
    image, target = sample
    height, width = image.shape[-2:]
    if height <= size[0] and width <= size[1]:
        return sample
    rows, columns = min(height, size[0]), min(width, size[1])
    top, left = round(place[0] * (height - rows)), round(place[1] * (width - columns))
    image = image[..., top : top + rows, left : left + columns]
    if isinstance(target, Tensor):
        by = max(1, round(target.shape[-1] / width))  # padding is that of the image alone
        target = target[..., by * top : by * (top + rows), by * left : by * (left + columns)]
    return Sample(image, target)


def at_least(image: Tensor, size: Size) -> Tensor:
    """`image` [c, h, w], if it is smaller than `size`, with its last column and row repeated."""
    height, width = (max(side, least) for side, least in zip(image.shape[-2:], size, strict=True))
    return _repeated(image, (height, width))


def padded(size: Size, multiple: int) -> Size:
    """`size`, rounded up to a multiple."""
    height, width = (math.ceil(side / multiple) * multiple for side in size)
    return height, width


def pad(image: Tensor, multiple: int) -> Tensor:
    """`image` [c, h, w] with its last column and row repeated, up to a multiple."""
    height, width = image.shape[-2:]
    return _repeated(image, padded((height, width), multiple))


def _repeated(image: Tensor, size: Size) -> Tensor:
    if image.shape[-2:] == size:
        return image
    rows, columns = (torch.arange(whole).clamp(max=side - 1) for whole, side in zip(size, image.shape[-2:], strict=True))
    return image[..., rows[:, None], columns]


def _pad_mask(mask: Tensor, multiple: int) -> Tensor:
    """`mask` [h, w] with pixels of no class at the bottom and at the right, up to a multiple."""
    height, width = mask.shape
    rows, columns = padded((height, width), multiple)
    return F.pad(mask, [0, columns - width, 0, rows - height], value=_void(mask))


def _void(mask: Tensor) -> int:
    return VOID if mask.dtype == torch.uint8 else IGNORED
