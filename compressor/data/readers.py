"""Read batches of images as uint8 of one shape: kept in memory if they fit, or else streamed.

Both readers return the images at given positions, and return the same images for evaluation. Training images are augmented:
in memory by shifting and flipping a whole batch on the training device; streamed by torchvision's transforms, per image, in
worker processes. Random numbers depend on a seed for the epoch and the position of the image, never on the global generators:
batches are reproducible and do not depend on the number of workers.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from compressor.data.images import Frame, Images
from compressor.errors import DataError


def seed_from(*numbers: int) -> int:
    """One seed from several numbers, such as a run's seed and an epoch."""
    sequence = np.random.SeedSequence([number % 2**32 for number in numbers])
    return int(sequence.generate_state(1)[0])


class Reader(ABC):
    """Reads `images` in the shape of `frame`; `flip`: whether training images may be mirrored."""

    def __init__(self, images: Images, frame: Frame, flip: bool) -> None:
        self.images = images
        self.frame = frame
        self.flip = flip

    @property
    def shift(self) -> int:
        """The largest shift of a training image, in pixels: 4 at 32x32, as is usual for CIFAR."""
        return min(self.frame.size) // 8

    @abstractmethod
    def read(self, plan: Sequence[Tensor], augment: int | None, device: torch.device) -> Iterator[Tensor]:
        """For each tensor of positions [n] in `plan` its images, uint8 [n, channels, height, width] on `device`.

        `augment` is the seed of the augmentation; None disables it.
        Raises DataError if an image cannot be read.
        """


class InMemory(Reader):
    """Reads all images at the first use, and keeps them on the device that was used last."""

    pixels: Tensor | None = None

    def read(self, plan: Sequence[Tensor], augment: int | None, device: torch.device) -> Iterator[Tensor]:
        if self.pixels is None:
            self.pixels = self.images.read_all(self.frame)
        pixels = self.pixels = self.pixels.to(device)  # [n, c, h, w]
        moves = None if augment is None else draw_moves(len(self.images), self.shift, self.flip, augment).to(device)
        for positions in plan:
            positions = positions.to(device)
            images = pixels[positions]
            yield images if moves is None else move(images, moves[positions], self.shift)


def draw_moves(n: int, shift: int, flip: bool, seed: int) -> Tensor:
    """A random move for each of `n` images, [n, 3]: rows and columns to skip (0 to 2·shift), and 1 to flip."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.randint(2 * shift + 1, (n, 2), generator=generator)
    flipped = torch.randint(2, (n, 1), generator=generator) * flip
    return torch.cat([corner, flipped], dim=1)


def move(images: Tensor, moves: Tensor, shift: int) -> Tensor:
    """`images` [n, c, h, w] padded with `shift` black pixels, then cropped and flipped according to `moves` [n, 3]."""
    n, _, height, width = images.shape
    windows = F.pad(images, [shift] * 4).unfold(2, height, 1).unfold(3, width, 1)  # [n, c, 2·shift+1, 2·shift+1, h, w]
    top, left, flipped = moves.unbind(1)
    cropped = windows[torch.arange(n, device=images.device), :, top, left]  # [n, c, h, w]
    return torch.where(flipped.bool()[:, None, None, None], cropped.flip(3), cropped)


class Streamed(Reader):
    """Reads images for each batch, in `workers` processes (0: in this one)."""

    def __init__(self, images: Images, frame: Frame, flip: bool, workers: int) -> None:
        super().__init__(images, frame, flip)
        self.workers = workers

    def read(self, plan: Sequence[Tensor], augment: int | None, device: torch.device) -> Iterator[Tensor]:
        rows = _Rows(self.images, self.frame, self._transform(), augment)
        for images in load(rows, plan, self.workers, device, _stack):
            yield images.to(device, non_blocking=device.type == "cuda")

    def _transform(self) -> nn.Module:
        from torchvision.transforms import v2  # takes seconds to import

        crop: nn.Module = v2.RandomResizedCrop(self.frame.size, antialias=True)
        if self.frame.small:
            crop = v2.RandomCrop(self.frame.size, padding=self.shift)
        return nn.Sequential(crop, v2.RandomHorizontalFlip(0.5 if self.flip else 0))


def load(
    rows: Dataset[Any], plan: Sequence[Tensor], workers: int, device: torch.device, collate: Callable[[list[Any]], Any]
) -> Iterator[Any]:
    """For each tensor of positions in `plan` the batch that `collate` makes of its rows, read by `workers` processes.

    An error that `rows` or `collate` return, because the loader wraps exceptions in a long traceback, is raised.
    """
    loader = DataLoader(
        rows,
        batch_sampler=[positions.tolist() for positions in plan],
        num_workers=workers,
        collate_fn=collate,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # otherwise starting the loader would advance the global generator
    )
    yield from guarded(loader, workers)


def guarded(batches: Iterable[Any], workers: int) -> Iterator[Any]:
    """`batches` of a loader. Raises a DataError that is among them, or if one of its `workers` exits."""
    try:
        for batch in batches:
            if isinstance(batch, DataError):
                raise batch
            yield batch
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise DataError(
            f"One of the {workers} data loader workers exited unexpectedly, perhaps out of memory: use fewer workers, or none."
        ) from error


@contextmanager
def random_numbers(seed: int) -> Iterator[None]:
    """Inside, torch's random numbers depend on `seed` alone; afterwards they continue as before."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which also seeds the GPU
        yield


class _Rows(Dataset[Tensor | DataError]):
    """The data set of the loader. Errors are returned."""

    def __init__(self, images: Images, frame: Frame, transform: nn.Module, augment: int | None) -> None:
        self.images = images
        self.frame = frame
        self.transform = transform
        self.augment = augment

    def __getitem__(self, index: int) -> Tensor | DataError:
        try:
            image, name = self.images.read(index), self.images.name(index)
            if self.augment is None:
                return self.frame.fit(image, name)
            image = self.frame.fit(image, name) if self.frame.small else self.frame.color(image, name)
        except DataError as error:
            return error
        with random_numbers(seed_from(self.augment, index)):
            changed: Tensor = self.transform(image)
        return changed


def _stack(rows: list[Tensor | DataError]) -> Tensor | DataError:
    errors = [row for row in rows if isinstance(row, DataError)]
    return errors[0] if errors else torch.stack([row for row in rows if isinstance(row, Tensor)])
