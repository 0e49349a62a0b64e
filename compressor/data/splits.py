"""The training, held-out (validation) and test splits.

They never share an image. Splits are stratified by class, if there are classes, and reproducible for a seed: NumPy guarantees
that the random numbers of `RandomState` never change, so that a test split stays the same after an update.

Images that are near copies of each other, such as the frames of a video, must not be in two splits, or else a network would be
tested on what it was trained on. They form a group: of images whose names have the same captured
text, or of consecutive frames.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from compressor.data.batches import Split
from compressor.errors import DataError, first_line, printable

Whole = npt.NDArray[np.int64]
TEST_SHARE = 0.2  # of a data set without a test split
TEST_SEED = 0  # the same for every run: a network must not be tested on images that it was trained on in another run
FRAMES = "frames"  # in place of a pattern: consecutive numbers
NUMBERED = re.compile(r"(.*?)(\d+)(\D*)", re.DOTALL)  # a name with its last number


class Set(Protocol):
    """A data set: of images, or of images and other targets than class numbers."""

    @property
    def labels(self) -> Tensor | None: ...  # class numbers [n]

    @property
    def names(self) -> Sequence[str] | None: ...  # of files

    def __len__(self) -> int: ...


S = TypeVar("S", bound=Set, covariant=True)


@dataclass(frozen=True)
class Part(Generic[S]):
    """A subset of a data set: `positions` [n] in `images`, ascending."""

    images: S
    positions: Tensor

    @property
    def labels(self) -> Tensor:
        """The labels [n] of these images; all 0 without labels."""
        labels = self.images.labels
        return torch.zeros_like(self.positions) if labels is None else labels[self.positions]


@dataclass(frozen=True)
class Source(Generic[S]):
    """The data that a spec names, before the images get a common shape.

    `classes` is empty without labels. `test`, `held_out`: None if they are to be split off `train`. `channels`: number of
    channels of the images. `flip`: whether training images may be mirrored. `mean`, `std`: of the training images, one value
    for all channels; None: those of ImageNet.
    """

    classes: list[str]
    train: Part[S]
    test: Part[S] | None = None
    held_out: Part[S] | None = None
    channels: int = 3
    flip: bool = True
    mean: float | None = None
    std: float | None = None
    notes: list[str] = field(default_factory=list)


def whole(images: S) -> Part[S]:  # type: ignore[misc]  # S is only read
    """All images of a data set."""
    return Part(images, torch.arange(len(images)))


def from_splits(sets: Mapping[Split, S], root: Path, *, channels: int, classes: list[str], notes: list[str]) -> Source[S]:
    """The source whose splits have these sets; a test set alone, from the folder `root`, has no training images."""
    if "train" not in sets:
        notes = [*notes, f"{root} has no train/: there are no images to train on, to recalibrate or to repair."]
        return Source(classes, Part(sets["test"], torch.arange(0)), whole(sets["test"]), channels=channels, notes=notes)
    parts = {split: whole(samples) for split, samples in sets.items()}
    return Source(classes, parts["train"], parts.get("test"), parts.get("held_out"), channels=channels, notes=notes)


@dataclass(frozen=True)
class Groups:
    """Of each of n images its group [n], which stays in one split, and its stratum [n], which gives its share to each split.

    All images of a group are in one stratum.
    """

    group: Whole
    stratum: Whole


def cut(part: Part[S], share: float, seed: int, grouping: str | None = None) -> tuple[Part[S], Part[S]]:
    """Split `part`, stratified by class: the rest, and `share` (0 to 1) of the images. `grouping`: see `group`.

    If `share` is not 0, at least one image is split off; each class keeps at least one.
    """
    if grouping is None or not len(part.positions):
        taken = choose(part.labels.numpy(), share, seed)
    else:
        names, positions = part.images.names, part.positions.tolist()
        if names is None:
            raise DataError(f"The group {grouping!r} needs the names of files, and these data have none: give no group.")
        taken = choose_groups(group([names[position] for position in positions], grouping), share, seed, grouping)
    return Part(part.images, part.positions[~taken]), Part(part.images, part.positions[taken])


def choose(labels: Whole, share: float, seed: int) -> Tensor:
    """Which of the images with these `labels` [n] are taken, stratified; bool [n]."""
    random = np.random.RandomState(seed % 2**32)
    shuffled = random.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    sizes = np.bincount(labels)
    size = sizes[labels[by_class]]  # [n], the size of the class of each image
    rank = np.arange(len(labels)) - (np.cumsum(sizes) - sizes)[labels[by_class]]  # [n], 0 for the first of a class
    # Taking images in the order of (rank + ½) / size takes the same share of every class; ties are broken at random.
    quantile = np.where(rank == size - 1, np.inf, (rank + 0.5) / size)
    count = min(max(1, round(share * len(labels))) if share > 0 else 0, int(np.isfinite(quantile).sum()))
    first = np.lexsort((random.random_sample(len(labels)), quantile))[:count]
    taken = torch.zeros(len(labels), dtype=torch.bool)
    taken[torch.from_numpy(by_class[first])] = True
    return taken


def choose_groups(groups: Groups, share: float, seed: int, grouping: str) -> Tensor:
    """Which of n images are taken, whole groups of them, stratified; bool [n]. At least one group is taken, and one stays.

    Raises DataError if there is but one.
    """
    n, wanted = len(groups.group), share * len(groups.group)
    taken = torch.zeros(n, dtype=torch.bool)
    if share == 0:
        return taken
    count = int(groups.group.max()) + 1
    if count < 2:
        raise DataError(
            f"The group {grouping!r} has the same text for all {n} images, so that they cannot be split: "
            "capture a part of the names that differs, as in '(.*)_'."
        )
    random = np.random.RandomState(seed % 2**32)
    sizes, stratum = np.bincount(groups.group), np.zeros(count, dtype=np.int64)  # [groups]
    stratum[groups.group] = groups.stratum
    shuffled = random.permutation(count)
    order = shuffled[np.argsort(stratum[shuffled], kind="stable")]  # the groups of a stratum in a row
    _, starts, own = np.unique(stratum[order], return_index=True, return_inverse=True)
    total_before = np.concatenate([[0], np.cumsum(sizes[order])])
    before, images = total_before[:-1] - total_before[starts][own], np.add.reduceat(sizes[order], starts)[own]
    quantile = np.empty(count)
    quantile[order] = (before + sizes[order] / 2) / images  # as for single images in `choose`
    chosen: list[int] = []
    total = 0
    for place in np.lexsort((random.random_sample(count), quantile))[:-1]:  # the last one stays
        if chosen and total + sizes[place] / 2 > wanted:
            break
        chosen.append(int(place))
        total += sizes[place]
    return torch.from_numpy(np.isin(groups.group, chosen))


def group(names: Sequence[str], grouping: str) -> Groups:
    """Groups of images by their `names` [n], which are paths below the folder of the data.

    `grouping` is a regular expression that is searched in the names: images with the same captured text, or without brackets
    the same matched text, are a group. Or it is "frames": images in a folder whose names differ in their last number alone are
    a sequence, in the order of the numbers, and are divided into ten groups of consecutive images.
    Raises DataError if it is not valid, or does not match a name.
    """
    if grouping == FRAMES:
        return _frames(names)
    try:
        pattern = re.compile(grouping)
    except re.error as error:
        raise DataError(f"The group {grouping!r} is no regular expression: {first_line(error)}.") from None
    texts = []
    for name in names:
        found = pattern.search(name)
        if found is None:
            raise DataError(
                f"The group {grouping!r} is not found in the name {printable(name)}: it must match the name of every image."
            )
        texts.append(found.groups() or found[0])
    numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    return Groups(np.array([numbers[text] for text in texts]), np.zeros(len(texts), dtype=np.int64))


BLOCKS = 10  # groups of consecutive frames in a sequence
MISSING = 4  # the distance of two frames is at most this multiple of the smallest one, if others between them are missing


def _frames(names: Sequence[str]) -> Groups:
    """Groups of consecutive frames. Images that are not numbered are groups by themselves."""
    keys = [_numbered(name) for name in names]
    order = sorted(range(len(names)), key=lambda i: (keys[i], names[i]))
    group_of, stratum_of, next_group = np.zeros(len(names), dtype=np.int64), np.zeros(len(names), dtype=np.int64), 0
    for number, (_, members) in enumerate(groupby(order, key=lambda i: keys[i][:3])):
        sequence = np.array(list(members))
        blocks = np.arange(len(sequence)) * min(BLOCKS, len(sequence)) // len(sequence)  # [n], ascending
        group_of[sequence] = next_group + blocks
        next_group += int(blocks[-1]) + 1
        stratum_of[sequence] = number + 1 if len(sequence) > 1 else 0  # single images are a stratum together
    return Groups(group_of, stratum_of)


def sequences(names: Sequence[str]) -> bool:
    """Whether most images are frames: numbered at regular distances, some of which may be missing."""
    numbers: dict[tuple[str, str, str], list[int]] = {}
    for name in names:
        *sequence, number = _numbered(name)
        numbers.setdefault((sequence[0], sequence[1], sequence[2]), []).append(number)
    regular = 0
    for found in numbers.values():
        gaps = np.diff(np.array(sorted(found), dtype=object))
        if len(gaps) and (gaps <= MISSING * max(1, min(gaps))).mean() > 0.5:
            regular += len(found)
    return regular > len(names) / 2


def _numbered(name: str) -> tuple[str, str, str, int]:
    """The folder of a name, what is before and after its last number, and the number; without one, 0."""
    folder, _, file = name.rpartition("/")
    found = NUMBERED.fullmatch(file.rpartition(".")[0] or file)
    return (folder, found[1], found[3], int(found[2])) if found else (folder, file, "", 0)
