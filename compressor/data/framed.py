"""Images of one shape, with a class number each, or without targets.

Training images are shuffled in each epoch, randomly shifted and mirrored, and optionally masked by Cutout. All of this depends
on (seed, epoch) alone, so that an interrupted epoch can be repeated exactly, regardless of other random numbers that were
drawn. Held-out and test images come in order, without augmentation.

A method may request several views of each training image, and batches in which the images of a class come in groups.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from compressor.data.batches import Batch, Fit, Kind, Split, check_batch_size, images_at_once, spaced
from compressor.data.cutout import Cutout
from compressor.data.pixels import Scale, Scaled
from compressor.data.preparation import part_of
from compressor.data.readers import Reader, seed_from
from compressor.data.samples import Sample, Size
from compressor.errors import DataError


@dataclass(frozen=True)
class FramedBatches:
    """The batches of one epoch: see `Batches`."""

    reader: Reader
    plan: Sequence[Tensor]  # positions [n] of each batch's images
    scale: Scale
    device: torch.device
    moves: Sequence[int | None] = (None,)  # for each view, the seed of its augmentation
    holes: Sequence[Cutout | None] = (None,)  # for each view, the squares to hide
    tile: Size | None = None
    part: Size | None = None  # of each image, only a part of at most this size: its middle, or with augmentation a random one

    def __len__(self) -> int:
        return len(self.plan)

    def with_plan(self, plan: Sequence[Tensor]) -> "FramedBatches":
        return replace(self, plan=plan)

    def __iter__(self) -> Iterator[Batch]:
        views = zip(*map(self._view, self.moves, self.holes), strict=True)
        for positions, images in zip(self.plan, views, strict=True):
            labels = self.reader.images.labels
            targets = None if labels is None else labels[positions].to(self.device)
            yield Batch(images[0], targets, positions.to(self.device), images if len(images) > 1 else (), self.tile)

    def _view(self, moves: int | None, holes: Cutout | None) -> Iterator[Tensor]:
        pixels = self.reader.read(self.plan, moves, self.device)
        for number, (positions, images) in enumerate(zip(self.plan, pixels, strict=True)):
            images = self.scale.inputs(images)
            images = images if holes is None else holes.hide(images, positions)  # with zero, the mean colour
            yield part_of(Sample(images, None), self.part, (0.5, 0.5) if moves is None else _place(moves, number)).input


def _place(*numbers: int) -> tuple[float, float]:
    """Where a part of the images of a batch is taken from."""
    top, left = torch.rand(2, generator=torch.Generator().manual_seed(seed_from(*numbers))).tolist()
    return top, left


@dataclass(frozen=True)
class FramedImages(Scaled):
    """See `Data`. `readers` and `positions` locate the images of each split; two splits of the same data set share its reader,
    and have different positions in it. Without labels, `classes` is empty and the targets are None."""

    spec: str
    classes: list[str]
    shape: tuple[int, int, int]
    scale: Scale
    notes: list[str]
    readers: dict[Split, Reader]
    positions: dict[Split, Tensor]
    indexed: bool = True
    pad_to: int = 1
    tile: Size | None = None
    fit: Fit = "cover"

    @property
    def kind(self) -> Kind:
        return "classes" if self.classes else "nothing"

    @property
    def counts(self) -> dict[Split, int]:
        """Number of images in each split."""
        return {split: len(positions) for split, positions in self.positions.items()}

    def targets(self, split: Split) -> tuple[Tensor, Tensor]:
        """Indices [n] of all images of a split, as in its batches, and their targets [n]."""
        positions = self.positions[split]
        return positions, self._labels(split)[positions]

    def _labels(self, split: Split) -> Tensor:
        labels = self.readers[split].images.labels
        if labels is None:
            raise DataError(
                f"{self.spec} has no labels, and this method needs them: give data with classes, or another method."
            )
        return labels

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
    ) -> FramedBatches:
        """Images are float32 [n, channels, height, width], targets and indices int64 [n]."""
        check_batch_size(batch_size)
        positions = self.positions[split]  # [n]
        reader, device = self.readers[split], torch.device(device)
        if split != "train":
            together = images_at_once(batch_size, self.shape[1:], self.tile)
            return FramedBatches(reader, split_up(spaced(positions, limit), together), self.scale, device, tile=self.tile)
        generator = torch.Generator().manual_seed(seed_from(seed, epoch, 0))
        positions = shuffled(positions, generator)[:limit]
        labels = self._labels(split)[positions] if by_class > 1 else None
        plan = training_plan(positions, labels, batch_size, by_class, generator)

        def seeds(purpose: int) -> list[int]:
            return [seed_from(seed, epoch, purpose), *(seed_from(seed, epoch, purpose, view) for view in range(1, views))]

        moves: list[int | None] = [*seeds(1)] if augment else [None] * views
        holes: list[Cutout | None] = [None] * views
        if augment and cutout:
            holes = [Cutout.draw(len(reader.images), self.shape[1:], cutout, hiding) for hiding in seeds(2)]
        return FramedBatches(reader, plan, self.scale, device, moves, holes, part=self.tile)


def shuffled(positions: Tensor, generator: torch.Generator) -> Tensor:
    """`positions` [n] in a random order."""
    return positions[torch.randperm(len(positions), generator=generator)]


def split_up(positions: Tensor, batch_size: int) -> Sequence[Tensor]:
    return torch.split(positions, batch_size) if len(positions) else ()


def training_plan(
    positions: Tensor, labels: Tensor | None, batch_size: int, by_class: int, generator: torch.Generator
) -> Sequence[Tensor]:
    """Batches of shuffled `positions` [n], without a last one of a single image; with `labels` [n], groups of one class."""
    if labels is not None:
        return group_by_class(positions, labels, batch_size, by_class, generator)
    plan = split_up(positions, batch_size)
    return plan[:-1] if len(plan) > 1 and len(plan[-1]) == 1 < batch_size else plan


def group_by_class(positions: Tensor, labels: Tensor, batch_size: int, size: int, generator: torch.Generator) -> list[Tensor]:
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
