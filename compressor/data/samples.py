"""Single samples of an input and a target, before they are augmented and normalised.

Images are uint8 [channels, height, width], as in files. Masks are [height, width] of class numbers, uint8 with 255 where a
pixel has no class, or int32 with `IGNORED` there if there are more than 255 classes.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from compressor.data.batches import IGNORED
from compressor.data.images import ImageFiles, Images, with_channels
from compressor.errors import DataError

VOID = 255  # in masks of bytes


class Sample(NamedTuple):
    """An input, and its target or None."""

    input: Any
    target: Any


Size = tuple[int, int]  # height and width


class Samples(ABC):
    """A data set of samples. `names` are those of files; `labels` [n] class numbers, if these are the targets."""

    labels: Tensor | None = None
    names: Sequence[str] | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, index: int) -> Sample:
        """Sample number `index`. Raises DataError if it cannot be read."""

    def draw(self, index: int, seed: int) -> Sample:
        """The same; random transforms that the data set has of its own depend on `seed`."""
        return self.read(index)

    @abstractmethod
    def name(self, index: int) -> str:
        """The name of sample number `index` in messages."""

    @abstractmethod
    def sizes(self, index: int) -> tuple[Size, ...]:
        """The sizes of the images of a sample: of the input, and of a target of another size."""


class FileSamples(Samples):
    """Samples whose input is made of an image file, with `channels`."""

    def __init__(self, images: Images, channels: int) -> None:
        self.images = images
        self.channels = channels
        self.names = images.names
        self._sizes: dict[int, Size] = {}

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        return self.images.name(index)

    def image(self, index: int) -> Tensor:
        image = with_channels(self.images.read(index), self.channels, self.name(index))
        if image.shape[-2:].numel() == 1:
            raise DataError(f"{self.name(index)} is a single pixel: replace it, or remove it from its folder.")
        return image

    def sizes(self, index: int) -> tuple[Size, ...]:
        if index not in self._sizes:
            self._sizes[index] = self.images.size(index)
        return (self._sizes[index],)


class Pairs(FileSamples):
    """Input images with target images that are `ratio` times as large."""

    def __init__(self, images: Images, targets: Images, channels: int, ratio: int) -> None:
        super().__init__(images, channels)
        self.targets = targets
        self.ratio = ratio

    def read(self, index: int) -> Sample:
        image, target = self.image(index), with_channels(self.targets.read(index), self.channels, self.targets.name(index))
        if target.shape[1:] != tuple(self.ratio * side for side in image.shape[1:]):
            (height, width), (rows, columns) = image.shape[1:], target.shape[1:]
            large = f"{self.ratio} times as large as" if self.ratio > 1 else "as large as"
            raise DataError(
                f"{self.targets.name(index)} is {columns}x{rows} pixels, but {self.name(index)} is {width}x{height}: "
                f"a target must be {large} its input, as the others are."
            )
        return Sample(image, target)

    def sizes(self, index: int) -> tuple[Size, ...]:
        height, width = super().sizes(index)[0]
        return (height, width), (height * self.ratio, width * self.ratio)


class Reduced(FileSamples):
    """Images as targets; the input is the image, reduced to 1 / `ratio` of its size by Pillow's bicubic interpolation."""

    def __init__(self, images: Images, channels: int, ratio: int) -> None:
        super().__init__(images, channels)
        self.ratio = ratio

    def read(self, index: int) -> Sample:
        from torchvision.transforms.v2 import functional as TF  # takes seconds to import

        _, (rows, columns) = self.sizes(index)
        target = self.image(index)[:, :rows, :columns]
        size = columns // self.ratio, rows // self.ratio
        reduced: Tensor = TF.pil_to_tensor(TF.to_pil_image(target).resize(size, Image.Resampling.BICUBIC))
        return Sample(reduced, target)

    def sizes(self, index: int) -> tuple[Size, ...]:
        height, width = super().sizes(index)[0]
        rows, columns = height // self.ratio, width // self.ratio
        if not rows * columns:
            raise DataError(
                f"{self.name(index)} is {width}x{height} pixels, which cannot be reduced {self.ratio} times: remove it."
            )
        return (rows, columns), (rows * self.ratio, columns * self.ratio)


class Clean(FileSamples):
    """Images that are targets; the input is the same image, to which noise is added later."""

    def read(self, index: int) -> Sample:
        image = self.image(index)
        return Sample(image, image)


class MaskFiles(ImageFiles):
    """Files of masks, read as class numbers [height, width]: indices of grey values or of a palette."""

    def __init__(self, paths: Sequence[str]) -> None:
        super().__init__(paths)
        self.kept: dict[int, Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "kept": {}}

    def read(self, index: int) -> Tensor:
        kept = self.kept.pop(index, None)
        return super().read(index) if kept is None else kept

    def largest(self, ignored: Sequence[int], memory: int) -> int:
        """The largest class number; the masks are kept until they are read, if they take at most `memory` bytes."""
        left = memory

        def look(index: int) -> int:
            nonlocal left
            numbers = self.read(index)
            if (left := left - numbers.nbytes) >= 0:
                self.kept[index] = numbers
            found = np.setdiff1d(numbers.numpy(), ignored)
            return int(found[-1]) if len(found) else -1

        with ThreadPoolExecutor() as pool:
            return max(pool.map(look, range(len(self))))

    def _decoded(self, image: Image.Image) -> Tensor:
        if image.format == "JPEG":
            raise ValueError("JPEG changes class numbers; save masks as PNG")
        if image.mode not in ("L", "P", "1", "I") and not image.mode.startswith("I;16"):
            raise ValueError(
                f"it has colours ({image.mode}); save the class number of each pixel, in a grey image or with a palette"
            )
        numbers = np.array(image)
        if numbers.dtype not in (np.uint8, np.bool_):
            return torch.from_numpy(numbers.astype(np.int32))
        return torch.from_numpy(numbers.astype(np.uint8))

    def _broken(self, index: int, error: Exception) -> DataError:
        if type(error) is ValueError:  # raised here or in `_opened`
            return DataError(f"{self.name(index)} cannot be read as a mask: {error}.")
        return super()._broken(index, error)


class Masked(FileSamples):
    """Images with masks of class numbers. `ignored` are numbers of no class; `count` is the number of classes.

    `hint` says what to do about another number.
    """

    def __init__(self, images: Images, masks: MaskFiles, channels: int, ignored: Sequence[int], count: int, hint: str) -> None:
        super().__init__(images, channels)
        self.masks = masks
        self.count = count
        self.hint = hint
        self.ignored = np.array(ignored, dtype=np.int64)

    def read(self, index: int) -> Sample:
        image, numbers = self.image(index), self.masks.read(index)
        if image.shape[-2:] != numbers.shape:
            (height, width), (rows, columns) = image.shape[-2:], numbers.shape
            raise DataError(
                f"{self.masks.name(index)} is {columns}x{rows} pixels, but {self.name(index)} is {width}x{height}: "
                "a mask must have the size of its image."
            )
        return Sample(image, self._marked(index, numbers.numpy()))

    def _marked(self, index: int, numbers: npt.NDArray[Any]) -> Tensor:
        """`numbers` [h, w] of the file, with those that are no class marked. Raises DataError if one is not to be ignored."""
        no_class = (numbers < 0) | (numbers >= self.count) | np.isin(numbers, self.ignored)
        wrong = np.setdiff1d(numbers[no_class], self.ignored)
        if len(wrong):
            raise DataError(
                f"{self.masks.name(index)} has the number {wrong[-1]}, but there are {self.count} classes, from 0 to "
                f"{self.count - 1}: {self.hint}, or ignore it with ?ignore={wrong[-1]}."
            )
        if self.count > VOID:
            return torch.from_numpy(np.where(no_class, IGNORED, numbers.astype(np.int32)))
        return torch.from_numpy(np.where(no_class, VOID, numbers).astype(np.uint8))


class Kept(Samples):
    """Samples that stay in memory once they have been read."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples
        self.names, self.labels = samples.names, samples.labels
        self._rows: dict[int, Sample] = {}

    def __len__(self) -> int:
        return len(self.samples)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_rows": {}}  # a worker that is not forked reads them again

    def read(self, index: int) -> Sample:
        row = self._rows.get(index)
        if row is None:
            row = self._rows[index] = self.samples.read(index)
        return row

    def keep(self, indices: Sequence[int]) -> None:
        """Read these samples, in threads."""
        missing = [index for index in indices if index not in self._rows]
        with ThreadPoolExecutor() as pool:
            for _ in pool.map(self.read, missing):
                pass

    def name(self, index: int) -> str:
        return self.samples.name(index)

    def sizes(self, index: int) -> tuple[Size, ...]:
        return self.samples.sizes(index)
