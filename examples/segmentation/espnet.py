"""ESPNet of Mehta et al. (ECCV 2018, arXiv 1803.06815): semantic segmentation with few parameters.

Its efficient spatial pyramid (ESP) reduces the channels by a 1 x 1 convolution and applies five 3 x 3 convolutions with
dilations 1 to 16 to them, whose outputs are concatenated (section 3.1). Sums from each dilation to the next prevent gridding
artefacts (section 3.2). The encoder reduces the resolution to an eighth, and a light decoder restores it (section 3.4, figure
4d). Modules and parameters have the names of the checkpoints of the authors' repository, sacmehta/ESPNet: for CamVid
`espnet(classes=12, p=2, q=8)`, whose last class is the ignored one.

Those networks were trained on images in BGR order, normalised and then divided by 255 once more. `espnet_rgb` swaps the
channels itself; for CamVid it needs images from 0 to 1 with mean 0.41118, 0.42384, 0.43137 and standard deviation 69.40, 72.11,
71.64.
"""

from collections import OrderedDict
from itertools import accumulate

import torch
from torch import Tensor, nn

DILATIONS = (1, 2, 4, 8, 16)


def named(**modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(modules))


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=dilation * (kernel // 2), dilation=dilation, bias=False)


def norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


def activated(channels: int) -> nn.Sequential:
    return named(bn=norm(channels), act=nn.PReLU(channels))


def doubled(classes: int) -> nn.ConvTranspose2d:
    """[n, classes, h, w] -> [n, classes, 2 h, 2 w]"""
    return nn.ConvTranspose2d(classes, classes, 2, stride=2, bias=False)


class Pyramid(nn.Module):
    """Reduce, split, transform and merge: [n, inputs, h, w] -> [n, outputs, h / stride, w / stride]."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        width = outputs // len(DILATIONS)
        self.c1 = named(conv=convolution(inputs, width, kernel, stride))
        for dilation in DILATIONS:
            # The branch without dilation has what is left over in the division by 5.
            wide = outputs - (len(DILATIONS) - 1) * width if dilation == 1 else width
            self.add_module(f"d{dilation}", named(conv=convolution(width, wide, 3, dilation=dilation)))

    def merged(self, x: Tensor) -> Tensor:
        x = self.c1(x)
        plain, *dilated = (self.get_submodule(f"d{dilation}")(x) for dilation in DILATIONS)
        return torch.cat([plain, *accumulate(dilated)], 1)


class Down(Pyramid):
    """An ESP module at half the resolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, kernel=3, stride=2)
        self.bn, self.act = norm(outputs), nn.PReLU(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.merged(x)))


class ESP(Pyramid):
    """An ESP module, with a residual connection if the width stays."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, kernel=1, stride=1)
        self.is_residual = inputs == outputs
        self.bn = activated(outputs)

    def forward(self, x: Tensor) -> Tensor:
        merged = self.merged(x)
        return self.bn(x + merged if self.is_residual else merged)


class Encoder(nn.Module):
    """ESPNet-C: p and q residual ESP modules at a quarter and an eighth of the resolution; each level also sees the image."""

    def __init__(self, classes: int, p: int, q: int) -> None:
        super().__init__()
        self.smaller = nn.AvgPool2d(3, stride=2, padding=1)
        self.level1 = named(conv=convolution(3, 16, 3, stride=2), bn=norm(16), act=nn.PReLU(16))
        self.b1 = activated(16 + 3)
        self.level2_0 = Down(16 + 3, 64)
        self.level2 = nn.Sequential(*(ESP(64, 64) for _ in range(p)))
        self.b2 = activated(64 + 64 + 3)
        self.level3_0 = Down(64 + 64 + 3, 128)
        self.level3 = nn.Sequential(*(ESP(128, 128) for _ in range(q)))
        self.b3 = activated(128 + 128)
        self.classifier = named(conv=convolution(128 + 128, classes, 1))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[n, 3, h, w] -> features [n, 19, h/2, w/2] and [n, 131, h/4, w/4], logits [n, classes, h/8, w/8]"""
        half = self.smaller(image)
        first = self.b1(torch.cat([self.level1(image), half], 1))
        down = self.level2_0(first)
        second = self.b2(torch.cat([self.level2(down), down, self.smaller(half)], 1))
        down = self.level3_0(second)
        return first, second, self.classifier(self.b3(torch.cat([down, self.level3(down)], 1)))


class ESPNet(nn.Module):
    """[n, 3, h, w] -> logits [n, classes, h, w]; h and w must be multiples of 8.

    bgr: swap the channels first, for weights that were trained on BGR and images in RGB order.
    """

    def __init__(self, classes: int, p: int = 2, q: int = 8, *, bgr: bool = False) -> None:
        super().__init__()
        self.bgr = bgr
        self.encoder = Encoder(classes, p, q)
        self.br = norm(classes)
        self.up_l3 = nn.Sequential(doubled(classes))
        self.level3_C = named(conv=convolution(64 + 64 + 3, classes, 1))
        self.combine_l2_l3 = nn.Sequential(activated(2 * classes), ESP(2 * classes, classes))
        self.up_l2 = nn.Sequential(doubled(classes), activated(classes))
        self.conv = named(conv=convolution(classes + 16 + 3, classes, 3), bn=norm(classes), act=nn.PReLU(classes))
        self.classifier = doubled(classes)

    def forward(self, image: Tensor) -> Tensor:
        first, second, logits = self.encoder(image.flip(1) if self.bgr else image)
        quarter = torch.cat([self.level3_C(second), self.up_l3(self.br(logits))], 1)  # [n, 2 * classes, h/4, w/4]
        half = torch.cat([self.up_l2(self.combine_l2_l3(quarter)), first], 1)  # [n, classes + 19, h/2, w/2]
        return self.classifier(self.conv(half))


def espnet(classes: int = 12, p: int = 2, q: int = 8) -> ESPNet:
    return ESPNet(classes, p, q)


def espnet_rgb(classes: int = 12, p: int = 2, q: int = 8) -> ESPNet:
    """For images in RGB order and weights that were trained on BGR."""
    return ESPNet(classes, p, q, bgr=True)
