"""DnCNN of Zhang et al. (IEEE Transactions on Image Processing 2017, arXiv 1608.03981): denoising by residual learning.

17 convolutions (DnCNN-S, section III-A) with 64 channels estimate the noise, and their output is subtracted from the image: the
network returns the restored image. Images are grey or RGB, from 0 to 1, without normalisation. Modules and parameters have the
names of the checkpoints of SaoYan/DnCNN-PyTorch, whose network returns the noise.
"""

from torch import Tensor, nn


def convolution(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)


class DnCNN(nn.Module):
    """[n, channels, h, w] -> the same shape"""

    def __init__(self, channels: int = 1, depth: int = 17, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = [convolution(channels, width), nn.ReLU()]
        for _ in range(depth - 2):
            layers += [convolution(width, width), nn.BatchNorm2d(width), nn.ReLU()]
        self.dncnn = nn.Sequential(*layers, convolution(width, channels))

    def forward(self, image: Tensor) -> Tensor:
        return image - self.dncnn(image)


def dncnn(channels: int = 1) -> DnCNN:
    return DnCNN(channels)
