"""A small VGG for 32 x 32 images: six convolutions with batch norm, and three large fully-connected layers.

Simonyan, Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015, arXiv 1409.1556,
whose pattern it follows: 3 x 3 convolutions, twice as wide after each pooling, and three fully-connected layers. The
convolutions have 152.8 M of its 158.0 M MACs, the fully-connected layers 5.26 M of its 6.40 M parameters.
"""

import torch
from torch import Tensor, nn


class VGG(nn.Module):
    """[n, 3, 32, 32] -> logits [n, num_classes]."""

    def __init__(self, num_classes: int = 10, widths: tuple[int, ...] = (64, 128, 256), hidden: int = 1024) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for width in widths:
            for _ in range(2):
                layers += [nn.Conv2d(inputs, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                inputs = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(inputs * 16, hidden), nn.ReLU(inplace=True), nn.Dropout(),
            nn.Linear(hidden, hidden), nn.ReLU(inplace=True), nn.Dropout(),
            nn.Linear(hidden, num_classes),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))


def vgg8(num_classes: int = 10) -> VGG:
    """Six convolutions and three fully-connected layers, the last of which the name does not count."""
    return VGG(num_classes)
