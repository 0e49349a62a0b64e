"""Folders of image files, one folder per class, as in torchvision's ImageFolder.

    DIR/train/cat/1.jpg    DIR/test/cat/7.jpg    (or val/ instead of test/; with both, val/ is the held-out split)
    DIR/cat/1.jpg                                (no train/ and test/: test images are split off)

Images without class folders are read without labels, if nothing beside them looks like labels:

    DIR/1.jpg                                    (or DIR/train/1.jpg and DIR/test/7.jpg)

Files that are not images are ignored, with a note. Names that begin with a dot or `__` are ignored silently.
"""

from pathlib import Path

from compressor.data.images import ImageFiles, Images
from compressor.data.layout import (
    IMG_EXTENSIONS,
    SPLITS,
    VAL,
    check_folder,
    dense_spec,
    files_below,
    folders_in,
    images_in,
    listed,
    looks_labelled,
    note_ignored,
    split_folders,
)
from compressor.data.splits import TEST_SHARE, Source, whole
from compressor.errors import DataError


def read_images(root: Path) -> Source[Images]:
    """The images in `root`, or in its train/, val/ and test/, without labels. Raises DataError if there seem to be labels."""
    check_folder(root)
    notes = [f"{root}: no labels were found."]
    folders = split_folders(folders_in(root))
    places = {split: root / name for split, name in folders.items()} or {"train": root}
    if "train" not in places or ("test" not in places and folders):
        raise DataError(
            f"{root} contains {listed([*folders.values()])} alone: it must have train/ and test/, or images without folders."
        )
    for folder in {root, *places.values()}:
        if found := looks_labelled(folder):
            raise DataError(
                f"{folder} contains {found}, which looks like labels: read them with imagefolder:DIR (class folders) "
                "or segmentation:DIR (masks), or move the images to a folder of their own."
            )
    parts = {}
    for split, folder in places.items():
        images, others = images_in(folder)
        if not images:
            raise DataError(f"{folder} contains no images: add files that end in one of {' '.join(IMG_EXTENSIONS)}.")
        note_ignored(others, folder, notes)
        parts[split] = whole(ImageFiles(images, root=str(root)))
    if not folders:
        notes.append(split_off(root))
    return Source([], parts["train"], parts.get("test"), parts.get("held_out"), notes=notes)


def split_off(root: Path) -> str:
    """A note on the test images."""
    return f"{root} has no train/ and test/: {TEST_SHARE:.0%} of its images are test images, the same in every run."


def read_folder(root: Path) -> Source[Images]:
    """The images in `root` with a class for each folder, or without labels if there are no folders of classes.

    Raises DataError if its folders are not as above.
    """
    check_folder(root)
    names = folders_in(root)
    if spec := dense_spec(root):
        raise DataError(f"{root} contains {listed(names)}, which are not classes: use {spec}:{root}.")
    first = root / "train" if "train" in names else root
    if not [name for name in folders_in(first) if name not in SPLITS] and images_in(first)[0]:
        return read_images(root)
    val = next((root / name for name in VAL if name in names), None)
    test = root / "test" if "test" in names else val
    if "train" not in names and test is None:
        return _uncut(root, names)
    if "train" not in names:
        raise DataError(f"{root} contains {listed(names)} but no train/: put the training images into {root / 'train'}.")
    train = root / "train"
    if test is None:
        raise DataError(
            f"{root} contains train/ but neither test/ nor val/: add one, or use {train}, from which test images are split off."
        )
    classes = _classes(train)
    notes: list[str] = []
    held_out = None
    if val is not None and val != test:
        held_out = whole(_read_classes(val, classes, notes, root))
        notes.append(f"{val} is used as the held-out (validation) split.")
    return Source(
        classes,
        train=whole(_read_classes(train, classes, notes, root)),
        test=whole(_read_classes(test, classes, notes, root)),
        held_out=held_out,
        notes=notes,
    )


def _uncut(root: Path, names: list[str]) -> Source[Images]:
    inner = next((root / name for name in names if (root / name / "train").is_dir()), None)
    if inner:
        raise DataError(f"{root} contains no train/, but {inner} does: use {inner}.")
    classes = _classes(root)
    notes: list[str] = []
    images = whole(_read_classes(root, classes, notes, root))
    return Source(classes, images, notes=[*notes, split_off(root)])


def _classes(folder: Path) -> list[str]:
    classes = folders_in(folder)
    if len(classes) < 2:
        raise DataError(
            f"{folder} must contain one folder of images per class, for two or more classes; it contains {listed(classes)}."
        )
    return classes


def _read_classes(folder: Path, classes: list[str], notes: list[str], root: Path) -> Images:
    """The images of one split; adds a note on files that are ignored."""
    found = folders_in(folder)
    if found != classes:
        missing, more = sorted(set(classes) - set(found)), sorted(set(found) - set(classes))
        raise DataError(
            f"{folder} must have the same class folders as train/; missing: {listed(missing)}, unexpected: {listed(more)}. "
            "Rename or move the folders."
        )
    paths: list[str] = []
    labels: list[int] = []
    ignored: list[str] = []
    for label, name in enumerate(classes):
        images, others = files_below(folder / name)
        if not images:
            raise DataError(
                f"The class folder {folder / name} contains no images: remove it, or add files that end in one of "
                f"{' '.join(IMG_EXTENSIONS)}."
            )
        paths += images
        labels += [label] * len(images)
        ignored += others
    note_ignored(ignored, folder, notes)
    return ImageFiles(paths, labels, str(root))
