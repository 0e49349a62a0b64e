"""Open the data that a spec names, with the image shape and the normalisation."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from compressor.data.batches import Data, Split
from compressor.data.datasets import read_cifar10, read_cifar100, read_digits, read_fashionmnist
from compressor.data.folders import read_folder
from compressor.data.images import Frame, Images
from compressor.data.readers import InMemory, Reader, Streamed
from compressor.data.splits import Part, Source, cut
from compressor.data.user_function import call_function
from compressor.errors import DataError, did_you_mean

FOLDERS: dict[str, Callable[[Path], Source]] = {
    "imagefolder": read_folder,
    "cifar10": read_cifar10,
    "cifar100": read_cifar100,
    "fashionmnist": read_fashionmnist,
}
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # for RGB images
GREY_MEAN, GREY_STD = 0.449, 0.226  # mean over the three channels of ImageNet
USUAL_SIZE = 224  # pixels; for images of different sizes
LOOKED_AT = 32  # images of each data set whose sizes are compared


def open_data(
    spec: str,
    *,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    held_out: float = 0.1,
    seed: int = 0,
    workers: int = 0,
    memory_limit: int = 2 * 2**30,
) -> Data:
    """The images that `spec` names: `digits`, `imagefolder:DIR` or DIR, `cifar10:DIR`, `cifar100:DIR`, `fashionmnist:DIR`, or
    `file.py:function` (see user_function.py). Only a few images are read before the first batch.

    `size` in pixels (one number, or height and width) and `channels` (1 or 3) default to those of the images; images of
    different sizes become 224x224, and image files have three channels. `mean` and `std`, one value per channel, default to
    those of the data set or ImageNet. `held_out` is the share (0 to 0.5) of the training images that is split off, by `seed`,
    if the data have no held-out split. Images that take more than `memory_limit` bytes in all are streamed by `workers`
    processes (0: by this one).

    Raises DataError if the data do not exist, are invalid, or cannot be read.
    """
    if not 0 <= held_out <= 0.5:
        raise DataError(f"The held-out share of the training images is {held_out}, but must be from 0 to 0.5.")
    source = _find(spec)
    if isinstance(source, Data):
        _check_finished(source, spec, size, channels, mean, std)
        return replace(source, spec=spec)
    notes = list(source.notes)
    parts = _parts(source, held_out, seed)
    sets = {id(part.images): part.images for part in parts.values()}
    frame = _frame(list(sets.values()), size, _channels(source, channels), notes)
    mean, std = _normalisation(source, frame.channels, mean, std)
    needed = sum(len(images) for images in sets.values()) * frame.channels * frame.height * frame.width
    readers: dict[int, Reader] = {}
    for key, images in sets.items():
        fits = needed <= memory_limit
        readers[key] = InMemory(images, frame, source.flip) if fits else Streamed(images, frame, source.flip, workers)
    if needed > memory_limit:
        notes.append(
            f"The images are read again for each batch: in memory they would take {needed / 2**30:.2g} GiB, more than the "
            f"limit of {memory_limit / 2**30:.2g} GiB."
        )
        if not frame.small:
            notes.append(
                "Training images are augmented with random resized crops; in memory they would only be shifted and mirrored."
            )
    return Data(
        spec=spec,
        classes=source.classes,
        shape=(frame.channels, frame.height, frame.width),
        mean=mean,
        std=std,
        notes=notes,
        readers={split: readers[id(part.images)] for split, part in parts.items()},
        positions={split: part.positions for split, part in parts.items()},
    )


def _find(spec: str) -> Source | Data:
    kind, _, rest = spec.partition(":")
    if spec == "digits":
        return read_digits()
    if kind in FOLDERS and rest:
        return FOLDERS[kind](Path(rest).expanduser())
    file, _, function = spec.rpartition(":")
    if file.endswith(".py"):
        return call_function(Path(file).expanduser(), function)
    folder = Path(spec).expanduser()
    has_kind = len(kind) > 1 and ":" in spec  # one letter is a drive
    if folder.exists() or (len(folder.parts) > 1 and not has_kind):
        return read_folder(folder)
    if kind in FOLDERS:
        raise DataError(f"{kind} needs a folder: write {kind}:DIR.")
    known = ["digits", *FOLDERS]
    here = [path.name for path in Path().iterdir() if path.is_dir()]
    kinds = ", ".join(f"{name}:DIR" for name in FOLDERS)
    hint = did_you_mean(kind, known + here) or "."
    raise DataError(f"{spec!r} is not a data set{hint}\nSupported: digits, {kinds}, a folder, and file.py:function.")


def _parts(source: Source, held_out: float, seed: int) -> dict[Split, Part]:
    if source.held_out is not None:
        return {"train": source.train, "held_out": source.held_out, "test": source.test}
    train, rest = cut(source.train, held_out, seed)
    return {"train": train, "held_out": rest, "test": source.test}


def _channels(source: Source, channels: int | None) -> int:
    if channels is None or channels in (1, 3, source.channels):
        return channels or source.channels
    raise DataError(f"{channels} channels were requested, but the images have {source.channels}: use 1, 3 or the default.")


def _frame(sets: list[Images], size: int | tuple[int, int] | None, channels: int, notes: list[str]) -> Frame:
    if size is not None:
        height, width = (size, size) if isinstance(size, int) else size
        if min(height, width) < 1:
            raise DataError(f"The image size is {width}x{height} pixels, but must be 1 or more.")
        return Frame(channels, height, width, resize=True)
    found = set()
    for images in sets:
        found |= {images.size(index) for index in torch.linspace(0, len(images) - 1, LOOKED_AT).long().tolist()}
    if len(found) == 1:
        return Frame(channels, *found.pop(), resize=False)
    notes.append(f"The images have different sizes; all are resized and center-cropped to {USUAL_SIZE}x{USUAL_SIZE} pixels.")
    return Frame(channels, USUAL_SIZE, USUAL_SIZE, resize=True)


def _normalisation(
    source: Source, channels: int, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if source.mean is not None and source.std is not None:
        usual = (source.mean,) * channels, (source.std,) * channels
    elif channels == 3:
        usual = IMAGENET_MEAN, IMAGENET_STD
    else:
        usual = (GREY_MEAN,) * channels, (GREY_STD,) * channels
    chosen = tuple(mean or usual[0]), tuple(std or usual[1])
    for name, values in zip(("mean", "std"), chosen, strict=True):
        if len(values) != channels:
            raise DataError(
                f"The {name} has {len(values)} values, but the images have {channels} channels: give one value per channel."
            )
    if not all(math.isfinite(value) for values in chosen for value in values) or min(chosen[1]) <= 0:
        raise DataError(f"The mean {chosen[0]} or the std {chosen[1]} is invalid: use finite numbers, and a std above 0.")
    return chosen


def _check_finished(
    data: Data,
    spec: str,
    size: int | tuple[int, int] | None,
    channels: int | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> None:
    """Raises DataError if the data that a user's function opened contradict the requested settings."""
    asked = {
        "size": (size, size) if isinstance(size, int) else size,
        "channels": channels,
        "mean": mean and tuple(mean),
        "std": std and tuple(std),
    }
    found = {"size": data.shape[1:], "channels": data.shape[0], "mean": data.mean, "std": data.std}
    for name, value in asked.items():
        if value is not None and value != found[name]:
            raise DataError(
                f"{name} {value} was requested, but the data that {spec} opened have {found[name]}: change one of the two."
            )
