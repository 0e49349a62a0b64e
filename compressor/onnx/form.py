"""The form of an ONNX file: which dimensions of its inputs are open, and the names of its outputs.

By default any batch size is accepted, and any height and width where the output is a map that grows with the image. A network
whose code allows less is written for one batch size, or for one size of images.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional

from compressor.errors import Infeasible, UsageError, first_line
from compressor.network.inputs import Inputs
from compressor.network.outputs import main_first

SIDES = ("height", "width")  # dimensions 2 and 3


@dataclass(frozen=True)
class ExportForm:
    """The form of one file. `batch` is a fixed batch size, None: any; `sides` are those of `SIDES` that are open."""

    batch: int | None = None
    sides: tuple[str, ...] = ()
    output: str = "logits"  # the name of a single output

    def outputs(self, count: int) -> list[str]:
        """The names of so many outputs."""
        return [self.output] if count == 1 else [f"output{i}" for i in range(count)]

    def __str__(self) -> str:
        batch = "any batch size" if self.batch is None else f"a batch size of {self.batch}"
        return batch + (f" and any {' and '.join(self.sides)}" if self.sides else "")


@dataclass(frozen=True)
class WishedForm:
    """What the user asks of the form; None where it is found out. Raises UsageError."""

    sides: tuple[str, ...] | None = None
    batch: int | None = None
    output: str = "logits"

    def __post_init__(self) -> None:
        if self.batch is not None and self.batch < 1:
            raise UsageError(f"--onnx-batch is a batch size, 1 or more; found {self.batch}.")

    @staticmethod
    def parse(dynamic: str | None, batch: int | None) -> WishedForm:
        """From the options --dynamic and --onnx-batch. Raises UsageError."""
        if dynamic is None:
            return WishedForm(None, batch)
        names = [name for name in re.split(r"[,\s]+", dynamic.strip()) if name != "none"]
        if not dynamic.strip() or set(names) - set(SIDES) or len(set(names)) < len(names):
            raise UsageError(f"--dynamic {dynamic!r} is unknown: use height,width, or one of them, or none.")
        return WishedForm(tuple(side for side in SIDES if side in names), batch)

    def __str__(self) -> str:
        """As in the option --dynamic."""
        return "" if self.sides is None else ",".join(self.sides) or "none"


def candidates(network: nn.Module, inputs: Inputs, wish: WishedForm) -> list[tuple[ExportForm, Inputs | None]]:
    """The forms to try, the most open first, and inputs of another size for those that allow one.

    `network` is on the CPU in eval mode. Raises Infeasible when sides are to be open, and the network runs on no other size.
    """
    sides = SIDES if wish.sides is None else wish.sides
    other = other_size(network, inputs, sides, maps_alone=wish.sides is None) if sides else None
    if other is None and wish.sides:
        raise Infeasible(
            f"--dynamic {','.join(wish.sides)}: the network does not run on other images than {inputs}: omit --dynamic."
        )
    openings: list[tuple[tuple[str, ...], Inputs | None]] = [] if other is None else [(sides, other)]
    if not wish.sides:
        openings.append(((), None))
    batches = [None, 1] if wish.batch is None else [wish.batch]
    output = f"{wish.output}_out" if wish.output in inputs.names else wish.output
    return [(ExportForm(batch, opened, output), another) for batch in batches for opened, another in openings]


def other_size(network: nn.Module, inputs: Inputs, sides: tuple[str, ...], maps_alone: bool = True) -> Inputs | None:
    """The same inputs with larger `sides`, on which the network runs, too; None if there are none.

    The sides keep the powers of two that divide them, or are multiples, as U-shaped networks need. With `maps_alone`, the
    outputs must be maps [n, channels, height, width], and become larger.
    """
    if len(inputs.each) > 1 or inputs.each[0].dtype is not None or len(inputs.each[0].shape) != 3:
        return None
    before = _shapes(network, inputs)
    if before is None or (maps_alone and any(len(shape) != 4 for shape in before)):
        return None
    for larger in _larger(inputs, sides):
        after = _shapes(network, larger)
        if after is not None and not (maps_alone and any(a[2:] == b[2:] for a, b in zip(after, before, strict=True))):
            return larger
    return None


def _larger(inputs: Inputs, sides: tuple[str, ...]) -> Iterator[Inputs]:
    """By a step, by a half, and by a factor. Height and width grow differently, so that none passes for the other."""
    _, height, width = inputs.each[0].shape
    for tall, wide in ((height & -height, width & -width), (height // 2, width // 2), (height, width)):
        if tall and wide:
            yield resized(inputs, height + tall * ("height" in sides), width + 2 * wide * ("width" in sides))


def resized(inputs: Inputs, height: int, width: int) -> Inputs:
    """The same single input at another size; real images are resized."""
    (image,) = inputs.each
    images = inputs.images
    if images is not None:
        images = functional.interpolate(images.float(), (height, width), mode="bilinear", align_corners=False)
    return replace(inputs, each=(replace(image, shape=(image.shape[0], height, width)),), images=images)


def _shapes(network: nn.Module, inputs: Inputs) -> list[torch.Size] | None:
    """The shapes of the outputs; None if the network does not run on such inputs."""
    with contextlib.suppress(Exception), torch.inference_mode():  # whatever the network's code raises
        return [tensor.shape for tensor in main_first(inputs.call(network, inputs.random(1)))]
    return None


def why(error: Exception) -> str:
    """The reason of a form that failed, on one line."""
    return first_line(error) if error.__cause__ is not None else " ".join(str(error).split())
