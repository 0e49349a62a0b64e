"""The training, held-out (validation) and test splits.

They never share an image. Splits are stratified by class, and reproducible for a seed: NumPy guarantees that the random
numbers of `RandomState` never change, so that a test split stays the same after an update.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from compressor.data.images import Images

TEST_SHARE = 0.2  # of a data set without a test split
TEST_SEED = 0  # the same for every run: a network must not be tested on images that it was trained on in another run


@dataclass(frozen=True)
class Part:
    """A subset of a data set: `positions` [n] in `images`, ascending."""

    images: Images
    positions: Tensor

    @property
    def labels(self) -> Tensor:
        """The labels [n] of these images."""
        return self.images.labels[self.positions]


@dataclass(frozen=True)
class Source:
    """The data that a spec names, before the images get a common shape.

    `held_out`: None if it is to be split off `train`. `channels`: number of channels of the images. `flip`: whether training
    images may be mirrored. `mean`, `std`: of the training images, one value for all channels; None: those of ImageNet.
    """

    classes: list[str]
    train: Part
    test: Part
    held_out: Part | None = None
    channels: int = 3
    flip: bool = True
    mean: float | None = None
    std: float | None = None
    notes: list[str] = field(default_factory=list)


def whole(images: Images) -> Part:
    """All images of a data set."""
    return Part(images, torch.arange(len(images)))


def cut(part: Part, share: float, seed: int) -> tuple[Part, Part]:
    """Split `part`, stratified by class: the rest, and `share` (0 to 1) of the images.

    If `share` is not 0, at least one image is split off; each class keeps at least one.
    """
    labels = part.labels.numpy()  # [n]
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
    return Part(part.images, part.positions[~taken]), Part(part.images, part.positions[taken])
