"""The interface between a method and the training loop. Read this first.

A method receives a job and changes how the network of the job is trained:

    method = SomePaper(job, ...)
    method.prepare()                          # before training: one-shot methods prune here
    for progress in epochs:
        method.begin_epoch(progress)
        for batch in data:
            sum(method.loss(batch).values()).backward()
            method.edit_gradients()           # after unscaling, before the step
            optimizer.step()
            method.end_step(batch)
        method.end_epoch(progress)
        method.shrink()                       # removes channels that cannot recover, and their optimizer state
    small = method.finish()

A paper's file overrides only the calls that the paper changes. Its settings are keyword-only arguments of `__init__`, each
with a type, a literal default and a line in the docstring of the class; everything that depends on the network comes from the
job.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from compressor.channels import Channels, Cut, Frozen
from compressor.data import Batch
from compressor.network.copying import clone_network
from compressor.network.inputs import AnyInputs
from compressor.network.replacements import Chains
from compressor.tasks import Task
from compressor.training.goal import Curve, Goal
from compressor.training.objective import Objective

Selection = Mapping[str, Mapping[int, npt.NDArray[np.int64]]]  # parameter -> dimension -> indices that remain


class Progress(NamedTuple):
    """The progress of training: epoch 0..epochs-1, and the share of training that is over when it begins, 0..1."""

    epoch: int
    epochs: int

    @property
    def share(self) -> float:
        return self.epoch / self.epochs


class Looks(Protocol):
    """Images that a method may use: the training images and the held-out images, never the test images."""

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
        """Indices [n] of all images of a split, and their targets [n]."""
        ...


@dataclass(frozen=True)
class Job:
    """What to compress, and how far."""

    model: nn.Module  # the original; a method works on a copy
    inputs: AnyInputs  # its inputs: usually (channels, height, width) of one image
    channels: Channels | None  # what can be pruned; None: no channels
    goal: Goal  # the compression target
    task: Task  # what the network is for
    keep: tuple[str, ...] = ()  # patterns of layers to leave unchanged, for methods that work layer by layer
    macs: float = 0.0  # of the whole model, for the same methods
    round_to: int | None = None  # widths are multiples of this; None: automatic, per group (see widths.units)
    most: float = 0.95  # largest share of the channels of a group that may be pruned
    overhead: float = 0.0  # bytes of the ONNX file besides its weights, for a target of size
    curves: Mapping[str, Curve] | None = None  # sensitivity of each group, if it was measured
    guide: nn.Module | None = None  # the original, in eval mode on the device, if the recipe distils from it
    images: Looks | None = None  # what a method may use before training
    clock: Callable[[nn.Module, tuple[int, ...]], float] | None = None  # latency of a layer in ms for an input of this shape
    teacher: nn.Module | None = None  # the teacher of `model`; a method works on a copy
    taps: tuple[str, ...] = ()  # modules of `model` whose features are compared; empty: the ends of its stages
    teacher_taps: tuple[str, ...] = ()  # the same for the teacher
    trained: bool = False  # whether `model` has trained weights: its peers then start near them, not from scratch
    images_stay: bool = False  # whether images are the same in every epoch

    @property
    def objective(self) -> Objective:
        """What training minimises, unless a method defines it."""
        return Objective(self.task, self.guide)


@dataclass(frozen=True)
class Made:
    """The result of a method: the next step of the plan, and its entries in the report."""

    step: Cut | Chains = field(default_factory=Cut)
    difference: float | None = None  # between the compressed network and its dense equivalent; None: nothing was changed
    planned: Mapping[str, float] = field(default_factory=dict)  # "macs" and "params" with which the goal is met
    remarks: Mapping[str, str] = field(default_factory=dict)  # layer -> what was done to it, or why nothing was
    ranks: Mapping[str, int] = field(default_factory=dict)  # layer -> the rank of its factors
    frozen: Sequence[Frozen] = ()
    warnings: Sequence[str] = ()
    times: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # layer -> its latency alone in ms, before and after
    last: Mapping[str, str] = field(default_factory=dict)  # last layer of a chain -> the layer that the chain replaced


class Method(nn.Module):
    """Abstract. Parameters that require gradients are trained; `model` is evaluated and, in the end, kept.

    All state that a method keeps between epochs is a parameter or a buffer: it is then moved to the GPU and saved for
    `--resume` automatically.
    """

    augments: bool = True  # whether training images are augmented (random crops and flips)
    views: int = 1  # number of augmented views of each image in a batch
    by_class: int = 1  # number of consecutive images of one class in a batch
    recalibrates: bool = True  # whether batch-norm statistics are re-estimated after `prepare`
    earlier: float = 1.0  # epochs of the method that `first` returns, as a share of this one's

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.job = job
        self.model = clone_network(job.model)

    def first(self) -> Method | None:
        """A method to train before this one, for example to prepare a teacher; its result can be cached."""
        return None

    def prepare(self) -> None:
        """Called once, on the device, before the optimizer is built: the place to prune before training."""

    def begin_epoch(self, progress: Progress) -> None:
        """Called before the first batch of each epoch."""

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The weighted, named terms of the loss, each a scalar: the log has a column for each term of the paper's equation."""
        return self.job.objective.loss(self.job.task.call(self.model, batch.inputs), batch)

    def edit_gradients(self) -> None:
        """Called after the backward pass, before the optimizer's step."""

    def end_step(self, batch: Batch) -> None:
        """Called after the optimizer's step."""

    def end_epoch(self, progress: Progress) -> None:
        """Called after the last batch of each epoch, before the network is evaluated."""

    def shrink(self) -> Selection | None:
        """Remove channels that cannot recover from the network in training. Returns what remains; None if nothing changed.

        Called before the first epoch and after each but the last. Names in a selection are those of `named_parameters()`.
        """
        return None

    def finish(self) -> nn.Module:
        """The compressed network. Called once, after training."""
        return self.model

    def made(self) -> Made:
        """What was done to the network so far."""
        return Made()
