"""The ResNets of He et al. (CVPR 2016, arXiv 1512.03385, section 4.2) for 32 x 32 images.

Three stages of basic blocks with 16, 32 and 64 channels. A shortcut that changes the width has no weights ("option A"): it
takes every second pixel and pads the missing channels with zeros, half before and half after. Modules and parameters have the
names of widely used checkpoints.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class Pad(nn.Module):
    """A shortcut without weights: [n, c, h, w] -> [n, c + 2 * channels, h/2, w/2]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.channels, self.channels))


class Block(nn.Module):
    """Two 3 x 3 convolutions with a residual connection."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Identity() if inputs == width else Pad((width - inputs) // 2)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet(nn.Module):
    """[n, 3, 32, 32] -> logits [n, num_classes]; `depth` is 6 * blocks per stage + 2."""

    def __init__(self, depth: int, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(*(Block(inputs if i == 0 else width, width, stride if i == 0 else 1) for i in range(depth // 6)))
            for inputs, width, stride in ((16, 16, 1), (16, 32, 2), (32, 64, 2))
        )
        self.linear = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean(dim=(2, 3)))


def resnet20(num_classes: int = 10) -> ResNet:
    return ResNet(20, num_classes)


def resnet56(num_classes: int = 10) -> ResNet:
    return ResNet(56, num_classes)
