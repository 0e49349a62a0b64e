"""IMDN of Hui et al. (ACM Multimedia 2019, arXiv 1909.11856): super-resolution by information multi-distillation.

A block splits off a quarter of the channels after each of three convolutions, as finished features, and passes the rest on to
the next one (section 3.2). All finished features are concatenated, weighted by an attention that sees the contrast of each
channel, and fused (section 3.3). The image is enlarged in the last layer alone. Modules and parameters have the names of the
checkpoints of the authors' repository, Zheng222/IMDN; images are RGB from 0 to 1, without normalisation.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.05  # of leaky ReLU


class ContrastAttention(nn.Module):
    """Weights each channel by a function of its contrast: the standard deviation plus the mean (equation 5)."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = channels // reduction
        self.conv_du = nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, channels, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        contrast = x.std((2, 3), correction=0, keepdim=True) + x.mean((2, 3), keepdim=True)  # [n, channels, 1, 1]
        return x * self.conv_du(contrast)


class DistillationBlock(nn.Module):
    """[n, channels, h, w] -> the same shape. `finished`: the number of channels that each step splits off."""

    def __init__(self, channels: int, finished: int) -> None:
        super().__init__()
        self.split = finished, channels - finished
        self.c1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.c2, self.c3 = (nn.Conv2d(channels - finished, channels, 3, padding=1) for _ in range(2))
        self.c4 = nn.Conv2d(channels - finished, finished, 3, padding=1)
        self.cca = ContrastAttention(4 * finished)
        self.c5 = nn.Conv2d(4 * finished, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        done, left = [], x
        for step in (self.c1, self.c2, self.c3):
            finished, left = F.leaky_relu(step(left), SLOPE).split(self.split, 1)
            done.append(finished)
        return self.c5(self.cca(torch.cat([*done, self.c4(left)], 1))) + x


class IMDN(nn.Module):
    """[n, 3, h, w] -> [n, 3, scale * h, scale * w]"""

    def __init__(self, scale: int, channels: int = 64, blocks: int = 6) -> None:
        super().__init__()
        self.blocks = blocks
        self.fea_conv = nn.Conv2d(3, channels, 3, padding=1)
        for number in range(1, blocks + 1):
            self.add_module(f"IMDB{number}", DistillationBlock(channels, channels // 4))
        self.c = nn.Sequential(nn.Conv2d(blocks * channels, channels, 1), nn.LeakyReLU(SLOPE))
        self.LR_conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.upsampler = nn.Sequential(nn.Conv2d(channels, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale))

    def forward(self, image: Tensor) -> Tensor:
        x = first = self.fea_conv(image)
        outputs = []
        for number in range(1, self.blocks + 1):
            x = self.get_submodule(f"IMDB{number}")(x)
            outputs.append(x)
        return self.upsampler(self.LR_conv(self.c(torch.cat(outputs, 1))) + first)


def imdn_x2() -> IMDN:
    return IMDN(2)


def imdn_x4() -> IMDN:
    return IMDN(4)
