"""A small network for handwritten digits, as an example of your own: its code is independent of `compress`."""

import torch.nn.functional as F
from torch import Tensor, nn


class Net(nn.Module):
    """[n, 1, 8, 8] -> logits [n, 10]."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(2 * width)
        self.conv3 = nn.Conv2d(2 * width, 2 * width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(2 * width)
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))  # [n, width, 8, 8]
        x = F.relu(self.bn2(self.conv2(x)))  # [n, 2 * width, 4, 4]
        x = F.relu(self.bn3(self.conv3(x)))
        logits: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits
