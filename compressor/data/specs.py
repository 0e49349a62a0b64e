"""What a data spec names, and the shape and the scale in which its images are used."""

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
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what photographs are normalised with
GREY_MEAN, GREY_STD = 0.449, 0.226  # the mean over ImageNet's three channels
USUAL_SIZE = 224  # of images that have none in common
LOOKED_AT = 32  # images of each set, to see whether they have a size in common


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
    `file.py:function` (see user_function.py). Nothing but a few images is read before the first batch.

    `size` in pixels (one number, or height and width) and `channels` (1 or 3) are by default those that the images have; images
    of several sizes become 224x224, and image files get three channels. `mean` and `std`, one number a channel, are those of
    the set or ImageNet's. `held_out` is the share (0 to 0.5) of the training images that is cut off, by `seed`, if the data
    come without a held-out part. Images that take more than `memory_limit` bytes in all are streamed by `workers` processes
    (0: by this one).

    Raises DataError when the data are not there, not as they should be, or cannot be read.
    """
    if not 0 <= held_out <= 0.5:
        raise DataError(f"A share of {held_out} of the training images was to be held out: ask for one from 0 to 0.5.")
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
            f"The images are read again for each batch: in memory they would take {needed / 2**30:.2g} GiB, and no more than "
            f"{memory_limit / 2**30:.2g} GiB may be used for them."
        )
        if not frame.small:
            notes.append("Training images are cut out in random places and sizes; in memory they would be shifted only.")
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
        raise DataError(f"{kind} is read from a folder: say which, as {kind}:DIR.")
    known = ["digits", *FOLDERS]
    here = [path.name for path in Path().iterdir() if path.is_dir()]
    kinds = ", ".join(f"{name}:DIR" for name in FOLDERS)
    hint = did_you_mean(kind, known + here) or "."
    raise DataError(f"{spec!r} names no data{hint}\nKnown are digits, {kinds}, a folder, and file.py:function.")


def _parts(source: Source, held_out: float, seed: int) -> dict[Split, Part]:
    if source.held_out is not None:
        return {"train": source.train, "held_out": source.held_out, "test": source.test}
    train, rest = cut(source.train, held_out, seed)
    return {"train": train, "held_out": rest, "test": source.test}


def _channels(source: Source, channels: int | None) -> int:
    if channels is None or channels in (1, 3, source.channels):
        return channels or source.channels
    raise DataError(
        f"{channels} channels were asked for, but the images have {source.channels}: ask for 1, 3 or leave it open."
    )


def _frame(sets: list[Images], size: int | tuple[int, int] | None, channels: int, notes: list[str]) -> Frame:
    if size is not None:
        height, width = (size, size) if isinstance(size, int) else size
        if min(height, width) < 1:
            raise DataError(f"Images were to be {width}x{height} pixels: ask for a size of 1 or more.")
        return Frame(channels, height, width, resize=True)
    found = set()
    for images in sets:
        found |= {images.size(index) for index in torch.linspace(0, len(images) - 1, LOOKED_AT).long().tolist()}
    if len(found) == 1:
        return Frame(channels, *found.pop(), resize=False)
    notes.append(f"The images have several sizes; all are shown to the network as {USUAL_SIZE}x{USUAL_SIZE} pixels.")
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
                f"The {name} was given as {len(values)} numbers, but images have {channels} channels: give one for each."
            )
    if not all(math.isfinite(value) for values in chosen for value in values) or min(chosen[1]) <= 0:
        raise DataError(
            f"Images were to be normalised by mean {chosen[0]} and std {chosen[1]}: give numbers, and a std above 0."
        )
    return chosen


def _check_finished(
    data: Data,
    spec: str,
    size: int | tuple[int, int] | None,
    channels: int | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> None:
    """Raises DataError when a user's function made up its mind about something that was asked otherwise."""
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
                f"{name} {value} was asked for, but {spec} returned finished data with {found[name]}: change one of the two."
            )
