"""Images with masks: `segmentation:DIR`.

    DIR/images/1.jpg        DIR/masks/1.png              or under train/, val/ and test/, or these under images/ and masks/
    DIR/train/1.jpg         DIR/trainannot/1.png         and val, valannot, test, testannot: as in CamVid

A mask has a class number for each pixel: in a grey image of 8 or 16 bits, or in an image with a palette. 255 is no class;
`?ignore=11` (or `11,12`) adds others. The names of the classes are in DIR/classes.txt, one on each line; without it, the
classes are the numbers up to the largest in the masks.
"""

from collections.abc import Mapping
from pathlib import Path

from compressor.data.batches import Split
from compressor.data.images import ImageFiles
from compressor.data.layout import SPLITS, Pairing, check_folder, check_splits, folders_in, split_folders
from compressor.data.samples import VOID, Masked, MaskFiles
from compressor.data.splits import Source, from_splits
from compressor.errors import DataError, first_line

PAIRING = Pairing("images", "masks", "image", "mask", ("_mask", "_masks", "_label", "_labels", "_seg", "_gt", "_L"))
OPTIONS = ("ignore",)
LARGEST = 2**16  # classes
NAMES = "classes.txt"


def read_segmentation(root: Path, options: Mapping[str, str], channels: int, memory: int) -> Source[Masked]:
    """The images and masks in `root`. Masks that are read to find the number of classes are kept, in up to `memory` bytes.

    Raises DataError.
    """
    check_folder(root)
    notes: list[str] = []
    folders = _camvid(root) or PAIRING.splits(root)
    pairs = {split: PAIRING.match(*pair, notes) for split, pair in folders.items()}
    masks = {split: MaskFiles([mask for _, mask in of_split]) for split, of_split in pairs.items()}
    named = _names(root / NAMES)
    ignored = _ignored(options.get("ignore"), void=len(named) <= VOID)
    if named:
        while len(named) - 1 in ignored:
            named.pop()
        hint = f"add their names to {root / NAMES}"
    else:
        largest = max(files.largest(ignored, memory // 2 // len(masks)) for files in masks.values())
        if largest >= LARGEST:
            raise DataError(f"The masks in {root} have numbers up to {largest}: class numbers must be below {LARGEST}.")
        named = [str(number) for number in range(largest + 1)]
        hint = "the other masks have none above"
    if len(named) < 2:
        more = " For two classes, save 1 in place of 255." if VOID in ignored and not options else ""
        raise DataError(
            f"The masks in {root} have {'one class' if named else 'no class'}, apart from {', '.join(map(str, ignored))}, "
            f"which are ignored: two or more are needed.{more}"
        )
    sets = {
        split: Masked(
            ImageFiles([image for image, _ in of_split], root=str(root)), masks[split], channels, ignored, len(named), hint
        )
        for split, of_split in pairs.items()
    }
    return from_splits(sets, root, channels=channels, classes=named, notes=notes)


def _camvid(root: Path) -> dict[Split, tuple[Path, Path]] | None:
    names = folders_in(root)
    if not any(f"{name}annot" in names for name in SPLITS):
        return None
    splits = split_folders(names)
    return check_splits({split: (root / name, root / f"{name}annot") for split, name in splits.items()}, root)


def _names(file: Path) -> list[str]:
    if not file.exists():
        return []
    try:
        names = [line.strip() for line in file.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read: write the name of a class on each line.\n{first_line(error)}") from error
    while names and not names[-1]:
        names.pop()
    if not names or "" in names or len(names) > LARGEST:
        raise DataError(
            f"{file} has {len(names)} lines, or an empty one: write the name of a class on each line, or remove it."
        )
    return names


def _ignored(text: str | None, void: bool) -> list[int]:
    """Numbers that are no class."""
    try:
        numbers = {int(part) for part in text.split(",")} if text is not None else set()
    except ValueError:
        numbers = {-1}
    if any(not 0 <= number < LARGEST for number in numbers):
        raise DataError(f"ignore={text} is not a list of class numbers: write ?ignore=11, or ?ignore=11,12.")
    return sorted(numbers | {VOID} if void else numbers)
