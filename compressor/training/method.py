"""The contract between a paper and the training loop. Read this first.

A method is given a job and changes how the job's network is trained:

    method = SomePaper(job, ...)
    method.prepare()                          # before training: one-shot papers cut here
    for progress in epochs:
        method.begin_epoch(progress)
        for batch in data:
            sum(method.loss(batch).values()).backward()
            method.edit_gradients()           # after unscaling, before the step
            optimizer.step()
            method.end_step(batch)
        method.end_epoch(progress)
        method.shrink()                       # channels that cannot come back go; the optimizer's state follows
    small = method.finish()

A paper's file overrides only the lines that the paper changes. Its settings are keyword-only arguments of `__init__`, each with
a type, a literal default and a sentence in the class's docstring; everything that depends on the network comes from the job.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from compressor.channels import Channels, Cut, Frozen
from compressor.data import Batch
from compressor.network.inputs import AnyInputs
from compressor.network.replacements import Chains
from compressor.tasks.classify import Classify
from compressor.training.goal import Curve, Goal

Selection = Mapping[str, Mapping[int, npt.NDArray[np.int64]]]  # parameter -> dimension -> places that stay


class Progress(NamedTuple):
    """Where training stands: epoch 0..epochs-1, and the share of the training that is over when it began, 0..1."""

    epoch: int
    epochs: int

    @property
    def share(self) -> float:
        return self.epoch / self.epochs


class Looks(Protocol):
    """Images that a method may look at: those for training and those for choosing, never those for measuring."""

    def batches(
        self,
        split: Literal["train", "held_out"],
        *,
        batch_size: int,
        device: torch.device,
        augment: bool = True,
        limit: int | None = None,
    ) -> Iterable[Batch]: ...

    def targets(self, split: Literal["train", "held_out"]) -> tuple[Tensor, Tensor]:
        """Indices [n] of all images of a part, and their targets [n]."""
        ...


@dataclass(frozen=True)
class Job:
    """What there is to compress."""

    model: nn.Module  # the original; a method works on a copy
    inputs: AnyInputs  # what it is called with: (channels, height, width) of one image, as a rule
    channels: Channels | None  # what can be cut; None: channels stay
    goal: Goal  # what is to be reached
    task: Classify  # the loss
    keep: tuple[str, ...] = ()  # patterns of layers that stay as they are, for methods that change layers one by one
    macs: float = 0.0  # of the whole model, for these
    round_to: int | None = None  # widths are multiples of this; None: of what suits each group (see widths.units)
    most: float = 0.95  # at most this share of one group's channels goes
    overhead: float = 0.0  # bytes of the ONNX file beside its weights, for a goal of size
    curves: Mapping[str, Curve] | None = None  # what each group costs when it alone is cut, where that was measured
    images: Looks | None = None  # what a method may look at before it trains
    clock: Callable[[nn.Module, tuple[int, ...]], float] | None = None  # milliseconds of a layer that reads such a shape
    teacher: nn.Module | None = None  # what `model` learns from; a method works on a copy of it
    taps: tuple[str, ...] = ()  # modules of `model` whose features are compared; none: the ends of its stages
    teacher_taps: tuple[str, ...] = ()  # likewise of the teacher
    trained: bool = False  # whether the weights of `model` are worth something: its peers then begin near them, not anew
    images_stay: bool = False  # whether an image is the same in every epoch


@dataclass(frozen=True)
class Made:
    """What a method made of the network: the next step of its plan, and what the report tells of it."""

    step: Cut | Chains = field(default_factory=Cut)
    difference: float | None = None  # between the small network and the dense one it stands for; None: nothing was changed
    planned: Mapping[str, float] = field(default_factory=dict)  # "macs" and "params" that the goal was met with
    remarks: Mapping[str, str] = field(default_factory=dict)  # layer -> what became of it, or why nothing did
    ranks: Mapping[str, int] = field(default_factory=dict)  # layer -> the rank of what took its place
    frozen: Sequence[Frozen] = ()
    warnings: Sequence[str] = ()
    times: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # layer -> its milliseconds, alone, before and after
    last: Mapping[str, str] = field(default_factory=dict)  # layer that ends a chain -> the layer whose place the chain took


class Method(nn.Module):
    """Abstract. Parameters that want a gradient are trained; `model` is what is evaluated and, in the end, kept.

    Whatever a method must remember between epochs is a parameter or a buffer of it: so it is moved to the GPU and saved for
    `--resume` without a word of code.
    """

    augments: bool = True  # whether training images are moved and mirrored
    views: int = 1  # how often each image is in a batch, moved anew each time
    by_class: int = 1  # so many images of one class follow each other in a batch
    recalibrates: bool = True  # whether batch-norm statistics are measured anew after what it did before training
    earlier: float = 1.0  # epochs of what `first` returns, as a share of this method's own

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.job = job
        self.model = copy.deepcopy(job.model)

    def first(self) -> Method | None:
        """Another method, whose training comes before this one's, as a teacher's that is made ready. Its result can be kept."""
        return None

    def prepare(self) -> None:
        """Called once, on the device, before the optimizer is built: the place to cut before training."""

    def begin_epoch(self, progress: Progress) -> None:
        """Called before the first batch of each epoch."""

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The weighted, named terms of the loss, each a scalar: the log's columns are the paper's equation."""
        return self.job.task.loss(self.model(batch.images), batch)

    def edit_gradients(self) -> None:
        """Called after the backward pass, before the optimizer's step."""

    def end_step(self, batch: Batch) -> None:
        """Called after the optimizer's step."""

    def end_epoch(self, progress: Progress) -> None:
        """Called after the last batch of each epoch, before the network is evaluated."""

    def shrink(self) -> Selection | None:
        """Make the network that is trained smaller, when some of it is out of use for good; None when nothing changed.

        Called before the first epoch and after each but the last. Names in a selection are those of `named_parameters()`.
        """
        return None

    def finish(self) -> nn.Module:
        """The small network. Called once, after training."""
        return self.model

    def made(self) -> Made:
        """What has become of the network so far."""
        return Made()
