"""What a command is given: a model, images, a device. How each is named, and how it is opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from compressor.checkpoint import Loaded, load_model
from compressor.data import Data, open_data
from compressor.errors import UsageError


@dataclass(frozen=True)
class Source:
    """The model to compress: MODEL of the command line and how to read it."""

    model: str
    arch: str | None = None
    arch_args: Mapping[str, object] = field(default_factory=dict)
    key: str | None = None
    ema: bool = False
    trust_pickle: bool = False

    def load(self) -> Loaded:
        return load_model(
            self.model,
            arch=self.arch,
            arch_args=self.arch_args,
            key=self.key,
            ema=self.ema,
            trust_pickle=self.trust_pickle,
        )


@dataclass(frozen=True)
class Images:
    """The data to use: SPEC of the command line and how to read it."""

    spec: str | None = None
    size: int | tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    workers: int = 0

    def open(self, seed: int) -> Data | None:
        if self.spec is None:
            return None
        return open_data(self.spec, size=self.size, mean=self.mean, std=self.std, seed=seed, workers=self.workers)


def pick_device(name: str) -> torch.device:
    """`auto` is the GPU when there is one. Raises UsageError for a device that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {name} cannot be used here: {str(error).splitlines()[0]} Try --device cpu.") from None
    return device


def settle_input(loaded: Loaded, data: Data | None, asked: tuple[int, int, int] | None) -> tuple[tuple[int, int, int], str]:
    """The shape of one image, and where it comes from."""
    if data is not None:
        return data.shape, "the data"
    if asked is not None:
        return asked, "--input"
    if loaded.input_shape is not None:
        return loaded.input_shape, loaded.arch
    first = next((m for m in loaded.model.modules() if isinstance(m, nn.Conv2d)), None)
    return (first.in_channels if first is not None else 3, 224, 224), "an assumption: give --input or --data"
