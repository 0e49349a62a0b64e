"""A user's own samples: what a data set returns, brought to an input and a target.

Images of bytes, [1 or 3, height, width], are normalised and augmented like image files. Anything else is given to the network
as it is: tensors of floats or whole numbers, in a tuple or a mapping.
"""

import operator
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import default_collate

from compressor.data.batches import IGNORED, Fit, Kind
from compressor.data.images import to_pixels, with_channels
from compressor.data.pixels import Scale
from compressor.data.preparation import Preparation
from compressor.data.readers import random_numbers
from compressor.data.samples import VOID, Sample, Samples, Size
from compressor.errors import DataError, first_line

SUPPORTED = (
    "supported are class numbers, masks [height, width] of whole numbers, images [channels, height, width] of floats or bytes, "
    "and None"
)
LABELS = ("label", "labels", "target", "targets", "mask", "masks", "y")  # keys of mappings
LOOKED_AT = 8  # samples of each data set that are read first, to learn what they are


def parsed(item: Any, name: str) -> tuple[Sample, Kind]:
    """What a data set returns, as an input and a target with its kind. A pair is (input, target), all else is an input alone.

    Raises DataError.
    """
    target = None
    if isinstance(item, tuple | list) and len(item) == 2:
        item, target = item
    elif isinstance(item, tuple | list) and len(item) == 1:
        (item,) = item
    elif isinstance(item, Mapping) and (keys := [key for key in item if str(key).lower() in LABELS]):
        raise DataError(f"{name} is a mapping with {keys[0]!r}, which looks like a label: return (input, target).")
    found = _input(item, name)
    target, kind = _target(target, found, name)
    return Sample(found, target), kind


def is_bytes(value: Any) -> bool:
    """Whether it is an image, or a batch of images, of bytes."""
    return isinstance(value, Tensor) and value.dtype == torch.uint8


def _input(value: Any, name: str) -> Any:
    if isinstance(value, Mapping):
        return {key: _input(part, name) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return tuple(_input(part, name) for part in value)
    if isinstance(value, Image.Image):
        return _pixels(value, name)
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(np.ascontiguousarray(value))
        if is_bytes(value) and value.ndim == 3 and value.shape[2] in (1, 3) and value.shape[0] not in (1, 3):
            value = value.permute(2, 0, 1)  # as in Pillow and OpenCV
    if not isinstance(value, Tensor):
        raise DataError(f"{name} has an input of type {type(value).__name__}: return tensors, arrays or Pillow images.")
    value = value.detach().cpu().as_subclass(Tensor)  # of a tv_tensor, a plain one
    if is_bytes(value):
        value = value[None] if value.ndim == 2 else value
        if value.ndim != 3 or value.shape[0] not in (1, 3):
            raise DataError(
                f"{name} has an input of bytes of shape {list(value.shape)}: return an image [1 or 3, height, "
                "width], or floats."
            )
    return value.float() if value.is_floating_point() else value


def _pixels(image: Image.Image, name: str) -> Tensor:
    try:
        return to_pixels(image)
    except Exception as error:
        raise DataError(f"{name} cannot be read: replace it.\n{first_line(error)}") from error


def _target(value: Any, found: Any, name: str) -> tuple[Any, Kind]:
    if value is None:
        return None, "nothing"
    if isinstance(value, Image.Image):
        with_color = is_bytes(found) and found.shape[0] == 3
        if value.mode in ("P", "1", "I") or value.mode.startswith("I;16") or (value.mode == "L" and with_color):
            value = np.array(value, dtype=np.int64)
        elif value.mode == "L":
            raise DataError(
                f"{name} has a grey target, a mask or an image: return a tensor, [h, w] for a mask, [1, h, w] for an image."
            )
        else:
            return _pixels(value, name), "images"
    if isinstance(value, np.ndarray | np.generic):
        value = torch.as_tensor(np.ascontiguousarray(value)) if np.ndim(value) else torch.tensor(value.item())
    if not isinstance(value, Tensor):
        try:
            return operator.index(value), "classes"
        except TypeError:
            raise DataError(f"{name} has the label {value!r:.60}: {SUPPORTED}.") from None
    is_mask = type(value).__name__ == "Mask"
    value = value.detach().cpu().as_subclass(Tensor)  # of a tv_tensor, a plain one
    is_whole = not value.is_floating_point() and not value.is_complex()
    if is_whole and value.ndim == 0:
        return int(value), "classes"
    if is_whole and value.ndim == 3 and value.shape[0] == 1 and (is_mask or not is_bytes(value)):
        value = value[0]
    if is_whole and value.ndim == 2:
        return value.long(), "masks"
    if value.ndim == 3 and (value.is_floating_point() or (is_bytes(value) and value.shape[0] in (1, 3))):
        return value.float() if value.is_floating_point() else value, "images"
    kind = str(value.dtype).removeprefix("torch.")
    raise DataError(f"{name} has a target of {kind} of shape {list(value.shape)}: {SUPPORTED}.")


@contextmanager
def all_random_numbers(seed: int) -> Iterator[None]:
    """Inside, the random numbers of torch, NumPy and Python depend on `seed` alone; afterwards they continue as before."""
    states = np.random.get_state(), random.getstate()
    try:
        with random_numbers(seed):
            np.random.seed(seed)
            random.seed(seed)
            yield
    finally:
        np.random.set_state(states[0])
        random.setstate(states[1])


class OwnSamples(Samples):
    """A user's map-style data set. `kind` is that of all its targets; `is_random`: whether it has random transforms.

    `repeats`: whether these depend on the usual random numbers alone.
    """

    def __init__(self, dataset: Any, title: str) -> None:
        self.dataset = dataset
        self.title = title
        looked = range(min(len(dataset), LOOKED_AT))
        self.first, self.kind = self.parse(0, seed=0)
        once, again, other = ([self.parse(index, seed)[0] for index in looked] for seed in (0, 0, 1))
        self.repeats = all(map(_equal, once, again))
        self.is_random = not (self.repeats and all(map(_equal, once, other)))
        self.is_bytes = all(map(is_bytes, tree_leaves(self.first.input)))
        values = [leaf for row in once for leaf in tree_leaves(row.input) if isinstance(leaf, Tensor) and leaf.numel()]
        self.within_one = all(float(leaf.min()) >= 0 and float(leaf.max()) <= 1 for leaf in values)
        sizes = {_sizes(row) for row in (*once, *other)}
        self._same = sizes.pop() if len(sizes) == 1 else None
        self._sizes: dict[int, tuple[Size, ...]] = {}
        if self.kind == "classes":
            self.labels = self._read_labels()

    @property
    def like_files(self) -> bool:
        """Whether inputs, and targets that are images, are images of bytes, without random transforms."""
        target = self.first.target
        return is_bytes(self.first.input) and not self.is_random and (self.kind == "masks" or is_bytes(target))

    def __len__(self) -> int:
        return len(self.dataset)

    def name(self, index: int) -> str:
        return f"image {index} of {self.title}"

    def read(self, index: int) -> Sample:
        return self.draw(index, seed=0)

    def draw(self, index: int, seed: int) -> Sample:
        sample, kind = self.parse(index, seed)
        if kind != self.kind:
            raise DataError(
                f"{self.name(index)} has another kind of target than image 0, {kind} and {self.kind}: return one kind."
            )
        return sample

    def parse(self, index: int, seed: int) -> tuple[Sample, Kind]:
        name = self.name(index)
        try:
            with all_random_numbers(seed):
                item = self.dataset[index]
        except Exception as error:
            raise DataError(f"{name} cannot be read: fix the data set.\n{first_line(error)}") from error
        return parsed(item, name)

    def sizes(self, index: int) -> tuple[Size, ...]:
        """The common sizes, if the samples that were looked at have some; else the sample is read."""
        if self._same is not None:
            return self._same
        if index not in self._sizes:
            self._sizes[index] = _sizes(self.read(index))
        return self._sizes[index]

    def largest(self) -> int:
        """The largest class number of all masks, which are all read."""
        return max(
            int(self.read(index).target.masked_fill(self.read(index).target == VOID, -1).max()) for index in range(len(self))
        )

    def _read_labels(self) -> Tensor:
        n, targets = len(self), getattr(self.dataset, "targets", None)
        if targets is not None and len(targets) == n:
            labels = [_target(target, None, f"{self.name(i)} (targets)")[0] for i, target in enumerate(targets)]
            # A data set may transform its labels.
            if all(self.read(i).target == labels[i] for i in range(min(n, LOOKED_AT))):
                return torch.tensor(labels)
        return torch.tensor([self.read(i).target for i in range(n)])


def _equal(one: Sample, other: Sample) -> bool:
    left, right = (tree_leaves(tuple(sample)) for sample in (one, other))
    return len(left) == len(right) and all(
        torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a is b or bool(a == b)
        for a, b in zip(left, right, strict=True)
    )


def _sizes(sample: Sample) -> tuple[Size, ...]:
    """The sizes of all tensors of a sample, or something like it for other tensors than images."""
    found = [leaf for leaf in tree_leaves(tuple(sample)) if isinstance(leaf, Tensor)]
    return tuple((leaf.shape[-2:].numel() // max(1, leaf.shape[-1]), leaf.shape[-1]) if leaf.ndim else (1, 1) for leaf in found)


class Prepared(Samples):
    """A user's images of bytes, and masks or images of bytes, like those of files: with `channels`, and masks of bytes.

    `count` is the number of classes of masks.
    """

    def __init__(self, own: OwnSamples, channels: int, count: int) -> None:
        self.own = own
        self.channels = channels
        self.count = count

    def __len__(self) -> int:
        return len(self.own)

    def name(self, index: int) -> str:
        return self.own.name(index)

    def sizes(self, index: int) -> tuple[Size, ...]:
        return self.own.sizes(index)

    def read(self, index: int) -> Sample:
        return self.draw(index, seed=0)

    def draw(self, index: int, seed: int) -> Sample:
        image, target = self.own.draw(index, seed)
        image = with_channels(image, self.channels, self.name(index))
        if self.own.kind == "images":
            return Sample(image, with_channels(target, self.channels, self.name(index)))
        if target.shape != image.shape[1:]:
            raise DataError(
                f"{self.name(index)} is {image.shape[2]}x{image.shape[1]} pixels, but its mask "
                f"{target.shape[1]}x{target.shape[0]}: a mask must have the size of its image."
            )
        marked = marked_mask(target, self.count, self.name(index))
        return Sample(
            image, marked.int() if self.count > VOID else torch.where(marked == IGNORED, VOID, marked).to(torch.uint8)
        )


def marked_mask(numbers: Tensor, count: int, name: str) -> Tensor:
    """Class numbers int64, with `IGNORED` for 255 too, unless it is a class. Raises DataError for numbers of no class."""
    if count <= VOID:
        numbers = numbers.masked_fill(numbers == VOID, IGNORED)
    wrong = numbers[(numbers >= count) | ((numbers < 0) & (numbers != IGNORED))]
    if len(wrong):
        raise DataError(
            f"{name} has a mask with the number {int(wrong[0])}, but there are {count} classes, from 0 to {count - 1}: give "
            f"the data set an attribute `classes` with the names of all, or {IGNORED} where a pixel has no class."
        )
    return numbers


@dataclass(frozen=True)
class AsGiven(Preparation):
    """Samples are neither augmented nor padded; images of bytes are normalised, and all else is as it is.

    `count` is the number of classes of masks. `title` is the name of the data in messages.
    """

    scale: Scale
    kind: Kind
    count: int
    title: str

    @property
    def fit(self) -> Fit:
        return "own"

    def train(self, sample: Sample, seed: int) -> Sample:
        return sample

    def evaluate(self, sample: Sample, index: int) -> Sample:
        return sample

    def sizes(self, found: tuple[Size, ...]) -> tuple[Size, ...]:
        return found

    def stack(self, rows: Sequence[Sample]) -> Sample:
        try:
            inputs = default_collate([row.input for row in rows])
            targets = None if self.kind == "nothing" else default_collate([row.target for row in rows])
        except (RuntimeError, TypeError, KeyError) as error:
            raise DataError(
                f"Samples of {self.title} cannot share a batch: return inputs and targets of one shape, or a DataLoader with a "
                f"collate function.\n{first_line(error)}"
            ) from error
        return Sample(tuple(inputs) if isinstance(inputs, list) else inputs, targets)

    def finish(self, inputs: Any, targets: Any) -> tuple[Any, Any]:
        scaled = tree_map(self._scaled, inputs)
        if self.kind == "masks":
            return scaled, marked_mask(targets.long(), self.count, self.title)
        if self.kind == "images" and is_bytes(targets):
            return scaled, self.scale.images(targets)
        return scaled, targets

    def _scaled(self, value: Any) -> Any:
        if not is_bytes(value):
            return value
        return self.scale.inputs(with_channels(value, len(self.scale.mean), self.title))
