"""Batches of images for training, choosing and measuring.

Training batches come in a new order in each epoch; a training image is moved and mirrored a little, and a square of it is
hidden if asked for. All this follows from (seed, epoch) alone, so that an epoch that was interrupted can be repeated exactly,
whatever else has drawn random numbers. Held-out and test images come in order and as they are.

A method may ask for several views of each training image, and for batches in which images of a class come in twos.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from compressor.data.cutout import Cutout
from compressor.data.readers import Reader, seed_from
from compressor.errors import DataError, printable

Split = Literal["train", "held_out", "test"]


class Batch(NamedTuple):
    """Images [n, channels, height, width], normalised; targets [n]; indices [n] of the images in their data set.

    `views` are the same images, each moved anew, for a method that asks for several.
    """

    images: Tensor
    targets: Tensor
    indices: Tensor
    views: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Batches:
    """Can be gone through any number of times, with the same batches each time; `len` is their number."""

    reader: Reader
    plan: Sequence[Tensor]  # positions [n] of each batch's images
    mean: Sequence[float]
    std: Sequence[float]
    device: torch.device
    moves: Sequence[int | None] = (None,)  # for each view the seed of what happens to its images
    holes: Sequence[Cutout | None] = (None,)  # for each view what is hidden in its images

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[Batch]:
        views = zip(*map(self._view, self.moves, self.holes), strict=True)
        for positions, images in zip(self.plan, views, strict=True):
            targets = self.reader.images.labels[positions].to(self.device)
            yield Batch(images[0], targets, positions.to(self.device), images if len(images) > 1 else ())

    def _view(self, moves: int | None, holes: Cutout | None) -> Iterator[Tensor]:
        mean, std = (torch.tensor(values, device=self.device)[:, None, None] for values in (self.mean, self.std))  # [c, 1, 1]
        pixels = self.reader.read(self.plan, moves, self.device)
        for positions, images in zip(self.plan, pixels, strict=True):
            images = images.float().div_(255).sub_(mean).div_(std)
            yield images if holes is None else holes.hide(images, positions)  # with zero, which is the mean colour now


@dataclass(frozen=True)
class Data:
    """Images in three parts: "train", "held_out" (for choosing, cut from the training images) and "test" (for measuring).

    `shape` is (channels, height, width) of every image. `mean` and `std` are subtracted from and divided into pixels of 0 to 1,
    one number a channel. `notes` are sentences that a report should repeat. `readers` and `positions` say where each part's
    images come from; two parts that were cut from one set share its reader, and positions in it tell their images apart.
    """

    spec: str
    classes: list[str]
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    notes: list[str]
    readers: dict[Split, Reader]
    positions: dict[Split, Tensor]

    @property
    def counts(self) -> dict[Split, int]:
        """Number of images in each part."""
        return {split: len(positions) for split, positions in self.positions.items()}

    def targets(self, split: Split) -> tuple[Tensor, Tensor]:
        """Indices [n] of all images of a part, as batches have them, and their targets [n]."""
        positions = self.positions[split]
        return positions, self.readers[split].images.labels[positions]

    def batches(
        self,
        split: Split,
        *,
        batch_size: int,
        device: torch.device | str,
        epoch: int = 0,
        seed: int = 0,
        augment: bool = True,
        cutout: float = 0.0,
        limit: int | None = None,
        views: int = 1,
        by_class: int = 1,
    ) -> Batches:
        """Batches of one part: images float32 [n, channels, height, width], targets and indices int64 [n], on `device`.

        An index is the image's position in the set that its part was cut from. `augment=False` gives training images as they
        are, still in the order of (seed, epoch); the other parts' images are never changed. `cutout` is the side of the square
        that is hidden in each training image, as a share of the image's shorter side. `limit` is a number of images: the first
        of the epoch's order in training, but spread evenly over the other parts, where a class often lies together.
        A single training image that is left for the last batch is dropped, because batch normalisation needs two.

        With more than one of `views`, a batch holds each training image so many times, every time moved anew; the first view
        is `images` itself. With `by_class`, a training batch is made of groups of so many images of one class, one after the
        other, from as many classes as it can hold; an image that is left over in its class is dropped.
        Raises DataError while batches are read, if an image is broken.
        """
        if batch_size < 1:
            raise DataError(f"A batch was to hold {batch_size} images: ask for 1 or more.")
        positions = self.positions[split]  # [n]
        reader, device = self.readers[split], torch.device(device)
        if split != "train":
            if limit is not None and limit < len(positions):
                positions = positions[torch.arange(limit) * len(positions) // limit]
            return Batches(reader, _split(positions, batch_size), self.mean, self.std, device)
        generator = torch.Generator().manual_seed(seed_from(seed, epoch, 0))
        positions = positions[torch.randperm(len(positions), generator=generator)][:limit]
        plan = _split(positions, batch_size)
        if by_class > 1:
            plan = _by_class(positions, reader.images.labels[positions], batch_size, by_class, generator)
        elif len(plan) > 1 and len(plan[-1]) == 1 < batch_size:
            plan = plan[:-1]

        def seeds(purpose: int) -> list[int]:
            return [seed_from(seed, epoch, purpose), *(seed_from(seed, epoch, purpose, view) for view in range(1, views))]

        moves: list[int | None] = [*seeds(1)] if augment else [None] * views
        holes: list[Cutout | None] = [None] * views
        if augment and cutout:
            holes = [Cutout.draw(len(reader.images), self.shape[1:], cutout, hiding) for hiding in seeds(2)]
        return Batches(reader, plan, self.mean, self.std, device, moves, holes)


def _split(positions: Tensor, batch_size: int) -> Sequence[Tensor]:
    return torch.split(positions, batch_size) if len(positions) else ()


def _by_class(positions: Tensor, labels: Tensor, batch_size: int, size: int, generator: torch.Generator) -> list[Tensor]:
    """Batches of groups of `size` images of one class; of no class has one batch two groups more than another.

    The groups lie class by class and are dealt out in turn, as cards are: so a class with fewer groups than there are batches
    is in no batch twice. `positions` and `labels` [n] are in a random order already. Raises DataError when there is no group.
    """
    counts = labels.bincount().tolist()
    if min(batch_size, most := max(counts, default=0)) < size:
        raise DataError(
            f"This method wants {size} images of a class in a batch; found batches of {batch_size} images, and at most "
            f"{most} of a class: have {size} or more of both."
        )
    images = [positions[labels == c] for c in torch.randperm(len(counts), generator=generator).tolist()]
    groups = torch.cat([of_class[: len(of_class) // size * size].view(-1, size) for of_class in images])
    count = math.ceil(len(groups) / (batch_size // size))
    return [groups[first::count].flatten() for first in torch.randperm(count, generator=generator).tolist()]


def check_classes(data: Data, outputs: int) -> None:
    """Raises DataError when a network with `outputs` answers is not for as many classes as `data` has."""
    if outputs != len(data.classes):
        names = printable(", ".join(data.classes[:5])) + (", ..." if len(data.classes) > 5 else "")
        raise DataError(
            f"The network answers {outputs} classes, but {data.spec} has {len(data.classes)} ({names}): "
            "give the data that the network was trained for, or a network trained on this data."
        )
