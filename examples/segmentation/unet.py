"""A small U-Net: Ronneberger, Fischer, Brox, MICCAI 2015, arXiv 1505.04597, with one level and nearest upsampling."""

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool2d


def block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class UNet(nn.Module):
    """[n, inputs, h, w] -> {"out": [n, classes, h, w]}, h and w even."""

    def __init__(self, classes: int = 2, width: int = 16, inputs: int = 3) -> None:
        super().__init__()
        self.down, self.bottom, self.up = block(inputs, width), block(width, 2 * width), block(3 * width, width)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.down(x)
        deep = interpolate(self.bottom(max_pool2d(x, 2)), size=x.shape[-2:])
        return {"out": self.head(self.up(torch.cat([x, deep], 1)))}
