"""The inputs of a command: a model, images, a device. How each is named, and how it is opened."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from compressor.checkpoint import Loaded, from_code, load_model
from compressor.data import Data, Split, input_shape, open_data
from compressor.errors import UsageError, first_line, printable
from compressor.network.constants import bind
from compressor.network.inputs import Input, Inputs
from compressor.network.meta_device import evaluating
from compressor.runs.settings import Setting
from compressor.tasks import Task
from compressor.tasks.find import find_task

USUAL = 224  # pixels, if no size is given
CHECKED_IMAGES = 16  # on which networks are compared


@dataclass(frozen=True)
class Source:
    """The model to compress: MODEL of the command line and how to read it."""

    model: str
    arch: str | None = None
    arch_args: Mapping[str, object] = field(default_factory=dict)
    key: str | None = None
    ema: bool = False
    trust_pickle: bool = False
    code: bool = False  # whether `model` is the code that builds it, not a file
    constants: Mapping[str, object] = field(default_factory=dict)  # of its forward
    input_range: tuple[float, float] | None = None  # of the values of its inputs, for random samples

    @property
    def is_named(self) -> bool:
        """Whether there is no file of weights, so that they come from the code."""
        return self.code or self.model.startswith(("torchvision:", "timm:"))

    @property
    def settings(self) -> dict[str, Setting]:
        """Under the names of the command line's options."""
        return {
            "model": self.model,
            "arch": self.arch,
            "arch_arg": [f"{name}={value!r}" for name, value in self.arch_args.items()] or None,
            "key": self.key,
            "ema": self.ema or None,
            "constant": [f"{name}={value}" for name, value in self.constants.items()] or None,
            "input_range": None if self.input_range is None else ",".join(f"{limit:g}" for limit in self.input_range),
        }

    def load(self) -> Loaded:
        """The network with its constants. Raises a CompressError."""
        loaded = self._load()
        bind(loaded.model, self.constants)
        return loaded

    def _load(self) -> Loaded:
        if self.code:
            return from_code(self.model, self.arch_args)
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
    task: str | None = None  # None: by the targets that the data have
    color: str | None = None
    max_value: float = 1
    crop: int | None = None
    pad_to: int = 1
    tile: int | tuple[int, int] | None = None
    fit: str | None = None
    group: str | None = None

    @property
    def settings(self) -> dict[str, Setting]:
        """Under the names of the command line's options."""
        return {
            "data": self.spec,
            "size": list(self.size) if isinstance(self.size, tuple) else self.size,
            "mean": None if self.mean is None else list(self.mean),
            "std": None if self.std is None else list(self.std),
            "task": self.task,
            "color": self.color,
            "max_value": None if self.max_value == 1 else self.max_value,
            "crop": self.crop,
            "pad_to": None if self.pad_to == 1 else self.pad_to,
            "tile": list(self.tile) if isinstance(self.tile, tuple) else self.tile,
            "fit": self.fit,
            "group": self.group,
        }

    def open(self, channels: int | None, seed: int) -> Data | None:
        """The images, with `channels` if that is 1 or 3; None without a spec."""
        if self.spec is None:
            return None
        return open_data(
            self.spec,
            size=self.size,
            fit=self.fit,
            channels=channels if channels in (1, 3) else None,
            mean=self.mean,
            std=self.std,
            color=self.color,
            max_value=self.max_value,
            crop=self.crop,
            pad_to=self.pad_to,
            tile=self.tile,
            group=self.group,
            seed=seed,
            workers=self.workers,
        )


@dataclass(frozen=True)
class Opened:
    """A model with its images, checked to fit. `notes` are sentences on what was found, done and assumed."""

    loaded: Loaded
    data: Data | None
    inputs: Inputs
    notes: list[str]


def open_both(source: Source, images: Images, asked: Inputs | None, seed: int = 0) -> Opened:
    """Open a model and its images; `asked` are the network's inputs, if the user gave them.

    Raises a UsageError when one cannot be read, or when they do not fit.
    """
    loaded = source.load()
    data = images.open(_channels(loaded.model), seed)
    notes = [printable(note) for note in (*loaded.notes, *(data.notes if data is not None else []))]
    spans = [source.input_range, *(known.range for known in (asked, loaded.inputs) if known is not None)]
    span = next((span for span in spans if span is not None), None)
    if data is not None:
        samples = some_inputs(data)
        if isinstance(samples, Tensor):
            inputs = replace(_for_images(data, asked, loaded), images=_resized(samples, data))
        else:
            inputs = _for_several(samples, data, asked)
        return Opened(loaded, data, replace(inputs, range=span), notes)
    known = asked or loaded.inputs
    inputs = known or Inputs.of((_channels(loaded.model) or 3, USUAL, USUAL))
    if known is None:
        notes.append(f"images are assumed to be {inputs}: give --input or --data if they are not")
    return Opened(loaded, None, replace(inputs, range=span), notes)


def some_inputs(data: Data) -> Any:
    """Inputs for the checks, of a few samples on the CPU: held-out ones, or training samples if none are."""
    held_out = bool(data.counts.get("held_out"))
    split: Split = "held_out" if held_out else "train"
    return next(iter(data.batches(split, batch_size=CHECKED_IMAGES, device="cpu", augment=False, limit=CHECKED_IMAGES))).inputs


def _resized(images: Tensor, data: Data) -> Tensor:
    """Images [n, channels, height, width] of the size of the network's input; other samples as they are."""
    shape = input_shape(data)
    if images.dim() == 4 and images.shape[1:] != shape:  # whole images, of different sizes
        images = interpolate(images, shape[1:], mode="bilinear", align_corners=False)
    return images


def inputs_of(data: Data) -> Inputs:
    """The inputs of a network that is called with samples of `data`."""
    if data.fit != "own" or isinstance(samples := some_inputs(data), Tensor):
        return Inputs.of(input_shape(data))
    return _for_several(samples, data, None)


def _for_several(samples: Any, data: Data, asked: Inputs | None) -> Inputs:
    """The inputs of a network that is called with such samples, a tuple or mapping. Raises UsageError if others are asked."""
    named = samples.items() if isinstance(samples, Mapping) else [(None, value) for value in samples]
    if not all(isinstance(value, Tensor) for _, value in named):
        raise UsageError(
            f"{data.spec} has inputs within inputs, but a network is called with tensors: return a tuple or mapping of tensors."
        )

    def kind(tensor: Tensor) -> str | None:
        return None if tensor.is_floating_point() else str(tensor.dtype).removeprefix("torch.")

    found = Inputs(tuple(Input(tuple(tensor.shape[1:]), name, kind(tensor)) for name, tensor in named))
    if asked is not None and asked.each != found.each:
        raise UsageError(f"--input {asked} does not fit {data.spec}, whose inputs are {found}: omit --input.")
    return found


def _for_images(data: Data, asked: Inputs | None, loaded: Loaded) -> Inputs:
    """The network's inputs when they come from `data`. Raises UsageError when they are not just images, or other ones."""
    shape = input_shape(data)
    known = asked or loaded.inputs or Inputs.of(shape)
    if len(known.each) > 1:
        raise UsageError(
            f"The network takes {known.described}, but {data.spec} has only images: omit --data. "
            "Without data, `inspect`, `export`, `eval`, and `prune` with --epochs 0 support several inputs; with data, those "
            "of file.py:function."
        )
    (image,) = known.each
    if asked is not None and image.shape != shape:
        raise UsageError(
            f"--input {asked} does not fit {data.spec}, whose images are {Inputs.of(shape)}: omit --input, or give --size."
        )
    first = next(iter(inspect.signature(loaded.model.forward).parameters), None)
    if image.name not in (None, first):
        raise UsageError(
            f"--input {image}: images of {data.spec} are passed as the first argument, which this network calls {first}. "
            "Omit --data, or wrap the network so that images come first."
        )
    return Inputs((replace(image, shape=shape),))


def task_of(opened: Opened, images: Images, device: torch.device) -> Task:
    """What the network is for. Raises UsageError or DataError when network, data and task do not belong together."""
    model, data = opened.loaded.model, opened.data
    task = find_task(images.task, model, opened.inputs, data, device)
    if data is not None:
        with evaluating(model):
            task.check(model, data)
    return task


def pick_device(name: str) -> torch.device:
    """`auto` is the GPU if there is one. Raises UsageError for a device that is not available."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise UsageError(f"--device {name} is unknown: use auto, cpu, cuda or cuda:1.")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
        if device.index is not None:
            torch.cuda.set_device(device)  # otherwise pinned memory and synchronization would use the first GPU
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {name} cannot be used here: {str(error).splitlines()[0]} Try --device cpu.") from None
    return device


@contextmanager
def device_errors() -> Iterator[None]:
    """Turn errors that depend on the device, full memory and tensors on two devices, into UsageErrors."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UsageError(
            f"The GPU is out of memory ({str(error).splitlines()[0][:120]}).\n"
            "Lower --batch-size (and raise --accumulate to compensate), or use --device cpu."
        ) from error
    except RuntimeError as error:
        if "on the same device" not in str(error):
            raise
        raise UsageError(
            f"Tensors are on different devices ({first_line(error)[:120]}).\n"
            "If the network's code creates tensors, create them on the device of its input, or use --device cpu."
        ) from error


def _channels(model: nn.Module) -> int | None:
    """The number of image channels of `model`, according to its first convolution."""
    first = next((module for module in nn.Module.modules(model) if isinstance(module, nn.Conv2d)), None)
    return None if first is None else first.in_channels
