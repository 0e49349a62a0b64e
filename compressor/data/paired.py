"""Samples of an input and a target that is more than a class number, or without one: masks, images, or nothing.

Training samples are shuffled in each epoch and augmented together with their targets. All of this depends on (seed, epoch,
index) alone, never on the number of worker processes. Held-out and test images come in order and whole; consecutive ones of one
size share a batch, whose number of pixels is bounded.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.data import Dataset

from compressor.data.batches import (
    Batch,
    Fit,
    Kind,
    Split,
    check_batch_size,
    check_unsupported,
    images_at_once,
    spaced,
)
from compressor.data.framed import shuffled, training_plan
from compressor.data.pixels import Scale, Scaled
from compressor.data.preparation import TEST_SEED, Preparation, part_of
from compressor.data.readers import load, seed_from
from compressor.data.samples import Kept, Sample, Samples, Size
from compressor.errors import DataError

MOST_PIXELS = 2**22  # of a batch of held-out or test images: 20 of 480x360, or two of 1920x1080


@dataclass(frozen=True)
class PairedBatches:
    """The batches of one epoch: see `Batches`."""

    samples: Samples
    plan: Sequence[Tensor]  # positions [n] of each batch's samples
    preparation: Preparation
    device: torch.device
    workers: int
    augment: int | None = None  # the seed of the augmentation; None: whole images
    tile: Size | None = None
    part: Size | None = None  # of whole images, only their middle of at most this size

    def __len__(self) -> int:
        return len(self.plan)

    def with_plan(self, plan: Sequence[Tensor]) -> "PairedBatches":
        return replace(self, plan=plan)

    def __iter__(self) -> Iterator[Batch]:
        if isinstance(self.samples, Kept) and self.workers and len(self.plan):
            self.samples.keep(torch.cat([*self.plan]).tolist())  # before the workers are forked
        rows = _Rows(self.samples, self.preparation, self.augment, self.part)
        stacked = load(rows, self.plan, self.workers, self.device, rows.stack)
        for positions, (inputs, targets) in zip(self.plan, stacked, strict=True):
            inputs, targets = self.preparation.finish(self._moved(inputs), self._moved(targets))
            yield Batch(inputs, targets, positions.to(self.device), tile=self.tile)

    def _moved(self, values: Any) -> Any:
        cuda = self.device.type == "cuda"
        return tree_map(lambda value: value.to(self.device, non_blocking=cuda) if isinstance(value, Tensor) else value, values)


class _Rows(Dataset[Sample | DataError]):
    """The data set of the loader. Errors are returned."""

    def __init__(self, samples: Samples, preparation: Preparation, augment: int | None, part: Size | None) -> None:
        self.samples = samples
        self.preparation = preparation
        self.augment = augment
        self.part = part

    def __getitem__(self, index: int) -> Sample | DataError:
        try:
            if self.augment is None:
                whole = self.preparation.evaluate(self.samples.draw(index, seed_from(TEST_SEED, index)), index)
                return part_of(whole, self.part)
            seed = seed_from(self.augment, index)
            return self.preparation.train(self.samples.draw(index, seed), seed)
        except DataError as error:
            return error

    def stack(self, rows: list[Sample | DataError]) -> Sample | DataError:
        errors = [row for row in rows if isinstance(row, DataError)]
        try:
            return errors[0] if errors else self.preparation.stack([row for row in rows if isinstance(row, Sample)])
        except DataError as error:
            return error


@dataclass(frozen=True)
class PairedData(Scaled):
    """See `Data`. `samples` and `positions` locate the samples of each split."""

    spec: str
    kind: Kind
    classes: list[str]
    shape: tuple[int, ...]
    scale: Scale
    notes: list[str]
    samples: dict[Split, Samples]
    positions: dict[Split, Tensor]
    preparation: Preparation
    pad_to: int = 1
    tile: Size | None = None
    workers: int = 0
    indexed: bool = True

    @property
    def fit(self) -> Fit:
        return self.preparation.fit

    @property
    def counts(self) -> dict[Split, int]:
        """Number of samples in each split."""
        return {split: len(positions) for split, positions in self.positions.items()}

    def targets(self, split: Split) -> tuple[Tensor, Tensor]:
        """Indices [n] of all samples of a split, and their class numbers [n]. Raises DataError if there are none."""
        positions = self.positions[split]
        return positions, self._labels(split)[positions]

    def _labels(self, split: Split) -> Tensor:
        labels = self.samples[split].labels
        if labels is None:
            raise DataError(
                f"This method needs the class number of each image, but {self.spec} has {told(self.kind)}: use another method."
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
    ) -> PairedBatches:
        """Training images without augmentation are whole, or the middle of larger ones than a tile, and come in the order of
        their sizes, so that these share batches."""
        check_batch_size(batch_size)
        found = f"{self.spec} has {told(self.kind)}"
        check_unsupported(found, views > 1, by_class > 1 and self.kind != "classes", cutout > 0)
        if split == "train" and not len(self.positions[split]):
            raise DataError(f"{self.spec} has no training images: add some, or use it to evaluate alone.")
        positions, samples, device = self.positions[split], self.samples[split], torch.device(device)
        if split != "train":
            whole = self._whole(samples, spaced(positions, limit), batch_size, self.tile)
            return PairedBatches(samples, whole, self.preparation, device, self.workers, tile=self.tile)
        generator = torch.Generator().manual_seed(seed_from(seed, epoch, 0))
        positions = shuffled(positions, generator)[:limit]
        if not augment:
            sizes = [self._sizes(samples, position, self.tile) for position in positions.tolist()]
            together = positions[torch.tensor(sorted(range(len(sizes)), key=sizes.__getitem__), dtype=torch.int64)]
            parts = self._whole(samples, together, batch_size, part=self.tile)
            return PairedBatches(samples, parts, self.preparation, device, self.workers, part=self.tile)
        labels = self._labels(split)[positions] if by_class > 1 else None
        plan = training_plan(positions, labels, batch_size, by_class, generator)
        return PairedBatches(samples, plan, self.preparation, device, self.workers, seed_from(seed, epoch, 1))

    def _sizes(self, samples: Samples, position: int, part: Size | None) -> tuple[Size, ...]:
        """Of a whole sample, or of its middle `part`."""
        sizes = self.preparation.sizes(samples.sizes(position))
        if part is None:
            return sizes
        (height, width), *further = sizes
        rows, columns = min(height, part[0]), min(width, part[1])
        return (rows, columns), *((tall * rows // height, wide * columns // width) for tall, wide in further)

    def _whole(
        self, samples: Samples, positions: Tensor, batch_size: int, tile: Size | None = None, part: Size | None = None
    ) -> list[Tensor]:
        """Batches of consecutive images of one size, with at most MOST_PIXELS pixels, but with at least one image.

        With tiles, a batch of images has at most as many pixels as `batch_size` tiles. `part`: see `PairedBatches`.
        """
        plan: list[list[int]] = []
        last: tuple[Size, ...] | None = None
        most = 1
        for position in positions.tolist():
            sizes = self._sizes(samples, position, part)
            if sizes != last:
                together = images_at_once(batch_size, sizes[0], tile)
                last, most = sizes, max(1, min(together, MOST_PIXELS // max(h * w for h, w in sizes)))
                plan.append([])
            elif len(plan[-1]) == most:
                plan.append([])
            plan[-1].append(position)
        return [torch.tensor(positions) for positions in plan]


def told(kind: Kind) -> str:
    """What the targets of data are, in messages."""
    return {"classes": "class numbers", "masks": "masks", "images": "images as targets", "nothing": "no labels"}[kind]
