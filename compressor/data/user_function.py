"""The user's own function, `file.py:function`: called without arguments, it returns the data.

It may return the result of `open_data`, or torch data sets of (image, label) pairs as {"train": ..., "test": ...}, optionally
with "held_out", or as (train, test) or (train, test, held_out). Images are Pillow images, or tensors [channels, height, width]
of uint8 or of floats from 0 to 1, which are rounded to uint8; augmentation and normalisation are applied later. The attributes
`targets` and `classes` of a data set are used if it has them, as in torchvision; without `targets` all images are read once
for their labels.
"""

import importlib.util
import operator
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from compressor.data.batches import Data
from compressor.data.images import Images, to_pixels
from compressor.data.splits import Source, whole
from compressor.errors import DataError, did_you_mean, first_line
from compressor.modules import without_arguments

PARTS = ("train", "test", "held_out")
LOOKED_AT = 8  # images of each data set that are read twice, to check that they do not change


def call_function(path: Path, name: str) -> Data | Source:
    """Call the function `name` of the Python file `path`. Raises DataError if it fails or returns something else."""
    title = f"{path}:{name}"
    path = path.absolute()
    function = _load(path, name)
    try:
        with without_arguments():
            returned = function()
    except DataError:
        raise
    except (Exception, SystemExit) as error:
        raise DataError(
            f"{title} failed{_line_in(path, error)}: it is called without arguments.\n{first_line(error)}"
        ) from error
    if isinstance(returned, Data):
        return returned
    return _source(_parts(returned, title), title)


class ImageDataset(Images):
    """A torch data set of (image, label) pairs."""

    def __init__(self, dataset: Any, title: str) -> None:
        self.dataset = dataset
        self.title = title
        self._check_repeatable()
        self.labels = self._read_labels()

    def read(self, index: int) -> Tensor:
        return self._pair(index)[0]

    def name(self, index: int) -> str:
        return f"image {index} of {self.title}"

    def _pair(self, index: int) -> tuple[Tensor, int]:
        name = self.name(index)
        try:
            pair = self.dataset[index]
        except Exception as error:
            raise DataError(f"{name} cannot be read: fix the data set.\n{first_line(error)}") from error
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise DataError(f"{name} is a {type(pair).__name__}, not a pair: the data set must return (image, label).")
        return _bytes(pair[0], name), _class_number(pair[1], name)

    def _check_repeatable(self) -> None:
        for index in range(min(len(self.dataset), LOOKED_AT)):
            once, again = self.read(index), self.read(index)
            if once.shape != again.shape or not once.equal(again):
                raise DataError(
                    f"{self.name(index)} is different each time it is read: remove random augmentation from the data set, "
                    "because images are augmented later."
                )

    def _read_labels(self) -> Tensor:
        n = len(self.dataset)
        targets = getattr(self.dataset, "targets", None)
        if targets is not None and len(targets) == n:
            labels = [_class_number(target, f"{self.name(i)} (targets)") for i, target in enumerate(targets)]
            # A data set may transform its labels.
            if all(self._pair(i)[1] == labels[i] for i in range(min(n, LOOKED_AT))):
                return torch.tensor(labels)
        return torch.tensor([self._pair(i)[1] for i in range(n)])


def _source(parts: dict[str, Any], title: str) -> Source:
    sets = {part: ImageDataset(dataset, f"the {part} data of {title}") for part, dataset in parts.items()}
    train = sets["train"]
    numbers = range(int(train.labels.max()) + 1)
    classes = [str(label) for label in getattr(train.dataset, "classes", numbers)]
    for images in sets.values():
        low, high = int(images.labels.min()), int(images.labels.max())
        if low < 0 or high >= len(classes):
            raise DataError(
                f"{images.title} has labels from {low} to {high}, but the training data have {len(classes)} classes: "
                "number the classes from 0, and the same in all data sets."
            )
    held_out = whole(sets["held_out"]) if "held_out" in sets else None
    return Source(classes, whole(train), whole(sets["test"]), held_out, channels=train.read(0).shape[0])


def _parts(returned: Any, title: str) -> dict[str, Any]:
    """Data sets by the name of their split."""
    if isinstance(returned, tuple | list) and len(returned) in (2, 3):
        returned = dict(zip(PARTS, returned, strict=False))
    if not isinstance(returned, Mapping):
        raise DataError(
            f"{title} returned {type(returned).__name__} instead of data sets: "
            "return (train, test) or {'train': ..., 'test': ...}."
        )
    unknown = [key for key in returned if key not in PARTS]
    if unknown or "train" not in returned or "test" not in returned:
        near = (did_you_mean(str(unknown[0]), PARTS) if unknown else "") or "."
        raise DataError(
            f"{title} returned a dict with {', '.join(map(repr, returned)) or 'no key'}: "
            f"its keys must be 'train', 'test' and optionally 'held_out'{near}"
        )
    parts = {}
    for part, given in returned.items():
        # Of a loader, only the data set is used, not its batches and their order.
        dataset: Any = given.dataset if isinstance(given, DataLoader) else given
        if isinstance(dataset, IterableDataset) or not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
            raise DataError(
                f"The {part} data of {title} are a {type(dataset).__name__}: "
                "return a map-style data set, with __getitem__ and __len__."
            )
        if len(dataset) == 0:
            raise DataError(f"The {part} data of {title} are empty: return a data set with images.")
        parts[part] = dataset
    return parts


def _bytes(image: Any, name: str) -> Tensor:
    """Any image as uint8 [channels, height, width]."""
    if isinstance(image, Image.Image):
        try:
            return to_pixels(image)
        except Exception as error:
            raise DataError(f"{name} cannot be read: replace it.\n{first_line(error)}") from error
    if not isinstance(image, Tensor) or image.ndim != 3:
        found = f"of shape {list(image.shape)}" if isinstance(image, Tensor) else f"a {type(image).__name__}"
        raise DataError(f"{name} is {found}: return a Pillow image or a tensor [channels, height, width].")
    pixels: Tensor = image.cpu()  # batches are moved to the device; images on a GPU cannot be pinned
    if pixels.dtype == torch.uint8:
        return pixels
    if not image.is_floating_point() or image.min() < 0 or image.max() > 1:
        raise DataError(
            f"{name} has {str(image.dtype).removeprefix('torch.')} values from {image.min():.3g} to {image.max():.3g}: "
            "return uint8, or floats from 0 to 1, without normalisation."
        )
    from torchvision.transforms.v2 import functional as TF  # takes seconds to import

    pixels = TF.to_dtype(pixels, torch.uint8, scale=True)
    return pixels


def _class_number(label: Any, name: str) -> int:
    try:
        return operator.index(label)
    except TypeError:
        raise DataError(f"{name} has the label {label!r:.60}: labels must be integer class numbers from 0.") from None


def _load(path: Path, name: str) -> Any:
    """The function `name` of the file `path`, which may import modules in its folder."""
    if not path.is_file():
        hint = did_you_mean(path.name, [file.name for file in path.parent.glob("*.py")]) or "."
        raise DataError(f"The file {path} of the function {name!r} does not exist{hint}")
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Worker processes look up the class of the data set in sys.modules; an existing module of this name is not replaced.
    if getattr(sys.modules.get(path.stem), "__file__", module.__file__) == module.__file__:
        sys.modules[path.stem] = module
    try:
        with without_arguments():
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise DataError(f"{path} cannot be imported{_line_in(path, error)}.\n{first_line(error)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value)]
        raise DataError(f"{path} has no function {name!r}{did_you_mean(name, known) or '.'}")
    return function


def _line_in(path: Path, error: BaseException) -> str:
    """The line of the error in the user's file, as " (line 7)"."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
    if isinstance(error, SyntaxError):
        lines = [error.lineno]
    return f" (line {lines[-1]})" if lines else ""
