"""Which images train the network, which ones choose between networks, and which ones measure the result.

The three never share an image. A part is cut off so that every class gives its share of it, and always in the same way for
the same seed: NumPy's `RandomState` promises its numbers for all time, so a test part stays what it was after an update.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from compressor.data.images import Images

TEST_SHARE = 0.2  # of a set that comes without a test part
TEST_SEED = 0  # the same for every run: a network must not be measured on images that another run trained it on


@dataclass(frozen=True)
class Part:
    """Some images of a set: `positions` [n] in `images`, ascending."""

    images: Images
    positions: Tensor

    @property
    def labels(self) -> Tensor:
        """The labels [n] of this part's images."""
        return self.images.labels[self.positions]


@dataclass(frozen=True)
class Source:
    """What a data spec stands for, before its images have a common shape.

    `held_out`: None when it is still to be cut from `train`. `channels`: those that the images have. `flip`: whether a mirrored
    image still shows its class. `mean`, `std`: of the training images, one number for all channels; None for photographs.
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
    """The part that is the whole set."""
    return Part(images, torch.arange(len(images)))


def cut(part: Part, share: float, seed: int) -> tuple[Part, Part]:
    """What stays of `part`, and `share` (0 to 1) of it, taken from all classes alike.

    At least one image is cut off if `share` is not 0, and each class keeps at least one.
    """
    labels = part.labels.numpy()  # [n]
    random = np.random.RandomState(seed % 2**32)
    shuffled = random.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    sizes = np.bincount(labels)
    size = sizes[labels[by_class]]  # [n], how many images the class of each has
    rank = np.arange(len(labels)) - (np.cumsum(sizes) - sizes)[labels[by_class]]  # [n], 0 for the first of a class
    # Cutting in the order of (rank + ½) / size takes the same share of every class; chance decides between equals.
    quantile = np.where(rank == size - 1, np.inf, (rank + 0.5) / size)
    count = min(max(1, round(share * len(labels))) if share > 0 else 0, int(np.isfinite(quantile).sum()))
    first = np.lexsort((random.random_sample(len(labels)), quantile))[:count]
    taken = torch.zeros(len(labels), dtype=torch.bool)
    taken[torch.from_numpy(by_class[first])] = True
    return Part(part.images, part.positions[~taken]), Part(part.images, part.positions[taken])
