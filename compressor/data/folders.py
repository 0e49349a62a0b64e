"""Folders of image files, one folder per class, as in torchvision's ImageFolder.

    DIR/train/cat/1.jpg    DIR/test/cat/7.jpg    (or val/ instead of test/; with both, val/ is the held-out split)
    DIR/cat/1.jpg                                (no train/ and test/: test images are split off)

Files that are not images are ignored, with a note. Names that begin with a dot or `__` are ignored silently.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from compressor.data.images import ImageFiles
from compressor.data.splits import TEST_SEED, TEST_SHARE, Source, cut, whole
from compressor.errors import DataError, did_you_mean, printable

VAL = ("val", "valid", "validation")


# Those of torchvision, which takes seconds to import.
IMG_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


def read_folder(root: Path) -> Source:
    """The images in `root`. Raises DataError if its folders are not as above."""
    check_folder(root)
    names = _folders(root)
    val = next((root / name for name in VAL if name in names), None)
    test = root / "test" if "test" in names else val
    if "train" not in names and test is None:
        return _uncut(root, names)
    if "train" not in names:
        raise DataError(f"{root} contains {_listed(names)} but no train/: put the training images into {root / 'train'}.")
    train = root / "train"
    if test is None:
        raise DataError(
            f"{root} contains train/ but neither test/ nor val/: add one, or use {train}, from which test images are split off."
        )
    classes = _classes(train)
    notes: list[str] = []
    held_out = None
    if val is not None and val != test:
        held_out = whole(_read_classes(val, classes, notes))
        notes.append(f"{val} is used as the held-out (validation) split.")
    return Source(
        classes,
        train=whole(_read_classes(train, classes, notes)),
        test=whole(_read_classes(test, classes, notes)),
        held_out=held_out,
        notes=notes,
    )


def check_folder(root: Path) -> None:
    """Raises DataError if `root` is not a folder; the message names what was found instead."""
    if root.is_dir():
        return
    if root.exists():
        raise DataError(f"{root} is a file, not a folder of images: unpack it if it is an archive.")
    parent = next(folder for folder in root.absolute().parents if folder.is_dir())
    missing = root.absolute().relative_to(parent).parts[0]
    near = _folders(parent)
    hint = did_you_mean(missing, near) or "."
    raise DataError(f"The folder {root} does not exist: {parent} contains {_listed(near)} but no {missing}{hint}")


def _uncut(root: Path, names: list[str]) -> Source:
    inner = next((root / name for name in names if (root / name / "train").is_dir()), None)
    if inner:
        raise DataError(f"{root} contains no train/, but {inner} does: use {inner}.")
    classes = _classes(root)
    notes: list[str] = []
    train, test = cut(whole(_read_classes(root, classes, notes)), TEST_SHARE, TEST_SEED)
    notes.append(f"{root} has no train/ and test/: {TEST_SHARE:.0%} of its images are test images, the same in every run.")
    return Source(classes, train, test, notes=notes)


def _classes(folder: Path) -> list[str]:
    classes = _folders(folder)
    if len(classes) < 2:
        raise DataError(
            f"{folder} must contain one folder of images per class, for two or more classes; it contains {_listed(classes)}."
        )
    return classes


def _read_classes(folder: Path, classes: list[str], notes: list[str]) -> ImageFiles:
    """The images of one split; adds a note on files that are ignored."""
    found = _folders(folder)
    if found != classes:
        missing, more = sorted(set(classes) - set(found)), sorted(set(found) - set(classes))
        raise DataError(
            f"{folder} must have the same class folders as train/; missing: {_listed(missing)}, unexpected: {_listed(more)}. "
            "Rename or move the folders."
        )
    paths: list[str] = []
    labels: list[int] = []
    ignored: list[str] = []
    for label, name in enumerate(classes):
        images, others = _walk(folder / name)
        if not images:
            raise DataError(
                f"The class folder {folder / name} contains no images: remove it, or add files that end in one of "
                f"{' '.join(IMG_EXTENSIONS)}."
            )
        paths += images
        labels += [label] * len(images)
        ignored += others
    if ignored:
        files = "1 file that is not an image was" if len(ignored) == 1 else f"{len(ignored)} files that are not images were"
        notes.append(f"{files} ignored in {folder}, for example {printable(ignored[0])}.")
    return ImageFiles(paths, labels)


def _walk(folder: Path) -> tuple[list[str], list[str]]:
    """Image files and other files at any depth below `folder`, in the order of ImageFolder."""
    images, others = [], []
    for place, names in sorted(_places(folder)):
        for name in sorted(names):
            if name.lower().endswith(IMG_EXTENSIONS) and not _is_hidden(name):
                images.append(os.path.join(place, name))  # noqa: PTH118  # a Path for each of a million files takes seconds
            elif not _is_hidden(name):
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


def _folders(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() and not _is_hidden(entry.name))
    except OSError as error:
        raise DataError(f"{folder} cannot be listed ({error.strerror}): check its permissions.") from error


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__"))


def _listed(names: Sequence[str]) -> str:
    if not names:
        return "no folder"
    return ", ".join(f"{printable(name)}/" for name in names[:6]) + (f" and {len(names) - 6} others" if len(names) > 6 else "")
