"""Data sets of other libraries: scikit-learn's digits, which are included in it, and torchvision's, if downloaded.

Digits and Fashion-MNIST are not mirrored in training: a mirrored 3 is not a digit, and all shoes of Fashion-MNIST point
to the left.
"""

from pathlib import Path
from typing import Any

import torch

from compressor.data.images import Images, ImageTensor
from compressor.data.layout import check_folder
from compressor.data.splits import Part, Source, whole
from compressor.errors import DataError

CIFAR = {"CIFAR10": "cifar-10-batches-py", "CIFAR100": "cifar-100-python"}  # the folders of their files


def read_digits() -> Source[Images]:
    """1797 handwritten digits of 8x8 pixels, of which a fifth are test images."""
    from sklearn.datasets import load_digits  # takes a second to import

    digits = load_digits()
    pixels = torch.from_numpy(digits.images)[:, None]  # [1797, 1, 8, 8], 0 to 16
    images: Images = ImageTensor((pixels * 255 / 16).round().to(torch.uint8), torch.from_numpy(digits.target), "digits")
    return Source([str(digit) for digit in range(10)], whole(images), channels=1, flip=False, mean=0.305, std=0.376)


def read_cifar10(root: Path) -> Source[Images]:
    """50,000 training and 10,000 test images of 32x32 pixels in 10 classes: Krizhevsky, 2009."""
    return _read_cifar("CIFAR10", root)


def read_cifar100(root: Path) -> Source[Images]:
    """The same numbers of images in 100 classes: Krizhevsky, 2009."""
    return _read_cifar("CIFAR100", root)


def read_fashionmnist(root: Path) -> Source[Images]:
    """60,000 training and 10,000 test images, grey, 28x28 pixels, in 10 classes: Xiao et al., arXiv 1708.07747."""
    train, test = _open("FashionMNIST", root, Path("FashionMNIST", "raw"))
    sets = [_as_images(part, root) for part in (train, test)]
    return Source(train.classes, train=sets[0], test=sets[1], channels=1, flip=False, mean=0.286, std=0.353)


def _as_images(part: Any, root: Path) -> Part[Images]:
    """Check the images [n, 28, 28] and labels [n] of torchvision, which reads these files without a checksum, unlike CIFAR."""
    pixels, labels = part.data, part.targets
    told = [f"{name} of {list(found.shape)}" for name, found in (("images", pixels), ("labels", labels))]
    if (
        pixels.dtype != torch.uint8
        or pixels.shape != (len(labels), 28, 28)
        or labels.shape != (len(labels),)
        or not len(labels)
    ):
        raise DataError(f"FashionMNIST in {root} has {' and '.join(told)}: its files are damaged, download them again.")
    if int(labels.max()) >= len(part.classes) or int(labels.min()) < 0:
        raise DataError(f"FashionMNIST in {root} has labels above {len(part.classes) - 1}: download its files again.")
    return whole(ImageTensor(pixels[:, None], labels, "FashionMNIST"))  # [n, 1, 28, 28]


def _read_cifar(kind: str, root: Path) -> Source[Images]:
    train, test = _open(kind, root, Path(CIFAR[kind]))
    sets = []
    for part in (train, test):
        pixels = torch.from_numpy(part.data).permute(0, 3, 1, 2)  # [n, 3, 32, 32]
        sets.append(whole(ImageTensor(pixels, torch.tensor(part.targets), kind)))
    return Source(train.classes, train=sets[0], test=sets[1])


def _open(kind: str, root: Path, files: Path) -> tuple[Any, Any]:
    """Both splits of torchvision's data set `kind`, whose files are in `root / files`."""
    from torchvision import datasets  # takes seconds to import

    if root.absolute().match(f"*/{files}"):
        root = root.absolute().parents[len(files.parts) - 1]
    check_folder(root)
    if (pickled := root / files.parent / "processed" / "training.pt").exists():
        raise DataError(f"{pickled} is a pickle file of torchvision before 2021 and is not read: delete {pickled.parent}.")
    try:
        return getattr(datasets, kind)(root, train=True), getattr(datasets, kind)(root, train=False)
    except Exception as error:  # torchvision checks the sizes of few files, and asserts the rest
        remedy = f"download them once with torchvision.datasets.{kind}({str(root)!r}, download=True)"
        if (root / "train").is_dir():
            remedy = f"to read the images in its train/, use imagefolder:{root}"
        raise DataError(f"The {kind} files in {root / files} are missing or damaged: {remedy}.") from error
