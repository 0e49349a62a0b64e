"""How bytes of images become the numbers that a network takes, and how the values of targets follow them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from compressor.errors import DataError, did_you_mean

Color = Literal["rgb", "bgr", "grey"]


@dataclass(frozen=True)
class Scale:
    """Pixels from 0 to `max_value`, with channels in the order of `color`, minus `mean`, divided by `std` [channels].

    `mean` and `std` have the channels' order and range. Targets that are images have the range and the order, but are not
    normalised.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    color: Color = "rgb"
    max_value: float = 1.0

    @property
    def mean_color(self) -> list[int]:
        return mean_color(self.mean, self.color, self.max_value)

    def images(self, pixels: Tensor) -> Tensor:
        """Float images [..., c, h, w] from 0 to `max_value`; of bytes, or of floats from 0 to 1."""
        if pixels.dtype != torch.uint8:
            values = pixels * self.max_value
        elif self.max_value == 255:  # exactly the bytes
            values = pixels.float()
        else:
            values = pixels.float().div_(255)
            values = values if self.max_value == 1 else values.mul_(self.max_value)
        return values.flip(-3) if self.color == "bgr" else values

    def inputs(self, pixels: Tensor) -> Tensor:
        """`images`, normalised."""
        mean, std = (torch.tensor(values, device=pixels.device)[:, None, None] for values in (self.mean, self.std))  # [c, 1, 1]
        return self.images(pixels).sub_(mean).div_(std)


class Scaled:
    """Data that have a `scale`, and what `Data` tells of it."""

    scale: Scale

    @property
    def mean(self) -> tuple[float, ...]:
        return self.scale.mean

    @property
    def std(self) -> tuple[float, ...]:
        return self.scale.std

    @property
    def color(self) -> str:
        return self.scale.color

    @property
    def max_value(self) -> float:
        return self.scale.max_value


def to_bytes(image: Tensor) -> Tensor:
    """[c, h, w] from 0 to 1 -> uint8 [3, h, w], for people; of other numbers of channels the first."""
    image = image if image.shape[0] == 3 else image[:1].expand(3, -1, -1)
    return (image.float().clamp(0, 1) * 255).round().to(torch.uint8)


def mean_color(mean: Sequence[float], color: str, max_value: float) -> list[int]:
    """The bytes [channels] that become zero, or near it, in the order of files."""
    return [min(255, max(0, round(value / max_value * 255))) for value in (mean[::-1] if color == "bgr" else mean)]


def check_color(color: str | None, channels: int) -> Color:
    """The order of `channels`, by default RGB or grey. Raises DataError if they do not fit."""
    if color is None:
        return "grey" if channels == 1 else "rgb"
    known = get_args(Color)
    if color not in known:
        raise DataError(f"The color {color!r} is unknown{did_you_mean(color, known) or '.'}\nUse one of {', '.join(known)}.")
    if (color == "grey") != (channels == 1):
        raise DataError(
            f"The color {color} has {1 if color == 'grey' else 3} channels, but the images are read with {channels}: "
            f"use {'grey' if channels == 1 else 'rgb or bgr'}."
        )
    return color  # type: ignore[return-value]  # checked above
