"""Images to be restored: `pairs:DIR`, `superres:DIR?scale=4` and `denoise:DIR?sigma=25`.

    pairs       inputs in lq/ (low quality) and targets in gt/ (ground truth), or these under train/, val/ and test/; a target
                may be larger than its input, by the same whole number for all
    superres    the target is the image, cropped to a multiple of the scale; the input is reduced to it by bicubic interpolation
    denoise     the target is the image; the input has Gaussian noise of sigma / 255 of the range of values

Images of the last two are in DIR, at any depth, or in its train/, val/ and test/.
"""

from collections.abc import Mapping
from pathlib import Path

from compressor.data.batches import Split
from compressor.data.images import ImageFiles
from compressor.data.layout import Pairing, by_stem, dense_spec, folders_in, listed, single_folders
from compressor.data.samples import Clean, FileSamples, Pairs, Reduced
from compressor.data.splits import Source, from_splits
from compressor.errors import DataError

PAIRING = Pairing("lq", "gt", "input", "target", ("x2", "x3", "x4", "x8", "_lq", "_gt"))
OPTIONS: dict[str, tuple[str, ...]] = {"pairs": (), "superres": ("scale",), "denoise": ("sigma",)}
LARGEST_SCALE = 16


def read_restoration(
    kind: str, root: Path, options: Mapping[str, str], channels: int
) -> tuple[Source[FileSamples], int, float]:
    """The images in `root`, how many times as large as its input a target is, and sigma of the noise. Raises DataError."""
    notes: list[str] = []
    if kind == "pairs":
        source, ratio = _pairs(root, channels, notes)
        return source, ratio, 0.0
    ratio, sigma = 1, 0.0
    if kind == "superres":
        ratio = int(_number(kind, "scale", options, 2, LARGEST_SCALE, whole=True))
    else:
        sigma = _number(kind, "sigma", options, 0.01, 255)
    folders = single_folders(root)
    if spec := dense_spec(root):
        raise DataError(
            f"{root} contains {listed(folders_in(root))}: use {spec}:{root}, or give the folder of the images alone."
        )
    files = {split: ImageFiles([*by_stem(folder, notes).values()], root=str(root)) for split, folder in folders.items()}
    sets: dict[Split, FileSamples] = {}
    for split, images in files.items():
        sets[split] = Reduced(images, channels, ratio) if kind == "superres" else Clean(images, channels)
    return from_splits(sets, root, channels=channels, classes=[], notes=notes), ratio, sigma


def _pairs(root: Path, channels: int, notes: list[str]) -> tuple[Source[FileSamples], int]:
    sets: dict[Split, FileSamples] = {}
    ratio = 0
    for split, folders in PAIRING.splits(root).items():
        pairs = PAIRING.match(*folders, notes)
        inputs, targets = (ImageFiles([pair[side] for pair in pairs], root=str(root)) for side in (0, 1))
        ratio = ratio or _ratio(inputs, targets)
        sets[split] = Pairs(inputs, targets, channels, ratio)
    return from_splits(sets, root, channels=channels, classes=[], notes=notes), ratio


def _ratio(inputs: ImageFiles, targets: ImageFiles) -> int:
    """How many times the first target is as large as its input."""
    (height, width), (rows, columns) = inputs.size(0), targets.size(0)
    if rows % height or rows // height != columns / width:
        raise DataError(
            f"{targets.name(0)} is {columns}x{rows} pixels, but {inputs.name(0)} is {width}x{height}: a target must be as "
            "large as its input, or a whole number of times larger."
        )
    return rows // height


def _number(kind: str, name: str, options: Mapping[str, str], low: float, high: float, whole: bool = False) -> float:
    """The option `name`, from `low` to `high`."""
    given = options.get(name)
    if given is None:
        raise DataError(f"{kind} needs ?{name}=NUMBER: write {kind}:DIR?{name}={4 if whole else 25}.")
    try:
        number = float(given)
    except ValueError:
        number = float("nan")
    if not low <= number <= high or (whole and number != int(number)):
        raise DataError(f"{name}={given} is not a {'whole ' * whole}number from {low:g} to {high:g}.")
    return number
