"""Read single images and resize them to a common shape; errors name the image and the reason.

An image is a uint8 tensor (0 to 255), [channels, height, width], until a batch is normalised: this takes a quarter of the
memory of float32, and is what the files contain.
"""

import logging
import math
import os
import stat
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from compressor.errors import DataError, first_line, printable

# Pillow logs many lines about damaged files, in addition to the errors that it raises.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())

FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")  # for some other formats, Pillow starts external programs
LARGEST = Image.MAX_IMAGE_PIXELS or 2**26  # pixels; Pillow warns above
SMALL = 64  # pixels; images up to this size are not cropped and are augmented by shifts, as is usual for CIFAR
CROP_SHARE = 0.875  # of the shorter side of larger images, center crop in evaluation, as is usual for ImageNet: 224 of 256


@dataclass(frozen=True)
class Frame:
    """The common shape of all images. `resize`: whether images of another size are resized, or are an error.

    They cover it, or with `bars`, a color, are letterboxed: see `letterboxed`.
    """

    channels: int
    height: int
    width: int
    resize: bool
    bars: Sequence[int] | None = None

    @property
    def size(self) -> list[int]:
        """Height and width, as torchvision expects them."""
        return [self.height, self.width]

    @property
    def small(self) -> bool:
        return max(self.size) <= SMALL

    def color(self, image: Tensor, name: str) -> Tensor:
        """`image` [..., c, h, w] with this frame's channels: grey is repeated, and RGB is converted to grey."""
        if not self.resize and list(image.shape[-2:]) != self.size:
            raise DataError(
                f"{name} is {image.shape[-1]}x{image.shape[-2]} pixels, but the images that were checked first are "
                f"{self.width}x{self.height}: set a size to resize all images to."
            )
        return with_channels(image, self.channels, name)

    def fit(self, image: Tensor, name: str) -> Tensor:
        """`image` [..., c, h, w] resized to this frame and cropped or with bars; an image that has its size is not changed."""
        image = self.color(image, name)
        height, width = image.shape[-2:]
        if [height, width] == self.size:
            return image
        if self.bars is not None:
            return letterboxed(image, (self.height, self.width), self.bars)
        scale = max(self.height / height, self.width / width) / (1 if self.small else CROP_SHARE)
        shorter = math.ceil(round(min(height, width) * scale, 6))  # rounded first: 256.00000001 is 256
        if (longer := round(max(height, width) * scale)) * shorter > LARGEST:
            raise DataError(
                f"{name} is {width}x{height} pixels; with its shorter side resized to {shorter}, it would be {longer} long: "
                "crop it, or remove it from its folder."
            )
        from torchvision.transforms.v2 import functional as TF  # takes seconds to import

        middle: Tensor = TF.center_crop(TF.resize(image, [shorter], antialias=True), self.size)
        return middle


def inside(found: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """The largest size with the aspect ratio of `found` that fits into `size`, at least one pixel."""
    scale = min(size[0] / found[0], size[1] / found[1])
    height, width = (max(1, round(side * scale)) for side in found)
    return height, width


def letterboxed(image: Tensor, size: tuple[int, int], bars: Sequence[int]) -> Tensor:
    """`image` [..., c, h, w], resized with its aspect ratio to fit into `size`, and centred between bars of a color."""
    from torchvision.transforms.v2 import functional as TF  # takes seconds to import

    height, width = image.shape[-2:]
    return centred(TF.resize(image, [*inside((height, width), size)], antialias=True), size, bars)


def centred(image: Tensor, size: tuple[int, int], fill: Sequence[int]) -> Tensor:
    """`image` [..., c, h, w] in the middle of one of `size` whose other pixels are `fill` [channels]."""
    height, width = image.shape[-2:]
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    whole = torch.tensor(fill, dtype=image.dtype)[:, None, None].expand(*image.shape[:-2], *size).clone()
    whole[..., top : top + height, left : left + width] = image
    return whole


def with_channels(image: Tensor, channels: int, name: str) -> Tensor:
    """`image` [..., c, h, w] with so many channels: grey is repeated, and RGB is converted to grey. Raises DataError."""
    found = image.shape[-3]
    if found == channels:
        return image
    if found == 1:
        return image.expand(*image.shape[:-3], channels, *image.shape[-2:])
    if found == 3 and channels == 1:
        from torchvision.transforms.v2 import functional as TF  # takes seconds to import

        grey: Tensor = TF.rgb_to_grayscale(image)
        return grey
    raise DataError(f"{name} has {found} channels instead of {channels}: convert the images first.")


class Images(ABC):
    """A data set of images. `labels` [n] are class indices, int64, if there are classes; `names` are those of files."""

    labels: Tensor | None
    names: Sequence[str] | None = None

    @property
    def in_threads(self) -> bool:
        """Whether to read images in several threads. A user's data set may not be thread-safe."""
        return False

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, index: int) -> Tensor:
        """Image number `index`, uint8 [channels, height, width]. Raises DataError when it cannot be read."""

    @abstractmethod
    def name(self, index: int) -> str:
        """The name of image number `index` in messages."""

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of image number `index`."""
        height, width = self.read(index).shape[-2:]
        return height, width

    def read_all(self, frame: Frame) -> Tensor:
        """All images in the shape of `frame`, uint8 [n, channels, height, width]."""
        pixels = torch.empty(len(self), frame.channels, *frame.size, dtype=torch.uint8)

        def keep(index: int) -> None:
            pixels[index] = frame.fit(self.read(index), self.name(index))

        with ThreadPoolExecutor() as pool:
            for _ in (pool.map if self.in_threads else map)(keep, range(len(self))):
                pass
        return pixels


class ImageFiles(Images):
    """Image files that Pillow reads. Their names are relative to the folder `root`."""

    def __init__(self, paths: Sequence[str], labels: Sequence[int] | None = None, root: str = "") -> None:
        self.paths = paths
        self.labels = None if labels is None else torch.tensor(labels, dtype=torch.int64)
        self.root = root

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def names(self) -> Sequence[str]:  # type: ignore[override]  # made from the paths
        return [path.removeprefix(self.root).lstrip(os.sep).replace(os.sep, "/") for path in self.paths]

    @property
    def in_threads(self) -> bool:
        # For small images, contention for Python's global lock takes longer than reading.
        return max(self.size(0)) > SMALL

    def read(self, index: int) -> Tensor:
        try:
            with self._opened(index) as image:
                return self._decoded(image)
        except DataError:
            raise
        except Exception as error:
            raise self._broken(index, error) from error

    def size(self, index: int) -> tuple[int, int]:
        """Height and width, from the file header alone."""
        try:
            with self._opened(index) as image:
                return image.height, image.width
        except Exception as error:
            raise self._broken(index, error) from error

    def name(self, index: int) -> str:
        return printable(self.paths[index])

    def _decoded(self, image: Image.Image) -> Tensor:
        return to_pixels(image)

    def _opened(self, index: int) -> Image.Image:
        """The image, of which only the header is read. Raises ValueError if its size is zero or implausibly large.

        Also raises ValueError if it is not a regular file: opening a pipe would block forever.
        """
        if not stat.S_ISREG(os.stat(self.paths[index]).st_mode):  # noqa: PTH116  # a Path for each image takes long
            raise ValueError("it is not a regular file")
        image = Image.open(self.paths[index], formats=FORMATS)
        if not 0 < image.width * image.height <= LARGEST:
            image.close()
            raise ValueError(f"its header declares {image.width}x{image.height} pixels; from 1 to {LARGEST:,} are accepted")
        return image

    def _broken(self, index: int, error: Exception) -> DataError:
        path = self.name(index)
        if isinstance(error, FileNotFoundError):
            return DataError(f"{path} was deleted after its folder was listed: keep the data in place during a run.")
        return DataError(f"{path} cannot be read as an image: replace it, or remove it from its folder.\n{first_line(error)}")


class ImageTensor(Images):
    """Images of one size in memory: `pixels` uint8 [n, channels, height, width]."""

    def __init__(self, pixels: Tensor, labels: Tensor, title: str) -> None:
        self.pixels = pixels
        self.labels = labels.to(torch.int64)
        self.title = title

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, index: int) -> Tensor:
        return self.pixels[index]

    def name(self, index: int) -> str:
        return f"image {index} of {self.title}"

    def read_all(self, frame: Frame) -> Tensor:
        return frame.fit(self.pixels, self.title).contiguous()


def to_pixels(image: Image.Image) -> Tensor:
    """A Pillow image as uint8 [1 or 3, height, width]. Raises ValueError for pixels of 32 bits, whose range is unknown."""
    from torchvision.transforms.v2 import functional as TF  # takes seconds to import

    if image.mode in ("I", "F"):
        raise ValueError("its pixels have 32 bits; save it with 8 or 16 bits per channel")
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips values above 255.
        pixels = TF.to_dtype(TF.pil_to_tensor(image), torch.uint8, scale=True)
    elif image.mode in ("1", "L", "LA", "La"):
        pixels = TF.pil_to_tensor(image.convert("L"))
    else:
        # Pillow warns if the transparency of a palette is dropped without conversion to RGBA.
        with_palette = image.mode == "P" and "transparency" in image.info
        pixels = TF.pil_to_tensor((image.convert("RGBA") if with_palette else image).convert("RGB"))
    return torch.as_tensor(pixels)
