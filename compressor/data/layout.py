"""Where the files of a data set lie: the folders of its splits, and the images in them.

    DIR/images/1.png         DIR/masks/1.png             beside each other: test images are split off
    DIR/train/images/1.png   DIR/train/masks/1.png       under each split: train, test, val (or only one of the last two)
    DIR/images/train/1.png   DIR/masks/train/1.png       splits under each

Links are followed, but no folder is visited twice. Names that begin with a dot or `__` are ignored.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from compressor.data.batches import Split
from compressor.errors import DataError, did_you_mean, printable

VAL = ("val", "valid", "validation")
SPLITS = ("train", *VAL, "test")
# Those of torchvision, which takes seconds to import.
IMG_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
LABELS = ("masks", "mask", "labels", "annotations", "annot", "gt", "gtfine", "gts", "lq", "segmentationclass")  # folders
LABEL_FILES = (".json", ".xml", ".txt", ".csv")


def check_folder(root: Path) -> None:
    """Raises DataError if `root` is not a folder; the message names what was found instead."""
    if root.is_dir():
        return
    if root.exists():
        raise DataError(f"{root} is a file, not a folder of images: unpack it if it is an archive.")
    parent = next(folder for folder in root.absolute().parents if folder.is_dir())
    missing = root.absolute().relative_to(parent).parts[0]
    near = folders_in(parent)
    hint = did_you_mean(missing, near) or "."
    raise DataError(f"The folder {root} does not exist: {parent} contains {listed(near)} but no {missing}{hint}")


def split_folders(names: Sequence[str]) -> dict[Split, str]:
    """Which of the folders `names` has which split: val is the test split without a test, else the held-out split."""
    val = next((name for name in VAL if name in names), None)
    test = "test" if "test" in names else val
    found: dict[Split, str | None] = {
        "train": "train" if "train" in names else None,
        "test": test,
        "held_out": None if val == test else val,
    }
    return {split: name for split, name in found.items() if name is not None}


P = TypeVar("P", bound=tuple[Path, ...])


@dataclass(frozen=True)
class Pairing:
    """Names of the folders of inputs and of targets, and what users call one of each."""

    first: str
    second: str
    one: str
    other: str
    suffixes: tuple[str, ...]  # what may follow the name of the input in that of its target, or the reverse

    def splits(self, root: Path) -> dict[Split, tuple[Path, Path]]:
        """The two folders of each split; under "train" alone, if there are no splits. Raises DataError."""
        check_folder(root)
        names = folders_in(root)
        if self.first in names or self.second in names:
            for name, missing in ((self.first, self.second), (self.second, self.first)):
                if missing not in names:
                    raise DataError(f"{root} contains {name}/ but no {missing}/: put the {self._plural(missing)} there.")
            inside = split_folders(folders_in(root / self.first))
            if not inside:
                return {"train": (root / self.first, root / self.second)}
            pairs = {split: (root / self.first / name, root / self.second / name) for split, name in inside.items()}
        else:
            found = split_folders(names)
            if not found:
                raise DataError(
                    f"{root} contains {listed(names)}: {self.one}s are expected in {self.first}/, {self.other}s in "
                    f"{self.second}/, beside each other or in train/ and test/."
                )
            pairs = {split: (root / name / self.first, root / name / self.second) for split, name in found.items()}
        return check_splits(pairs, root)

    def _plural(self, folder: str) -> str:
        return f"{self.one if folder == self.first else self.other}s"

    def match(self, first: Path, second: Path, notes: list[str]) -> list[tuple[str, str]]:
        """The files of each pair, by name. Raises DataError for an input without a target; notes targets without an input."""
        inputs, targets = (by_stem(folder, notes) for folder in (first, second))
        pairs, missing = [], []
        for stem, path in inputs.items():
            near = next((name for name in self._names(stem) if name in targets), None)
            if near is None:
                missing.append(path)
            else:
                pairs.append((path, targets[near]))
        if missing:
            rest = f" ({len(missing)} of {len(inputs)} have none)" if len(missing) > 1 else ""
            raise DataError(
                f"{printable(missing[0])} has no {self.other}{rest}: "
                f"add one of the same name to {second}, or remove the {self.one}."
            )
        if unused := sorted({*targets.values()} - {target for _, target in pairs}):
            notes.append(
                f"{len(unused)} {self.other}s without {self.one} were ignored in {second}, for example {printable(unused[0])}."
            )
        return pairs

    def _names(self, stem: str) -> Iterator[str]:
        yield stem
        for suffix in self.suffixes:
            yield stem + suffix
            if stem.endswith(suffix):
                yield stem.removesuffix(suffix)


def check_splits(pairs: dict[Split, P], root: Path) -> dict[Split, P]:
    """`pairs`, if all the folders exist, and test images where there are training images. Raises DataError."""
    if "test" not in pairs:
        raise DataError(
            f"{root} has training images but no test images: add test/ or val/, or give the folder of the training images, "
            "from which test images are split off."
        )
    for folders in pairs.values():
        for folder in folders:
            check_folder(folder)
    return pairs


def single_folders(root: Path) -> dict[Split, Path]:
    """The folder of each split of images alone; `root` itself under "train", if there are no splits. Raises DataError."""
    check_folder(root)
    found = split_folders(folders_in(root))
    if not found:
        return {"train": root}
    return {
        split: folder
        for split, (folder,) in check_splits({split: (root / name,) for split, name in found.items()}, root).items()
    }


def by_stem(folder: Path, notes: list[str]) -> dict[str, str]:
    """The image files at any depth below `folder` by their names without extension. Raises DataError if there are none."""
    images, others = files_below(folder)
    if not images:
        raise DataError(f"{folder} contains no images: add files that end in one of {' '.join(IMG_EXTENSIONS)}.")
    found: dict[str, str] = {}
    for path in images:
        stem = os.path.splitext(os.path.relpath(path, folder))[0]  # noqa: PTH122  # a Path for each of a million files
        if stem in found:
            raise DataError(f"{printable(found[stem])} and {printable(path)} have the same name: remove or rename one of them.")
        found[stem] = path
    note_ignored(others, folder, notes)
    return found


def note_ignored(others: Sequence[str], folder: Path, notes: list[str]) -> None:
    """Add a note on files that are not images, if there are some."""
    if others:
        files = "1 file that is not an image was" if len(others) == 1 else f"{len(others)} files that are not images were"
        notes.append(f"{files} ignored in {folder}, for example {printable(others[0])}.")


def looks_labelled(folder: Path) -> str | None:
    """What in `folder` looks like labels of the images beside it, or None."""
    for name in folders_in(folder):
        if name.lower() in LABELS or name.lower().endswith("annot"):
            return f"{printable(name)}/"
        if name not in SPLITS and any(path.lower().endswith(IMG_EXTENSIONS) for path in _files_in(folder / name)):
            return f"{printable(name)}/ with images"
    names = _files_in(folder)
    stems = {Path(name).stem for name in names if name.lower().endswith(IMG_EXTENSIONS)}
    for name in names:
        path = Path(name)
        if path.suffix.lower() in LABEL_FILES and (path.stem in stems or any(word in path.stem.lower() for word in WORDS)):
            return printable(name)
    return None


WORDS = ("label", "annotation", "instances", "classes")  # in the names of files that hold labels


def images_in(folder: Path) -> tuple[list[str], list[str]]:
    """Image files and other files in `folder`, not below it."""
    images: list[str] = []
    others: list[str] = []
    for name in _files_in(folder):
        (images if name.lower().endswith(IMG_EXTENSIONS) else others).append(str(folder / name))
    return images, others


def dense_spec(root: Path) -> str | None:
    """The kind of data, other than classes, that folders in `root` with these names are usual for."""
    names = {*folders_in(root)}
    if "train" in names:
        names |= {*folders_in(root / "train")}
    if {"images", "masks"} <= names or any(f"{name}annot" in names for name in SPLITS):
        return "segmentation"
    return "pairs" if {"lq", "gt"} <= names else None


def _files_in(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if not entry.is_dir() and not is_hidden(entry.name))


def files_below(folder: Path) -> tuple[list[str], list[str]]:
    """Image files and other files at any depth below `folder`, in the order of ImageFolder."""
    images, others = [], []
    for place, names in sorted(_places(folder)):
        for name in sorted(names):
            if name.lower().endswith(IMG_EXTENSIONS) and not is_hidden(name):
                images.append(os.path.join(place, name))  # noqa: PTH118  # a Path for each of a million files takes seconds
            elif not is_hidden(name):
                others.append(os.path.join(place, name))  # noqa: PTH118  # as above
    return images, others


def _places(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Every folder below `folder`, and the names in it. Links are followed, but no folder is visited twice (cyclic links)."""
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        folders.sort()  # so that the result does not depend on the order of the file system
        if (real := os.path.realpath(place)) in seen:
            folders.clear()
            continue
        seen.add(real)
        yield place, names


def folders_in(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() and not is_hidden(entry.name))
    except OSError as error:
        raise DataError(f"{folder} cannot be listed ({error.strerror}): check its permissions.") from error


def is_hidden(name: str) -> bool:
    return name.startswith((".", "__"))


def listed(names: Sequence[str]) -> str:
    if not names:
        return "no folder"
    return ", ".join(f"{printable(name)}/" for name in names[:6]) + (f" and {len(names) - 6} others" if len(names) > 6 else "")
