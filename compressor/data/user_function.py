"""The user's own function, `file.py:function`: called without arguments, it returns the data.

It may return the result of `open_data`, or torch data sets or DataLoaders of (input, target) pairs as {"train": ..., "test":
...}, optionally with "held_out" and the names of the "classes", or as (train, test) or (train, test, held_out). A target is a
class number, a mask, an image or None (own.py). The attributes `targets` and `classes` of a data set are used if it has them,
as in torchvision; without `targets` all samples are read once for their labels.

Images of bytes, and for class numbers of floats from 0 to 1, are augmented and normalised later; other inputs are used as they
are. A DataLoader is used as it is (loaders.py) if it has a collate function or a sampler of its own, or else its data set.
"""

import importlib.util
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from compressor.data.batches import Data, Kind, Split
from compressor.data.images import Images
from compressor.data.loaders import Streams, is_stream
from compressor.data.own import OwnSamples, is_bytes
from compressor.data.paired import told
from compressor.data.splits import Part, Source, whole
from compressor.errors import DataError, did_you_mean, first_line
from compressor.modules import without_arguments

PARTS: tuple[Split, ...] = ("train", "test", "held_out")
CLASSES = "classes"


@dataclass(frozen=True)
class Own:
    """A user's data sets by the names of their splits, and the names of the classes of class numbers or masks."""

    sets: dict[Split, OwnSamples]
    classes: list[str]

    @property
    def kind(self) -> Kind:
        return self.sets["train"].kind


def call_function(path: Path, name: str) -> Data | Source[Images] | Own | Streams:
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
    parts, classes = _parts(returned, title)
    if any(is_stream(given) for given in parts.values()):
        return Streams(parts, classes, title)
    sets = {part: given.dataset if isinstance(given, DataLoader) else given for part, given in parts.items()}
    return _opened(sets, classes, title)


class OwnImages(Images):
    """A user's images of bytes, or of floats from 0 to 1, with class numbers or without targets."""

    def __init__(self, samples: OwnSamples) -> None:
        self.samples = samples
        self.labels = samples.labels

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, index: int) -> Tensor:
        return _bytes(self.samples.read(index).input, self.name(index))

    def name(self, index: int) -> str:
        return self.samples.name(index)


def _opened(parts: dict[Split, Any], classes: list[str] | None, title: str) -> Source[Images] | Own:
    """The data sets of a user, as images of one shape if that is what they are."""
    sets = {part: OwnSamples(dataset, f"the {part} data of {title}") for part, dataset in parts.items()}
    train = sets["train"]
    for samples in sets.values():
        if samples.kind != train.kind:
            raise DataError(
                f"{samples.title} have {told(samples.kind)}, but the training data {told(train.kind)}: "
                "return the same kind in all."
            )
    if train.kind in ("classes", "masks"):
        classes = classes or [str(name) for name in getattr(train.dataset, "classes", ())]
    if train.kind == "classes":
        classes = classes or [str(label) for label in range(int(_labels(train).max()) + 1)]
        for samples in sets.values():
            low, high = int(_labels(samples).min()), int(_labels(samples).max())
            if low < 0 or high >= len(classes):
                raise DataError(
                    f"{samples.title} has labels from {low} to {high}, but the training data have {len(classes)} classes: "
                    "number the classes from 0, and the same in all data sets."
                )
    if train.kind == "masks":
        classes = classes or [str(number) for number in range(max(samples.largest() for samples in sets.values()) + 1)]
    if train.kind in ("masks", "images") or not all(map(_is_image, sets.values())):
        for samples in sets.values():
            if samples.is_bytes != train.is_bytes:
                one, other = ("are", "are not") if samples.is_bytes else ("are not", "are")
                raise DataError(
                    f"The inputs of {samples.title} {one} bytes, but those of the training data {other}: return one or the "
                    "other in all."
                )
        return Own(sets, classes or [])
    images: dict[Split, Part[Images]] = {split: whole(OwnImages(samples)) for split, samples in sets.items()}
    return Source(
        classes or [],
        images["train"],
        images["test"],
        images.get("held_out"),
        channels=train.first.input.shape[0],
        notes=[] if classes else ["No labels were found."],
    )


def _labels(samples: OwnSamples) -> Tensor:
    assert samples.labels is not None
    return samples.labels


def _is_image(samples: OwnSamples) -> bool:
    """Whether inputs are images that can be resized, shifted and normalised, without transforms of their own."""
    image = samples.first.input
    if samples.is_random or not isinstance(image, Tensor) or image.ndim != 3 or image.shape[0] not in (1, 3):
        return False
    return is_bytes(image) or (image.is_floating_point() and samples.within_one)


def _parts(returned: Any, title: str) -> tuple[dict[Split, Any], list[str] | None]:
    """Data sets or loaders by the names of their split, and the names of the classes if they are given."""
    if isinstance(returned, tuple | list) and len(returned) in (2, 3):
        returned = dict(zip(PARTS, returned, strict=False))
    if not isinstance(returned, Mapping):
        raise DataError(
            f"{title} returned {type(returned).__name__} instead of data sets: "
            "return (train, test) or {'train': ..., 'test': ...}."
        )
    unknown = [key for key in returned if key not in (*PARTS, CLASSES)]
    if unknown or "train" not in returned or "test" not in returned:
        near = (did_you_mean(str(unknown[0]), PARTS) if unknown else "") or "."
        raise DataError(
            f"{title} returned a dict with {', '.join(map(repr, returned)) or 'no key'}: "
            f"its keys must be 'train', 'test' and optionally 'held_out' and 'classes'{near}"
        )
    classes = returned.get(CLASSES)
    parts: dict[Split, Any] = {part: returned[part] for part in PARTS if part in returned}
    for part, given in parts.items():
        dataset: Any = given.dataset if isinstance(given, DataLoader) else given
        if isinstance(dataset, IterableDataset):
            continue
        if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
            raise DataError(
                f"The {part} data of {title} are a {type(dataset).__name__}: "
                "return a data set, with __getitem__ and __len__, an IterableDataset, or a DataLoader."
            )
        if len(dataset) == 0:
            raise DataError(f"The {part} data of {title} are empty: return a data set with images.")
    return parts, None if classes is None else [str(name) for name in classes]


def _bytes(image: Tensor, name: str) -> Tensor:
    """An image as uint8."""
    if is_bytes(image):
        return image
    if image.min() < 0 or image.max() > 1:
        raise DataError(
            f"{name} has values from {image.min():.3g} to {image.max():.3g}, but the first ones are from 0 to 1: "
            "return one or the other in all."
        )
    from torchvision.transforms.v2 import functional as TF  # takes seconds to import

    pixels: Tensor = TF.to_dtype(image, torch.uint8, scale=True)
    return pixels


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
