"""The interface of a task. Everything that needs labels, scores or a comparison of outputs asks the task of the run.

A file of this folder defines one task; its name is that of the file. Nothing outside this folder names a task.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from compressor.data import Batch, Data, input_shape
from compressor.errors import UsageError
from compressor.network.inputs import call
from compressor.network.meta_device import evaluating
from compressor.network.outputs import Predict, main_first
from compressor.network.tiles import in_tiles
from compressor.tasks.meter import Meter


def one_sample(data: Data) -> Batch:
    """What a network is checked with: zeros in the shape of the images, without a target; a sample of a user's own data."""
    if data.fit != "own":
        return Batch(torch.zeros(1, *input_shape(data)), None, torch.zeros(1, dtype=torch.int64))
    return next(iter(data.batches("train", batch_size=1, device="cpu", augment=False, limit=1)))


class Task(ABC):
    """Abstract. What a network is for."""

    name: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]]  # of the targets of data that it is for: see `Data.kind`
    labels: ClassVar[bool] = True  # whether its loss is one of labels
    output: ClassVar[str] = "logits"  # of the main output, in an ONNX file
    enlarges: ClassVar[bool] = False  # whether a part of each picture is shown enlarged

    def learning(self, model: nn.Module) -> AbstractContextManager[object]:
        """The mode in which `model` gives a loss without being trained: norms and dropout are fixed."""
        return evaluating(model)

    def call(self, model: Callable[..., Any], inputs: Any) -> Any:
        """The outputs of `model` for the inputs of a batch."""
        return call(model, inputs)

    def split(self, outputs: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The main output, and the auxiliary ones. Raises UsageError when there is no tensor."""
        main, *auxiliary = main_first(outputs)
        return main, tuple(auxiliary)

    def compared(self, outputs: Any) -> list[Tensor]:
        """What two networks are compared by, before any decoding."""
        return [self.split(outputs)[0]]

    @abstractmethod
    def loss(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """Named, weighted scalar terms. Each is a mean over the images of the batch."""

    @abstractmethod
    def distance(self, ours: Sequence[Tensor], theirs: Sequence[Tensor], temperature: float = 1.0) -> Tensor:
        """Between what `compared` gives for two networks: a scalar, at least 0, and 0 if they are equal.

        It is differentiable, and a mean over the images of the batch. Only a divergence of distributions has a temperature.
        """

    def decode(self, main: Tensor, batch: Batch) -> Any:
        """The answers to be scored, from the main output: masks, images. Those of some tasks depend on the targets' size."""
        return main

    @abstractmethod
    def meter(self) -> Meter:
        """Of the scores of a network: compares its answers with the targets."""

    @abstractmethod
    def likeness(self) -> Meter:
        """Of the agreement of two networks: compares the main outputs of one with those of the other."""

    def picture(self, answers: Any, index: int) -> Tensor | None:
        """One of the answers, or targets, as bytes [3, height, width] for people; None if there is nothing to look at."""
        return None

    def trained_with(self, label_smoothing: float) -> Task:
        """This task, with the settings of a recipe that are part of the loss. Raises UsageError for one that does not apply."""
        if label_smoothing:
            raise UsageError(f"--label-smoothing is for class labels, not for the task {self.name}: omit it.")
        return self

    def check(self, model: nn.Module, data: Data) -> None:  # noqa: B027  # not every task has something to check
        """Raise DataError when network and data do not belong together. The model is on the CPU, in eval mode."""

    # What follows is the same for all tasks

    def check_kind(self, data: Data) -> None:
        """Raise UsageError when `data` have not the kind of targets that this task needs."""
        if data.kind not in self.kinds:
            raise UsageError(
                f"--task {self.name} needs {' or '.join(self.kinds)} as targets, but {data.spec} has {data.kind}: "
                "give other data, or another --task."
            )

    def answers(self, predict: Predict, batch: Batch) -> Tensor:
        """The main output for a batch, put together from tiles where it asks for them.

        `predict` is `torch_predict` or `onnx_predict`. Raises UsageError for outputs that cannot be put together.
        """
        found: Tensor = self.call(in_tiles(predict, batch.tile), batch.inputs)
        return found

    def main_of(self, model: nn.Module, sample: Batch) -> Tensor:
        """The main output of a model on the CPU, in eval mode, for one sample; without gradients."""
        with torch.no_grad():
            return self.split(self.call(model, sample.inputs))[0]

    def main(self, model: nn.Module, batch: Batch) -> Tensor:
        """The same of a PyTorch network, where it is and as it is, in float32."""

        def predict(inputs: Any) -> Tensor:
            return self.split(self.call(model, inputs))[0].float()

        return in_tiles(predict, batch.tile)(batch.inputs)

    def score(self, meter: Meter, main: Tensor, batch: Batch) -> None:
        """Add the main output for a batch to the meter of a network."""
        meter.update(self.decode(main, batch), batch.targets, batch.indices)

    def measure(self, predict: Predict, batches: Iterable[Batch]) -> Meter:
        """The meter of a network, over all batches. Raises DataError without images."""
        meter = self.meter()
        for batch in batches:
            self.score(meter, self.answers(predict, batch), batch)
        return meter

    def measured(self, model: nn.Module, batches: Iterable[Batch]) -> Meter:
        """The same of a PyTorch network, where it is, in eval mode."""
        meter = self.meter()
        with evaluating(model), torch.inference_mode():
            for batch in batches:
                self.score(meter, self.main(model, batch), batch)
        return meter
