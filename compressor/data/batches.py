"""Batches of images for training, choosing and measuring.

Training batches come in a new order in each epoch; a training image is moved and mirrored a little, and a square of it is
hidden if asked for. All this follows from (seed, epoch) alone, so that an epoch that was interrupted can be repeated exactly,
whatever else has drawn random numbers. Held-out and test images come in order and as they are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from compressor.data.cutout import Cutout
from compressor.data.readers import Reader, seed_from
from compressor.errors import DataError
from compressor.method import Batch

Split = Literal["train", "held_out", "test"]


@dataclass(frozen=True)
class Batches:
    """Can be gone through any number of times, with the same batches each time; `len` is their number."""

    reader: Reader
    plan: Sequence[Tensor]  # positions [n] of each batch's images
    augment: int | None
    mean: Sequence[float]
    std: Sequence[float]
    device: torch.device
    cutout: Cutout | None = None

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[Batch]:
        mean, std = (torch.tensor(values, device=self.device)[:, None, None] for values in (self.mean, self.std))  # [c, 1, 1]
        pixels = self.reader.read(self.plan, self.augment, self.device)
        for positions, images in zip(self.plan, pixels, strict=True):
            targets = self.reader.images.labels[positions].to(self.device)
            images = images.float().div_(255).sub_(mean).div_(std)
            if self.cutout is not None:
                images = self.cutout.hide(images, positions)  # with zero, which is the mean colour now
            yield Batch(images, targets, positions.to(self.device))


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
    ) -> Batches:
        """Batches of one part: images float32 [n, channels, height, width], targets and indices int64 [n], on `device`.

        An index is the image's position in the set that its part was cut from. `augment=False` gives training images as they
        are, still in the order of (seed, epoch); the other parts' images are never changed. `cutout` is the side of the square
        that is hidden in each training image, as a share of the image's shorter side. `limit` is a number of images: the first
        of the epoch's order in training, but spread evenly over the other parts, where a class often lies together.
        A single training image that is left for the last batch is dropped, because batch normalisation needs two.
        Raises DataError while batches are read, if an image is broken.
        """
        if batch_size < 1:
            raise DataError(f"A batch was to hold {batch_size} images: ask for 1 or more.")
        positions = self.positions[split]  # [n]
        training = split == "train"
        if training:
            generator = torch.Generator().manual_seed(seed_from(seed, epoch, 0))
            positions = positions[torch.randperm(len(positions), generator=generator)][:limit]
        elif limit is not None and limit < len(positions):
            positions = positions[torch.arange(limit) * len(positions) // limit]
        plan = torch.split(positions, batch_size) if len(positions) else ()
        if training and len(plan) > 1 and len(plan[-1]) == 1 < batch_size:
            plan = plan[:-1]
        reader, device = self.readers[split], torch.device(device)
        seed_of_moves = seed_from(seed, epoch, 1) if training and augment else None
        holes = None
        if training and augment and cutout:
            holes = Cutout.draw(len(reader.images), self.shape[1:], cutout, seed_from(seed, epoch, 2))
        return Batches(reader, plan, seed_of_moves, self.mean, self.std, device, holes)


def check_classes(data: Data, outputs: int) -> None:
    """Raises DataError when a network with `outputs` answers is not for as many classes as `data` has."""
    if outputs != len(data.classes):
        names = ", ".join(data.classes[:5]) + (", ..." if len(data.classes) > 5 else "")
        raise DataError(
            f"The network answers {outputs} classes, but {data.spec} has {len(data.classes)} ({names}): "
            "give the data that the network was trained for, or a network trained on this data."
        )
