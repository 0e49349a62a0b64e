"""The inputs of a network: usually one batch of images, or several or named tensors, as its `forward` takes them.

    Inputs.of((3, 224, 224))                            model(images)
    Inputs.of([(3, 128, 128), (3, 128, 128)])           model(first, second)
    Inputs.of({"pixel_values": (3, 224, 224)})          model(pixel_values=images)

Shapes are those of one sample, without the batch. Functions that run a network accept any of the forms above as `inputs`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from compressor.errors import UsageError

Range = tuple[float, float]

WHOLE = ("int64", "int32", "bool")  # types of integer inputs: token ids, positions, masks
_WRITTEN = re.compile(r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<sizes>\d+(?:[xX]\d+)*)(?::(?P<dtype>\w+))?")


@dataclass(frozen=True)
class Input:
    """One input tensor of a network, passed by position or by `name`; `dtype` None is the floating-point type of its weights.

    Raises UsageError when the shape is not valid, or the type is not in `WHOLE`.
    """

    shape: tuple[int, ...]
    name: str | None = None
    dtype: str | None = None

    def __post_init__(self) -> None:
        if not self.shape or not all(isinstance(size, int) and size > 0 for size in self.shape):
            raise UsageError(f"{list(self.shape)} is not an input shape: give positive integers, as in [3, 224, 224].")
        if self.name is not None and not str(self.name).isidentifier():
            raise UsageError(f"{self.name!r} is not an input name: give an argument name of forward, such as pixel_values.")
        if self.dtype not in (None, *WHOLE):
            raise UsageError(f"{self.dtype!r} is not an input type: omit it, or use one of {', '.join(WHOLE)}.")

    @staticmethod
    def parse(text: str) -> Input:
        """Parse the value of --input: `3x224x224`, `pixel_values=1x3x224x224` or `input_ids=1x16:int64`.

        A leading 1 is the batch if there is a name, a type, or more than three sizes. Raises UsageError.
        """
        found = _WRITTEN.fullmatch(text)
        sizes = tuple(map(int, re.split("[xX]", found["sizes"]))) if found else ()
        special = found is not None and bool(found["name"] or found["dtype"])
        if sizes[:1] == (1,) and (special or len(sizes) > 3):
            sizes = sizes[1:]
        if found is None or not all(sizes) or len(sizes) < (1 if special else 3):
            raise UsageError(
                f"--input {text!r} is not a shape: write channels x height x width, as in 3x224x224, "
                "or NAME=1x3x224x224 for a named input."
            )
        return Input(sizes, found["name"], found["dtype"])

    def random(self, n: int, generator: torch.Generator, like: Tensor, span: Range | None = None) -> Tensor:
        """[n, *shape] of normal noise, of the type and device of `like`. Integers are 0 or 1, valid for any vocabulary or mask.

        With `span` the noise is uniform between its limits. The values are the same on every device, except on `meta`, which
        has none.
        """
        dtype = like.dtype if self.dtype is None else getattr(torch, self.dtype)
        if like.is_meta:  # sampling there would import torch's compiler, which takes seconds
            return torch.empty(n, *self.shape, dtype=dtype, device="meta")
        if self.dtype is None:
            if span is None:
                return torch.randn(n, *self.shape, generator=generator).to(like)
            low, high = span
            return (low + (high - low) * torch.rand(n, *self.shape, generator=generator)).to(like)
        return torch.randint(2, (n, *self.shape), generator=generator).to(like.device, dtype)

    def __str__(self) -> str:
        """The text that `parse` accepts."""
        batch = (1,) if self.name or self.dtype or (len(self.shape) > 3 and self.shape[0] == 1) else ()
        sizes = "x".join(map(str, (*batch, *self.shape)))
        return (f"{self.name}=" if self.name else "") + sizes + (f":{self.dtype}" if self.dtype else "")


@dataclass(frozen=True)
class Inputs:
    """All inputs of a network, and what samples of them are like. Raises UsageError when two have the same name."""

    each: tuple[Input, ...]
    range: Range | None = None  # of the values of random samples; None: normal noise
    images: Tensor | None = field(default=None, compare=False, repr=False)  # real samples of the only input, [n, *shape]

    def __post_init__(self) -> None:
        if self.range is not None and not (all(map(math.isfinite, self.range)) and self.range[0] < self.range[1]):
            low, high = self.range
            raise UsageError(f"{low:g},{high:g} is not a range of input values: write LOW,HIGH, as in 0,1.")
        if len(set(self.names)) < len(self.each) or not self.each:
            found = str(self) or "none"
            raise UsageError(f"A network needs at least one input, and input names must differ; found {found}.")

    @property
    def names(self) -> list[str]:
        """Input names in the ONNX file: `images` for a single input, `input0`, `input1`, ... for several without names."""
        alone = len(self.each) == 1
        return [entry.name or ("images" if alone else f"input{i}") for i, entry in enumerate(self.each)]

    @property
    def shapes(self) -> dict[str, list[int]]:
        """Name -> shape of one sample, for reports."""
        return {name: list(entry.shape) for name, entry in zip(self.names, self.each, strict=True)}

    @property
    def numbers(self) -> int:
        """The number of values in one sample of all inputs."""
        return sum(math.prod(entry.shape) for entry in self.each)

    @staticmethod
    def of(inputs: Inputs | InputShapes) -> Inputs:
        """Inputs from the shape of one sample, several such shapes in the order of `forward`, or name -> shape."""
        if isinstance(inputs, Inputs):
            return inputs
        if isinstance(inputs, Mapping):
            return Inputs(tuple(Input(tuple(shape), name) for name, shape in inputs.items()))
        is_one = all(isinstance(size, int) for size in inputs)
        shapes = cast("Sequence[Sequence[int]]", [inputs] if is_one else inputs)
        return Inputs(tuple(Input(tuple(shape)) for shape in shapes))

    def random(self, n: int, seed: int = 0, like: nn.Module | None = None, unit: bool = False) -> list[Tensor]:
        """`n` samples of each input, with the device and floating-point type of the weights of `like`.

        They are real images if there are some, else uniform noise in `range` if it is given, else normal noise; with `unit`
        uniform noise from 0 to 1. The same seed gives the same samples.
        """
        weights = (p for p in like.parameters() if p.is_floating_point()) if like is not None else iter(())
        weight = next(weights, torch.empty(0))
        if self.images is not None and not weight.is_meta:
            return [self.images[torch.arange(seed, seed + n) % len(self.images)].to(weight)]
        generator, span = torch.Generator().manual_seed(seed), self.range or ((0.0, 1.0) if unit else None)
        return [entry.random(n, generator, weight, span) for entry in self.each]

    def split(self, tensors: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """Positional and keyword arguments of `forward`; `tensors` has one tensor for each input."""
        pairs = list(zip(self.each, tensors, strict=True))
        return tuple(t for entry, t in pairs if not entry.name), {entry.name: t for entry, t in pairs if entry.name}

    def tensors(self, samples: Any) -> list[Tensor]:
        """One tensor for each input, of the inputs of a batch: a tensor, or a tuple or mapping of the network's arguments."""
        named = samples if isinstance(samples, Mapping) else {}
        others = iter(samples if isinstance(samples, tuple | list) else (samples,))
        return [named[entry.name] if entry.name in named else next(others) for entry in self.each]

    def call(self, model: nn.Module, tensors: Sequence[Tensor]) -> Any:
        """The result of `model` for one tensor per input."""
        args, kwargs = self.split(tensors)
        return model(*args, **kwargs)

    def __str__(self) -> str:
        return ", ".join(map(str, self.each))

    @property
    def described(self) -> str:
        """For messages."""
        return f"{'images' if self.names == ['images'] else 'inputs'} of {self}"


def call(model: Callable[..., Any], inputs: Any) -> Any:
    """The outputs of `model` for the inputs of a batch: a tensor, or a tuple or mapping of its arguments."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)


InputShapes = Sequence[int] | Sequence[Sequence[int]] | Mapping[str, Sequence[int]]
AnyInputs = Inputs | InputShapes
