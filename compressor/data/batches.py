"""What the other folders see of a data set: batches of inputs and targets, in three splits.

`Data` and `Batches` are protocols. framed.py has images of one shape with class numbers, or without; paired.py has images with
masks, with other images, and a user's own samples; loaders.py has a user's own DataLoaders. What the targets are for is decided
elsewhere: `kind` only tells what was found.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from compressor.errors import DataError, printable

Split = Literal["train", "held_out", "test"]
Fit = Literal["cover", "stretch", "letterbox", "whole", "own"]
Kind = Literal["classes", "masks", "images", "nothing"]

IGNORED = -100  # in masks: pixels without a class; PyTorch's default `ignore_index`


class Batch(NamedTuple):
    """Inputs of a network, usually images [n, channels, height, width], normalised; targets; indices [n] in the data set.

    `inputs` is what the network is called with: a tensor, or a tuple or mapping of tensors. `targets` depend on the kind of the
    data: class numbers [n], masks [n, height, width] with `IGNORED` where a pixel has no class, images like the outputs, or
    None. `views` are the same images, each augmented independently, for a method that requests several. Images are evaluated in
    parts of at most `tile` (height, width), if it is given.
    """

    inputs: Any
    targets: Any
    indices: Tensor
    views: tuple[Tensor, ...] = ()
    tile: tuple[int, int] | None = None

    @property
    def size(self) -> int:
        """The number of samples."""
        return len(self.indices)


class Batches(Protocol):
    """Can be iterated any number of times, with the same batches each time if the data are `indexed`; `len` is their number.

    `plan` has the positions [n] of each batch's samples. Raises DataError during iteration if a sample cannot be read. For a
    stream of unknown length, `len` and `plan` raise DataError, but it can be iterated.
    """

    @property
    def plan(self) -> Sequence[Tensor]: ...

    def with_plan(self, plan: Sequence[Tensor]) -> "Batches":
        """The same, but with other positions in each batch: a part of each for one of several processes."""
        ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...


@runtime_checkable
class Data(Protocol):
    """Samples in three splits: "train", "held_out" (for validation, split off the training samples) and "test".

    kind:    what the targets are
    classes: the names of the classes of class numbers and masks; else empty
    shape:   channels, height and width of one image: of all, if `kind` is "classes"; else the reference for costs and export
    mean, std: one value per channel, subtracted from and divided into inputs whose pixels are from 0 to `max_value`
    notes:   sentences for the report
    counts:  the number of samples of each split, 0 if a stream does not tell its length
    indexed: whether samples have a position, and their number is known; False for streams and DataLoaders
    color:   the order of the channels given to a network: "rgb", "bgr" or "grey"
    fit:     how images are brought to `shape`: "cover" (resized and cropped), "stretch" (resized), "letterbox" (resized with
             their aspect ratio, and centred between bars of the mean color), "whole" (not at all, so that they have different
             sizes), or "own" (they are the user's, as they are)
    pad_to:  evaluation images are padded at the right and bottom to a multiple of this height and width
    tile:    height and width of the tiles in which larger evaluation images are given to a network; None: as a whole
    """

    @property
    def spec(self) -> str: ...
    @property
    def kind(self) -> Kind: ...
    @property
    def classes(self) -> list[str]: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def mean(self) -> tuple[float, ...]: ...
    @property
    def std(self) -> tuple[float, ...]: ...
    @property
    def notes(self) -> list[str]: ...
    @property
    def counts(self) -> dict[Split, int]: ...
    @property
    def indexed(self) -> bool: ...
    @property
    def color(self) -> str: ...
    @property
    def max_value(self) -> float: ...
    @property
    def pad_to(self) -> int: ...
    @property
    def tile(self) -> tuple[int, int] | None: ...
    @property
    def fit(self) -> Fit: ...

    def targets(self, split: Split) -> tuple[Tensor, Tensor]:
        """Indices [n] of all samples of a split, as in its batches, and their class numbers [n]. Raises DataError for data
        without class numbers."""
        ...

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
        """Batches of one split on `device`, each of at most `batch_size` samples.

        An index is the sample's position in the data set that its split comes from. `augment=False` disables the augmentation
        of training images, but not the shuffling by (seed, epoch); other splits are never augmented. `cutout` is the side of
        the square that is hidden in each training image, as a share of the image's shorter side. `limit` is a number of
        samples: the first ones of the epoch in training, but evenly spaced ones of the other splits, which are often sorted.
        If the last training batch would have a single sample, it is dropped, because batch normalisation needs two.

        With `views` > 1, a batch has that many independently augmented views of each training image; the first is `inputs`
        itself. With `by_class` > 1, a training batch consists of groups of that many consecutive images of one class, from as
        many classes as possible; images that do not fill a group are dropped.
        Raises DataError for what the data do not support: some need class numbers.
        """
        ...


def input_shape(data: Data) -> tuple[int, ...]:
    """The shape of what a network is called with for an image of `data.shape`: that image, or one of its tiles."""
    if data.tile is None:
        return data.shape
    channels, *size = data.shape
    return channels, *map(min, size, data.tile)


def images_at_once(batch_size: int, size: tuple[int, int], tile: tuple[int, int] | None) -> int:
    """How many images of `size` have the pixels of `batch_size` tiles, at least one; without tiles `batch_size`."""
    return batch_size if tile is None else max(1, batch_size * math.prod(map(min, size, tile)) // math.prod(size))


def check_classes(data: Data, outputs: int) -> None:
    """Raises DataError if the number of outputs of a network is not the number of classes of `data`."""
    if outputs != len(data.classes):
        names = printable(", ".join(data.classes[:5])) + (", ..." if len(data.classes) > 5 else "")
        raise DataError(
            f"The network has {outputs} classes, but {data.spec} has {len(data.classes)} ({names}): "
            "use the data that the network was trained on, or a network trained on this data."
        )


def check_batch_size(batch_size: int) -> None:
    """Raises DataError if it is not 1 or more."""
    if batch_size < 1:
        raise DataError(f"The batch size is {batch_size}, but must be 1 or more.")


def check_unsupported(found: str, views: bool, by_class: bool, cutout: bool) -> None:
    """Raises DataError if one of these is asked of data that do not support it; `found` says what the data have."""
    for name, asked in (("several views of an image", views), ("images grouped by class", by_class), ("cutout", cutout)):
        if asked:
            raise DataError(f"{found}, for which {name} cannot be used: omit it, or use another method.")


def spaced(positions: Tensor, limit: int | None) -> Tensor:
    """`limit` of the `positions` [n], evenly spaced; all of them without a limit."""
    if limit is None or limit >= len(positions):
        return positions
    return positions[torch.arange(limit) * len(positions) // limit]
