"""Open the data that a spec names, with the image shape and the normalisation."""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils._pytree import tree_leaves

from compressor.data.batches import Data, Kind, Split
from compressor.data.datasets import read_cifar10, read_cifar100, read_digits, read_fashionmnist
from compressor.data.folders import read_folder, read_images
from compressor.data.framed import FramedImages
from compressor.data.images import Frame, Images
from compressor.data.layout import dense_spec
from compressor.data.loaders import LoadedData, Streams, first_of
from compressor.data.own import AsGiven, OwnSamples, Prepared, is_bytes
from compressor.data.paired import PairedData, told
from compressor.data.pixels import Scale, check_color
from compressor.data.preparation import ForImages, ForMasks, Preparation, padded
from compressor.data.readers import InMemory, Reader, Streamed
from compressor.data.restoration import OPTIONS as RESTORATION
from compressor.data.restoration import read_restoration
from compressor.data.samples import Kept, Samples, Size
from compressor.data.segmentation import OPTIONS as SEGMENTATION
from compressor.data.segmentation import read_segmentation
from compressor.data.splits import FRAMES, TEST_SEED, TEST_SHARE, Part, S, Source, cut, sequences, whole
from compressor.data.user_function import Own, call_function
from compressor.errors import DataError, did_you_mean

FOLDERS: dict[str, Callable[[Path], Source[Images]]] = {
    "imagefolder": read_folder,
    "images": read_images,
    "cifar10": read_cifar10,
    "cifar100": read_cifar100,
    "fashionmnist": read_fashionmnist,
}
DENSE: dict[str, tuple[str, ...]] = {"segmentation": SEGMENTATION, **RESTORATION}  # and their options
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # for RGB images
GREY_MEAN, GREY_STD = 0.449, 0.226  # mean over the three channels of ImageNet
USUAL_SIZE = 224  # pixels; for images of different sizes
MOST_CROPPED = 512  # pixels; the largest side of training images with masks, unless it is given
RESTORED_CROP = 128  # pixels; the side of training images to be restored, unless it is given
REDUCED_CROP = 192  # pixels; the same of targets that are larger than their inputs
FITS = ("cover", "stretch", "letterbox")  # how images are brought to a size
LOOKED_AT = 32  # images of each data set whose sizes are compared


@dataclass(frozen=True)
class Wishes:
    """The arguments of `open_data`."""

    spec: str
    size: int | tuple[int, int] | None
    fit: str | None
    channels: int | None
    mean: Sequence[float] | None
    std: Sequence[float] | None
    color: str | None
    max_value: float
    crop: int | None
    pad_to: int
    tile: int | tuple[int, int] | None
    group: str | None
    held_out: float
    seed: int
    workers: int
    memory_limit: int

    def check(self) -> None:
        """Raises DataError."""
        if not 0 <= self.held_out <= 0.5:
            raise DataError(f"The held-out share of the training images is {self.held_out}, but must be from 0 to 0.5.")
        if self.size is not None and min(self.height_and_width or (1,)) < 1:
            height, width = self.height_and_width or (1, 1)
            raise DataError(f"The image size is {width}x{height} pixels, but must be 1 or more.")
        if self.fit not in (None, *FITS):
            hint = did_you_mean(str(self.fit), FITS) or "."
            raise DataError(f"The fit {self.fit!r} is unknown{hint}\nUse one of {', '.join(FITS)}.")
        if self.fit is not None and self.size is None:
            raise DataError(f"The fit {self.fit} is that of images to a size, and there is none: give one, as in 480x640.")
        if self.channels not in (None, 1, 3):
            raise DataError(f"{self.channels} channels were requested: images have 1 or 3, or omit them.")
        if self.max_value not in (1, 255):
            raise DataError(f"The value of white is {self.max_value:g}, but must be 1 or 255.")
        for name, value in (("crop", self.crop), ("multiple to pad to", self.pad_to)):
            if value is not None and value < 1:
                raise DataError(f"The {name} is {value} pixels, but must be 1 or more.")
        for value in self.tile_size or ():
            if value < 1 or value % self.pad_to:
                raise DataError(
                    f"A side of a tile is {value} pixels, but must be "
                    + ("1 or more." if self.pad_to == 1 else f"a multiple of {self.pad_to}, as of the images that are padded.")
                )

    @property
    def height_and_width(self) -> Size | None:
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def tile_size(self) -> Size | None:
        return (self.tile, self.tile) if isinstance(self.tile, int) else self.tile

    @property
    def wanted_channels(self) -> int | None:
        """1 or 3, if the color or the network says so."""
        by_color = {"grey": 1, "rgb": 3, "bgr": 3}.get(self.color or "")
        return self.channels or by_color


def open_data(
    spec: str,
    *,
    size: int | tuple[int, int] | None = None,
    fit: str | None = None,
    channels: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    color: str | None = None,
    max_value: float = 1.0,
    crop: int | None = None,
    pad_to: int = 1,
    tile: int | tuple[int, int] | None = None,
    group: str | None = None,
    held_out: float = 0.1,
    seed: int = 0,
    workers: int = 0,
    memory_limit: int = 2 * 2**30,
) -> Data:
    """The data that `spec` names: `digits`, `imagefolder:DIR` or DIR, `images:DIR`, `cifar10:DIR`, `cifar100:DIR`,
    `fashionmnist:DIR`, `segmentation:DIR`, `pairs:DIR`, `superres:DIR?scale=4`, `denoise:DIR?sigma=25`, or `file.py:function`
    (see user_function.py). Only a few images are read before the first batch, and the masks of which the largest class number
    is to be found.

    `size` in pixels (one number, or height and width) and `channels` (1 or 3) default to those of the images; images of
    different sizes become 224x224, and image files have three channels. `mean` and `std`, one value per channel, default to
    those of the data set or ImageNet. `held_out` is the share (0 to 0.5) of the training images that is split off, by `seed`,
    if the data have no held-out split. Images that take more than `memory_limit` bytes in all are streamed by `workers`
    processes (0: by this one).

    `color` is the order of the channels given to the network: rgb (the default), bgr or grey; `mean` and `std` are in this
    order. `max_value` is the value of a white pixel, 1 or 255, before `mean` and `std` are applied; if it is 255, they default
    to 0 and 1. `group` keeps images in one split: see `splits.group`.

    For images with masks, `size` is what images are resized to, and otherwise the size of reference for costs is that of the
    images; `crop` is the side of training images, at most 512 by default. `fit` is how images are resized: "stretch" (the
    default for masks), "cover" (for others), or "letterbox": with their aspect ratio, and between bars of the mean color, where
    masks have no class. With `pad_to`, whole images are padded at the right and bottom to a multiple. Images to be restored are
    never resized, and not normalised unless `mean` and `std` are given; `crop` is that of inputs; `max_value` also holds for
    targets. Of all these and of images without labels, held-out and test images that are larger than `tile` are given to the
    network in tiles of that size, and costs are those of one.

    Raises DataError if the data do not exist, are invalid, or cannot be read.
    """
    asked = Wishes(
        spec, size, fit, channels, mean, std, color, max_value, crop, pad_to, tile, group, held_out, seed, workers, memory_limit
    )
    asked.check()
    kind, folder, options = _dense(spec)
    if kind == "segmentation":
        return _with_masks(folder, options, asked)
    if kind is not None:
        return _with_targets(kind, folder, options, asked)
    source = _find(spec)
    if isinstance(source, Source):
        return _framed(source, asked)
    if isinstance(source, Own):
        return _own(source, asked)
    if isinstance(source, Streams):
        return _streams(source, asked)
    _check_finished(source, asked)
    return cast(Data, replace(cast(Any, source), spec=spec)) if is_dataclass(source) else source


def _framed(source: Source[Images], asked: Wishes) -> FramedImages:
    """Images of one shape, with class numbers or without targets."""
    if asked.crop is not None or asked.pad_to != 1:
        raise DataError(
            f"{asked.spec} has images of one shape, which are neither cropped nor padded: omit the crop and the multiple "
            "to pad to, or give a size."
        )
    notes = list(source.notes)
    parts = _parts(source, asked, notes)
    sets = {id(part.images): part.images for part in parts.values()}
    if asked.tile is not None and source.classes:
        raise DataError(f"{asked.spec} has class numbers, and the class of an image is not that of its tiles: omit the tile.")
    frame = _frame(list(sets.values()), asked.height_and_width, _channels(source, asked.wanted_channels), notes)
    if asked.fit == "stretch":
        raise DataError(f"The fit stretch is for images with masks, but {asked.spec} has none: use cover or letterbox.")
    scale = _scale(asked, frame.channels, notes, source.mean, source.std)
    if asked.fit == "letterbox":
        frame = replace(frame, bars=scale.mean_color)
    needed = sum(len(images) for images in sets.values()) * frame.channels * frame.height * frame.width
    fits = needed <= asked.memory_limit
    readers: dict[int, Reader] = {
        key: InMemory(images, frame, source.flip) if fits else Streamed(images, frame, source.flip, asked.workers)
        for key, images in sets.items()
    }
    if not fits:
        notes.append(
            f"The images are read again for each batch: in memory they would take {needed / 2**30:.2g} GiB, more than the "
            f"limit of {asked.memory_limit / 2**30:.2g} GiB."
        )
        if not frame.small:
            notes.append(
                "Training images are augmented with random resized crops; in memory they would only be shifted and mirrored."
            )
    return FramedImages(
        spec=asked.spec,
        classes=source.classes,
        shape=(frame.channels, frame.height, frame.width),
        scale=scale,
        notes=notes,
        readers={split: readers[id(part.images)] for split, part in parts.items()},
        positions={split: part.positions for split, part in parts.items()},
        tile=_tile(asked, (frame.height, frame.width), notes),
        fit="cover" if frame.bars is None else "letterbox",
    )


def _with_masks(root: Path, options: Mapping[str, str], asked: Wishes) -> PairedData:
    """Images with masks."""
    channels = asked.wanted_channels or 3
    source = read_segmentation(root, options, channels, asked.memory_limit)
    notes = list(source.notes)
    parts = _parts(source, asked, notes)
    samples = _kept(parts, channels + 1, asked, notes)
    size = asked.height_and_width or _reference(samples, asked, notes)
    scale = _scale(asked, channels, notes)
    return PairedData(
        spec=asked.spec,
        kind="masks",
        classes=source.classes,
        shape=(channels, *padded(size, asked.pad_to)),
        scale=scale,
        notes=notes,
        samples=samples,
        positions={split: part.positions for split, part in parts.items()},
        preparation=_for_masks(scale, size, asked),
        pad_to=asked.pad_to,
        tile=_tile(asked, padded(size, asked.pad_to), notes),
        workers=asked.workers,
    )


def _with_targets(kind: str, root: Path, options: Mapping[str, str], asked: Wishes) -> PairedData:
    """Images to be restored, with target images."""
    _check_whole(asked)
    channels = asked.wanted_channels or 3
    source, ratio, sigma = read_restoration(kind, root, options, channels)
    notes = list(source.notes)
    parts = _parts(source, asked, notes)
    samples = _kept(parts, channels, asked, notes)
    size = asked.height_and_width or _reference(samples, asked, notes)
    scale = _scale(asked, channels, notes, 0.0, 1.0)
    return PairedData(
        spec=asked.spec,
        kind="images",
        classes=[],
        shape=(channels, *padded(size, asked.pad_to)),
        scale=scale,
        notes=notes,
        samples=samples,
        positions={split: part.positions for split, part in parts.items()},
        preparation=_for_images(scale, samples, asked, ratio, sigma),
        pad_to=asked.pad_to,
        tile=_tile(asked, padded(size, asked.pad_to), notes),
        workers=asked.workers,
    )


def _for_masks(scale: Scale, size: Size, asked: Wishes) -> ForMasks:
    """Raises DataError for images that shall be cropped in evaluation: every pixel of a mask counts."""
    if asked.fit == "cover":
        raise DataError(f"The fit cover would crop the masks of {asked.spec}, of which every pixel counts: use another one.")
    height, width = (asked.crop or side for side in map(min, size, asked.tile_size or (MOST_CROPPED, MOST_CROPPED)))
    return ForMasks(scale, (height, width), asked.pad_to, asked.height_and_width, asked.fit == "letterbox")


def _for_images(scale: Scale, samples: Mapping[Split, Samples], asked: Wishes, ratio: int, sigma: float = 0.0) -> ForImages:
    usual = RESTORED_CROP if ratio == 1 else max(16, REDUCED_CROP // ratio)
    crop = asked.crop or min(usual, *_smallest(samples), *(asked.tile_size or ()))
    return ForImages(scale, (crop, crop), asked.pad_to, ratio, sigma)


def _own(source: Own, asked: Wishes) -> PairedData:
    """A user's data sets: images of bytes with masks or images as those of files, and all else as it is."""
    notes: list[str] = []
    whole_sets = {split: whole(samples) for split, samples in source.sets.items()}
    parts = _parts(Source(source.classes, whole_sets["train"], whole_sets["test"], whole_sets.get("held_out")), asked, notes)
    train = source.sets["train"]
    positions = {split: part.positions for split, part in parts.items()}
    sets: dict[Split, OwnSamples] = {split: part.images for split, part in parts.items()}
    if source.kind in ("masks", "images") and all(samples.like_files for samples in sets.values()):
        channels = asked.wanted_channels or train.first.input.shape[0]
        wrapped = {id(samples): Prepared(samples, channels, len(source.classes)) for samples in sets.values()}
        prepared: dict[Split, Samples] = {split: wrapped[id(samples)] for split, samples in sets.items()}
        scale = _scale(asked, channels, notes, *((0.0, 1.0) if source.kind == "images" else ()))
        size = asked.height_and_width or _reference(prepared, asked, notes)
        if source.kind == "masks":
            preparation: Preparation = _for_masks(scale, size, asked)
        else:
            _check_whole(asked)
            (found, *_), target = train.sizes(0), train.sizes(0)[-1]
            preparation = _for_images(scale, prepared, asked, max(1, target[0] // found[0]))
        shape: tuple[int, ...] = (channels, *padded(size, asked.pad_to))
        return PairedData(
            asked.spec,
            source.kind,
            source.classes,
            shape,
            scale,
            notes,
            prepared,
            positions,
            preparation,
            asked.pad_to,
            _tile(asked, padded(size, asked.pad_to), notes),
            asked.workers,
        )
    scale, shape = _as_given(train.first.input, asked, source.kind, notes)
    if any(samples.is_random for samples in sets.values()):
        exactly = "" if all(samples.repeats for samples in sets.values()) else " A run that is resumed is not repeated exactly."
        notes.append(f"The data sets of {asked.spec} have random transforms, which are used in place of others.{exactly}")
    title = f"the data of {asked.spec}"
    given = AsGiven(scale, source.kind, len(source.classes), title)
    samples_of: dict[Split, Samples] = {**sets}
    return PairedData(
        asked.spec, source.kind, source.classes, shape, scale, notes, samples_of, positions, given, workers=asked.workers
    )


def _streams(source: Streams, asked: Wishes) -> LoadedData:
    """A user's DataLoaders and streams."""
    parts, titles = source.parts, {split: f"The {split} data of {source.title}" for split in source.parts}
    notes = [
        f"The DataLoaders of {asked.spec} are used as they are, with their own order and transforms: a run that is resumed is "
        "not repeated exactly."
    ]
    if "held_out" not in parts:
        notes.append("There are no held-out images, on which training could be watched: return a third data set or loader.")
    if asked.group is not None:
        raise DataError(f"The group {asked.group!r} cannot be used with DataLoaders, which are not split: omit it.")
    found = {split: first_of(given, titles[split]) for split, given in parts.items()}
    first, kind = found["train"]
    for split, (_, other) in found.items():
        if other != kind:
            raise DataError(
                f"{titles[split]} have {told(other)}, but the training data {told(kind)}: return the same kind in all."
            )
    classes = source.classes or []
    if kind in ("classes", "masks") and not classes:
        train = parts["train"]
        classes = [str(name) for name in getattr(getattr(train, "dataset", train), "classes", ())]
        if not classes:
            raise DataError(
                f"{titles['train']} do not tell their classes: return {{'train': ..., 'test': ..., 'classes': [...]}} with the "
                "name of each, or give the data set an attribute `classes`."
            )
    scale, shape = _as_given(first, asked, kind, notes)
    preparations = {split: AsGiven(scale, kind, len(classes), titles[split]) for split in parts}
    return LoadedData(asked.spec, classes, shape, scale, notes, parts, preparations, asked.workers)


def _as_given(first: Any, asked: Wishes, kind: Kind, notes: list[str]) -> tuple[Scale, tuple[int, ...]]:
    """The scale of inputs like the `first` one, which are not resized, and their shape."""
    leaves = [leaf for leaf in tree_leaves(first) if isinstance(leaf, torch.Tensor)]
    shape = tuple(leaves[0].shape) if leaves else ()
    given = asked.crop is not None or asked.pad_to != 1 or asked.tile is not None or asked.fit is not None
    if given or asked.height_and_width not in (None, shape[1:]):
        raise DataError(
            f"The samples of {asked.spec} are used as they are: omit the size, fit, crop, multiple to pad to and tile."
        )
    if any(map(is_bytes, leaves)):
        return _scale(asked, asked.wanted_channels or shape[0], notes, *((0.0, 1.0) if kind == "images" else ())), shape
    if asked.mean is not None or asked.std is not None or asked.max_value != 1 or asked.color is not None:
        raise DataError(
            f"The samples of {asked.spec} are floats, which the network is given as they are: omit the mean, std, color and "
            "value of white, or return bytes."
        )
    channels = shape[0] if len(shape) == 3 else 1
    return Scale((0.0,) * channels, (1.0,) * channels, "grey" if channels == 1 else "rgb"), shape


def _check_whole(asked: Wishes) -> None:
    """Raises DataError if images to be restored shall be resized."""
    if asked.fit is not None:
        raise DataError(f"The images of {asked.spec} are to be restored, and never resized: omit the fit.")


def _tile(asked: Wishes, size: Size, notes: list[str]) -> Size | None:
    """The size of tiles, with a note on them; `size` is that of an image for costs."""
    if asked.tile_size is None:
        return None
    (height, width), (rows, columns) = asked.tile_size, map(min, size, asked.tile_size)
    notes.append(
        f"Held-out and test images larger than {width}x{height} pixels are given to the network in tiles of that size, which "
        f"overlap by a quarter; costs are those of {columns}x{rows} pixels."
    )
    return height, width


def _smallest(samples: Mapping[Split, Samples]) -> Size:
    """The smallest height and width of the training images that are looked at."""
    heights, widths = zip(*(samples["train"].sizes(index)[0] for index in _spread(len(samples["train"]))), strict=True)
    return min(heights), min(widths)


def _kept(parts: Mapping[Split, Part[Samples]], planes: int, asked: Wishes, notes: list[str]) -> dict[Split, Samples]:
    """The samples of each split: kept in memory once they have been read, if all fit. `planes` are bytes of a pixel."""
    sets = {id(part.images): part.images for part in parts.values()}
    needed = 0.0
    for samples in sets.values():
        looked = [samples.sizes(index) for index in _spread(len(samples))]
        needed += sum(height * width * planes for sizes in looked for height, width in sizes) / len(looked) * len(samples)
    if needed <= asked.memory_limit:
        kept: dict[int, Samples] = {key: Kept(samples) for key, samples in sets.items()}
        return {split: kept[id(part.images)] for split, part in parts.items()}
    notes.append(
        f"The images are read again for each batch: in memory they would take {needed / 2**30:.2g} GiB, more than the "
        f"limit of {asked.memory_limit / 2**30:.2g} GiB."
    )
    return {split: part.images for split, part in parts.items()}


def _spread(n: int) -> list[int]:
    """Up to LOOKED_AT numbers below `n`, evenly spaced."""
    return sorted({*torch.linspace(0, n - 1, LOOKED_AT).long().tolist()})


def _reference(samples: Mapping[Split, Samples], asked: Wishes, notes: list[str]) -> Size:
    """The size of one image for costs and export: the most frequent one; of several, one of medium area."""
    sets = {id(each): each for each in samples.values()}.values()
    found = Counter(each.sizes(index)[0] for each in sets for index in _spread(len(each)))
    areas = sorted(math.prod(size) for size in found.elements())
    size = max(found, key=lambda size: (found[size], -abs(math.prod(size) - areas[len(areas) // 2])))
    if len(found) > 1 and asked.tile is None:
        notes.append(f"The images have different sizes; costs are those of {size[1]}x{size[0]} pixels. A size can be given.")
    return size


def is_dense(spec: str) -> bool:
    """Whether the data are images with masks, or to be restored, as far as the spec or the folder's layout tells."""
    return _dense(spec)[0] is not None


def _dense(spec: str) -> tuple[str | None, Path, dict[str, str]]:
    """The kind of data that are not images of one shape, its folder and its options, or None."""
    kind, _, rest = spec.partition(":")
    if kind not in DENSE:
        folder = Path(spec).expanduser()
        found = dense_spec(folder) if folder.is_dir() else None
        return found, folder, {}
    written = re.fullmatch(r"(?P<folder>[^?]+)(\?(?P<options>.*))?", rest, re.DOTALL)
    if written is None:
        raise DataError(f"{kind} needs a folder: write {kind}:DIR.")
    options: dict[str, str] = {}
    for part in (written["options"] or "").split("&") if written["options"] is not None else []:
        name, _, value = part.partition("=")
        if name not in DENSE[kind] or not value:
            hint = did_you_mean(name, DENSE[kind]) or "."
            raise DataError(
                f"{spec!r} has the option {part!r:.60}{hint}\nOptions of {kind}: "
                f"{', '.join(f'?{known}=VALUE' for known in DENSE[kind]) or 'none'}."
            )
        options[name] = value
    return kind, Path(written["folder"]).expanduser(), options


def _find(spec: str) -> Source[Images] | Own | Streams | Data:
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
    known = ["digits", *FOLDERS, *DENSE]
    here = [path.name for path in Path().iterdir() if path.is_dir()]
    kinds = ", ".join(f"{name}:DIR" for name in (*FOLDERS, *DENSE))
    hint = did_you_mean(kind, known + here) or "."
    raise DataError(f"{spec!r} is not a data set{hint}\nSupported: digits, {kinds}, a folder, and file.py:function.")


def _parts(source: Source[S], asked: Wishes, notes: list[str]) -> dict[Split, Part[S]]:
    """The three splits: those that are missing are split off the training images. Adds notes on frames."""
    train, test, held_out, group = source.train, source.test, source.held_out, asked.group
    names = train.images.names
    if test is not None and held_out is not None:
        if group is not None:
            notes.append(f"The group {group!r} has no effect: nothing is split off the training images.")
        return {"train": train, "held_out": held_out, "test": test}
    if group is None and train.images.labels is None and names is not None and sequences(names):
        group = FRAMES
        notes.append(
            "Images with consecutive numbers are taken for frames of a video, and split in blocks of consecutive ones: give a "
            "group to split them otherwise."
        )
    if test is None:
        train, test = cut(train, TEST_SHARE, TEST_SEED, group)
    if held_out is None:
        train, held_out = cut(train, asked.held_out, asked.seed, group)
    return {"train": train, "held_out": held_out, "test": test}


def _channels(source: Source[Images], channels: int | None) -> int:
    if channels is None or channels in (1, 3, source.channels):
        return channels or source.channels
    raise DataError(f"{channels} channels were requested, but the images have {source.channels}: use 1, 3 or the default.")


def _frame(sets: list[Images], size: Size | None, channels: int, notes: list[str]) -> Frame:
    if size is not None:
        return Frame(channels, *size, resize=True)
    found = {images.size(index) for images in sets for index in _spread(len(images))}
    if len(found) == 1:
        return Frame(channels, *found.pop(), resize=False)
    notes.append(f"The images have different sizes; all are resized and center-cropped to {USUAL_SIZE}x{USUAL_SIZE} pixels.")
    return Frame(channels, USUAL_SIZE, USUAL_SIZE, resize=True)


def _scale(
    asked: Wishes, channels: int, notes: list[str], usual_mean: float | None = None, usual_std: float | None = None
) -> Scale:
    """How pixels are scaled. `usual_mean`, `usual_std` are those of the data, for all channels; None: those of ImageNet."""
    color = check_color(asked.color, channels)
    usual: tuple[Sequence[float], Sequence[float]]
    if asked.max_value != 1:
        usual = (0.0,) * channels, (1.0,) * channels
        if asked.mean is None and asked.std is None and usual_mean != 0:
            notes.append("Pixels are given to the network from 0 to 255, without normalisation.")
    elif usual_mean is not None and usual_std is not None:
        usual = (usual_mean,) * channels, (usual_std,) * channels
    elif channels == 3:
        usual = IMAGENET_MEAN, IMAGENET_STD
        if color == "bgr":
            usual = IMAGENET_MEAN[::-1], IMAGENET_STD[::-1]
    else:
        usual = (GREY_MEAN,) * channels, (GREY_STD,) * channels
    chosen = tuple(asked.mean or usual[0]), tuple(asked.std or usual[1])
    for name, values in zip(("mean", "std"), chosen, strict=True):
        if len(values) != channels:
            raise DataError(
                f"The {name} has {len(values)} values, but the images have {channels} channels: give one value per channel."
            )
    if not all(math.isfinite(value) for values in chosen for value in values) or min(chosen[1]) <= 0:
        raise DataError(f"The mean {chosen[0]} or the std {chosen[1]} is invalid: use finite numbers, and a std above 0.")
    return Scale(*chosen, color, asked.max_value)


def _check_finished(data: Data, asked: Wishes) -> None:
    """Raises DataError if the data that a user's function opened contradict the requested settings."""
    wanted = {
        "size": asked.height_and_width,
        "fit": asked.fit,
        "channels": asked.channels,
        "mean": asked.mean and tuple(asked.mean),
        "std": asked.std and tuple(asked.std),
        "color": asked.color,
        "max_value": None if asked.max_value == 1 else asked.max_value,
        "pad_to": None if asked.pad_to == 1 else asked.pad_to,
        "tile": asked.tile_size,
    }
    found = {
        "size": data.shape[1:],
        "fit": data.fit,
        "channels": data.shape[0],
        "mean": data.mean,
        "std": data.std,
        "color": data.color,
        "max_value": data.max_value,
        "pad_to": data.pad_to,
        "tile": data.tile,
    }
    for name, value in wanted.items():
        if value is not None and value != found[name]:
            raise DataError(
                f"{name} {value} was requested, but the data that {asked.spec} opened have {found[name]}: "
                "change one of the two."
            )
