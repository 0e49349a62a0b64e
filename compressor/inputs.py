"""What a network is called with: one batch of images as a rule, several tensors or named ones where its `forward` wants them.

    Inputs.of((3, 224, 224))                            model(images)
    Inputs.of([(3, 128, 128), (3, 128, 128)])           model(first, second)
    Inputs.of({"pixel_values": (3, 224, 224)})          model(pixel_values=images)

Shapes are those of one sample, without the batch. Functions that run a network take any of the forms above as `inputs`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compressor.errors import UsageError

WHOLE = ("int64", "int32", "bool")  # types of inputs that are not measurements: token ids, positions, masks


@dataclass(frozen=True)
class Input:
    """One tensor that a network takes, by position or by `name`; `dtype` None is the floating type of its weights.

    Raises UsageError when it is no shape, or the type none of `WHOLE`.
    """

    shape: tuple[int, ...]
    name: str | None = None
    dtype: str | None = None

    def __post_init__(self) -> None:
        if not self.shape or not all(isinstance(size, int) and size > 0 for size in self.shape):
            raise UsageError(f"{list(self.shape)} is not a shape of an input: give whole numbers above 0, as in [3, 224, 224].")
        if self.dtype not in (None, *WHOLE):
            raise UsageError(f"{self.dtype!r} is not a type of an input: leave it away, or take one of {', '.join(WHOLE)}.")

    def random(self, n: int, generator: torch.Generator) -> Tensor:
        """[n, *shape] of normal noise; whole numbers are 0 and 1, which every vocabulary and mask has."""
        if self.dtype is None:
            return torch.randn(n, *self.shape, generator=generator)
        return torch.randint(2, (n, *self.shape), generator=generator).to(getattr(torch, self.dtype))

    def __str__(self) -> str:
        """As it is written after --input."""
        batch = (1,) if self.name or (len(self.shape) > 3 and self.shape[0] == 1) else ()
        sizes = "x".join(map(str, (*batch, *self.shape)))
        return (f"{self.name}=" if self.name else "") + sizes + (f":{self.dtype}" if self.dtype else "")


@dataclass(frozen=True)
class Inputs:
    """All that a network is called with."""

    each: tuple[Input, ...]

    @staticmethod
    def of(inputs: Inputs | InputShapes) -> Inputs:
        """The shape of one sample, several such shapes in the order of `forward`, or name -> shape."""
        if isinstance(inputs, Inputs):
            return inputs
        if isinstance(inputs, Mapping):
            return Inputs(tuple(Input(tuple(shape), name) for name, shape in inputs.items()))
        one = tuple(size for size in inputs if isinstance(size, int))
        several = tuple(tuple(shape) for shape in inputs if not isinstance(shape, int))
        return Inputs(tuple(map(Input, several or (one,))))

    def random(self, model: nn.Module, n: int, seed: int = 0) -> list[Tensor]:
        """`n` random samples for each input, on the device of `model` and in the type of its weights."""
        weight = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
        generator = torch.Generator().manual_seed(seed)
        drawn = [entry.random(n, generator) for entry in self.each]
        return [t.to(weight) if t.is_floating_point() else t.to(weight.device) for t in drawn]

    def split(self, tensors: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """The arguments of `forward` by position and by name; `tensors` has one for each input."""
        pairs = list(zip(self.each, tensors, strict=True))
        return tuple(t for entry, t in pairs if not entry.name), {entry.name: t for entry, t in pairs if entry.name}

    def call(self, model: nn.Module, tensors: Sequence[Tensor]) -> Any:
        """What `model` returns for one tensor an input."""
        args, kwargs = self.split(tensors)
        return model(*args, **kwargs)

    def __str__(self) -> str:
        return ", ".join(map(str, self.each))

    @property
    def described(self) -> str:
        """As a message names them."""
        if len(self.each) == 1 and not self.each[0].name and len(self.each[0].shape) == 3:
            return f"an image of {self} (channels x height x width)"
        return f"{'inputs' if len(self.each) > 1 else 'an input'} of {self}"


InputShapes = Sequence[int] | Sequence[Sequence[int]] | Mapping[str, Sequence[int]]
AnyInputs = Inputs | InputShapes
