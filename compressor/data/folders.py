"""Folders of image files, one folder a class, as torchvision's ImageFolder has them.

    DIR/train/cat/1.jpg    DIR/test/cat/7.jpg    (or val/ in place of test/; with both, val/ is the held-out part)
    DIR/cat/1.jpg                                (no train/ and test/: a test part is cut off)

Files that are not images are left out, and a note tells so. Names that begin with a dot or `__` are the system's own.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from compressor.data.images import ImageFiles
from compressor.data.splits import TEST_SEED, TEST_SHARE, Source, cut, whole
from compressor.errors import DataError, did_you_mean, printable

VAL = ("val", "valid", "validation")


# As torchvision has them, which takes seconds to import.
IMG_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


def read_folder(root: Path) -> Source:
    """The images below `root`. Raises DataError when they do not lie as above."""
    check_folder(root)
    names = _folders(root)
    val = next((root / name for name in VAL if name in names), None)
    test = root / "test" if "test" in names else val
    if "train" not in names and test is None:
        return _uncut(root, names)
    if "train" not in names:
        raise DataError(f"{root} holds {_listed(names)} but no train/: put the training images into {root / 'train'}.")
    train = root / "train"
    if test is None:
        raise DataError(
            f"{root} holds train/ but neither test/ nor val/: add one, or give {train} to have test images cut off."
        )
    classes = _classes(train)
    notes: list[str] = []
    held_out = None
    if val is not None and val != test:
        held_out = whole(_read_classes(val, classes, notes))
        notes.append(f"{val} is the held-out part.")
    return Source(
        classes,
        train=whole(_read_classes(train, classes, notes)),
        test=whole(_read_classes(test, classes, notes)),
        held_out=held_out,
        notes=notes,
    )


def check_folder(root: Path) -> None:
    """Raises DataError when `root` is not a folder, and tells what is there instead."""
    if root.is_dir():
        return
    if root.exists():
        raise DataError(f"{root} is a file where a folder of images was asked for: unpack it if it is an archive.")
    parent = next(folder for folder in root.absolute().parents if folder.is_dir())
    missing = root.absolute().relative_to(parent).parts[0]
    near = _folders(parent)
    hint = did_you_mean(missing, near) or "."
    raise DataError(f"There is no folder {root}: {parent} has {_listed(near)} and no {missing}{hint}")


def _uncut(root: Path, names: list[str]) -> Source:
    inner = next((root / name for name in names if (root / name / "train").is_dir()), None)
    if inner:
        raise DataError(f"{root} has neither train/ nor class folders, but {inner} has: give that.")
    classes = _classes(root)
    notes: list[str] = []
    train, test = cut(whole(_read_classes(root, classes, notes)), TEST_SHARE, TEST_SEED)
    notes.append(
        f"{root} has no train/ and test/: {TEST_SHARE:.0%} of its images were set apart for the test, always the same."
    )
    return Source(classes, train, test, notes=notes)


def _classes(folder: Path) -> list[str]:
    classes = _folders(folder)
    if len(classes) < 2:
        raise DataError(
            f"{folder} should hold a folder of images for each of two or more classes; it holds {_listed(classes)}."
        )
    return classes


def _read_classes(folder: Path, classes: list[str], notes: list[str]) -> ImageFiles:
    """The images of one part; adds a note on files that were left out."""
    found = _folders(folder)
    if found != classes:
        missing, more = sorted(set(classes) - set(found)), sorted(set(found) - set(classes))
        raise DataError(
            f"{folder} must hold the classes that train/ holds, but lacks {_listed(missing)} and has {_listed(more)} more: "
            "rename or move the folders."
        )
    paths: list[str] = []
    labels: list[int] = []
    ignored: list[str] = []
    for label, name in enumerate(classes):
        images, others = _walk(folder / name)
        if not images:
            raise DataError(
                f"The class folder {folder / name} holds no image: take it away, or fill it with files that end in one of "
                f"{' '.join(IMG_EXTENSIONS)}."
            )
        paths += images
        labels += [label] * len(images)
        ignored += others
    if ignored:
        files = "1 file that is not an image was" if len(ignored) == 1 else f"{len(ignored)} files that are not images were"
        notes.append(f"{files} left out of {folder}, such as {printable(ignored[0])}.")
    return ImageFiles(paths, labels)


def _walk(folder: Path) -> tuple[list[str], list[str]]:
    """Image files and other files at any depth below `folder`, in the order that ImageFolder has."""
    images, others = [], []
    for place, names in sorted(_places(folder)):
        for name in sorted(names):
            if name.lower().endswith(IMG_EXTENSIONS) and not _is_hidden(name):
                images.append(os.path.join(place, name))  # noqa: PTH118  # a Path for each of a million files takes seconds
            elif not _is_hidden(name):
                others.append(os.path.join(place, name))  # noqa: PTH118  # as above
    return images, others


def _places(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Every folder below, and the names in it. Links are followed, but into no folder twice: they may lead in a circle."""
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        folders.sort()  # so that it is always the same way that counts
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
        raise DataError(f"{folder} cannot be listed ({error.strerror}): check who may read it.") from error


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__"))


def _listed(names: Sequence[str]) -> str:
    if not names:
        return "no folder"
    return ", ".join(f"{printable(name)}/" for name in names[:6]) + (f" and {len(names) - 6} others" if len(names) > 6 else "")
