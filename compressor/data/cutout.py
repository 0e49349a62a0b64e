"""Cutout: a random square of every training image is masked, as a regularizer.

DeVries, Taylor: "Improved Regularization of Convolutional Neural Networks with Cutout", arXiv 1708.04552, section 3.2: the
centre is uniform over the image, so that a square near a border is partly outside. torchvision's `RandomErasing` keeps the
square inside, and so masks the middle more often.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Cutout:
    """Squares of `side` pixels around `centres` [n, 2] (row and column), one for each image of a set."""

    side: int
    centres: Tensor

    @classmethod
    def draw(cls, n: int, size: Sequence[int], share: float, seed: int) -> Cutout:
        """Random squares for `n` images of `size` (height, width); their side is `share` of the shorter side."""
        generator = torch.Generator().manual_seed(seed)
        centres = [torch.randint(length, (n,), generator=generator) for length in size]
        return cls(round(share * min(size)), torch.stack(centres, 1))

    def hide(self, images: Tensor, positions: Tensor) -> Tensor:
        """`images` [n, c, h, w], at `positions` [n] of the data set, with zeros in their squares."""
        first = self.centres[positions].to(images.device) - self.side // 2  # [n, 2]
        within = []
        for corner, length in zip(first.unbind(1), images.shape[2:], strict=True):
            offsets = torch.arange(length, device=images.device) - corner[:, None]  # [n, length]
            within.append((offsets >= 0) & (offsets < self.side))
        rows, columns = within
        return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)
