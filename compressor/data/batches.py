"""Batches of images for training, validation and testing.

Training images are shuffled in each epoch, randomly shifted and mirrored, and optionally masked by Cutout. All of this depends
on (seed, epoch) alone, so that an interrupted epoch can be repeated exactly, regardless of other random numbers that were
drawn. Held-out and test images come in order, without augmentation.

A method may request several views of each training image, and batches in which the images of a class come in groups.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from compressor.data.cutout import Cutout
from compressor.data.readers import Reader, seed_from
from compressor.errors import DataError, printable

Split = Literal["train", "held_out", "test"]


class Batch(NamedTuple):
    """Inputs of a network, usually images [n, channels, height, width], normalised; their targets; indices [n] in their data set.

    `inputs` is what the network is called with: a tensor, or a tuple or mapping of tensors. `targets` depend on the kind of the
    data: class numbers [n], masks [n, height, width], images like the outputs, or None. `views` are the same images, each
    augmented independently, for a method that requests several.
    """

    inputs: Any
    targets: Any
    indices: Tensor
    views: tuple[Tensor, ...] = ()

    @property
    def size(self) -> int:
        """The number of samples."""
        return len(self.indices)


@dataclass(frozen=True)
class Batches:
    """Can be iterated any number of times, with the same batches each time; `len` is their number."""

    reader: Reader
    plan: Sequence[Tensor]  # positions [n] of each batch's images
    mean: Sequence[float]
    std: Sequence[float]
    device: torch.device
    moves: Sequence[int | None] = (None,)  # for each view, the seed of its augmentation
    holes: Sequence[Cutout | None] = (None,)  # for each view, the squares to hide

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
            yield images if holes is None else holes.hide(images, positions)  # with zero, the mean colour


@dataclass(frozen=True)
class Data:
    """Images in three splits: "train", "held_out" (for validation, split off the training images) and "test".

    `shape` is (channels, height, width) of every image. Pixels from 0 to 1 are normalised with `mean` and `std`, one value per
    channel. `notes` are sentences for the report. `readers` and `positions` locate the images of each split; two splits of the
    same data set share its reader, and have different positions in it.
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
        """Number of images in each split."""
        return {split: len(positions) for split, positions in self.positions.items()}

    def targets(self, split: Split) -> tuple[Tensor, Tensor]:
        """Indices [n] of all images of a split, as in its batches, and their targets [n]."""
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
        """Batches of one split: images float32 [n, channels, height, width], targets and indices int64 [n], on `device`.

        An index is the image's position in the data set that its split comes from. `augment=False` disables the augmentation
        of training images, but not the shuffling by (seed, epoch); other splits are never augmented. `cutout` is the side of
        the square that is hidden in each training image, as a share of the image's shorter side. `limit` is a number of images:
        the first ones of the epoch in training, but evenly spaced ones of the other splits, which are often sorted by class.
        If the last training batch would have a single image, it is dropped, because batch normalisation needs two.

        With `views` > 1, a batch has that many independently augmented views of each training image; the first is `images`
        itself. With `by_class` > 1, a training batch consists of groups of that many consecutive images of one class, from as
        many classes as possible; images that do not fill a group are dropped.
        Raises DataError during iteration if an image cannot be read.
        """
        if batch_size < 1:
            raise DataError(f"The batch size is {batch_size}, but must be 1 or more.")
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
    """Batches of groups of `size` images of one class, with the groups of each class spread evenly over the batches.

    The groups are sorted by class and assigned to the batches round-robin, so that a class with fewer groups than there are
    batches is at most once in a batch. `positions` and `labels` [n] are shuffled already. Raises DataError without a group.
    """
    counts = labels.bincount().tolist()
    if min(batch_size, most := max(counts, default=0)) < size:
        raise DataError(
            f"This method needs {size} images per class in a batch, but the batch size is {batch_size} and the largest class "
            f"has {most} images: both must be {size} or more."
        )
    images = [positions[labels == c] for c in torch.randperm(len(counts), generator=generator).tolist()]
    groups = torch.cat([of_class[: len(of_class) // size * size].view(-1, size) for of_class in images])
    count = math.ceil(len(groups) / (batch_size // size))
    return [groups[first::count].flatten() for first in torch.randperm(count, generator=generator).tolist()]


def check_classes(data: Data, outputs: int) -> None:
    """Raises DataError if the number of outputs of a network is not the number of classes of `data`."""
    if outputs != len(data.classes):
        names = printable(", ".join(data.classes[:5])) + (", ..." if len(data.classes) > 5 else "")
        raise DataError(
            f"The network has {outputs} classes, but {data.spec} has {len(data.classes)} ({names}): "
            "use the data that the network was trained on, or a network trained on this data."
        )
