"""Which task a run is for: the one that is asked for, or the one that the data and the network's outputs say."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from compressor.data import Data
from compressor.errors import UsageError, did_you_mean
from compressor.network.inputs import Inputs
from compressor.network.meta_device import frozen
from compressor.network.outputs import logits_of, tensors_in
from compressor.tasks.classify import Classify
from compressor.tasks.imitate import Imitate
from compressor.tasks.restore import Restore
from compressor.tasks.segment import Segment
from compressor.tasks.task import Task

Maker = Callable[[nn.Module, Data | None, torch.device], Task]


def _segment(model: nn.Module, data: Data | None, device: torch.device) -> Task:
    return Segment(tuple(data.classes) if data is not None else ())


def _restore(model: nn.Module, data: Data | None, device: torch.device) -> Task:
    if data is None:
        return Restore()
    batch = next(iter(data.batches("train", batch_size=1, device="cpu", augment=False)))
    image = next((tensor for tensor in tensors_in(batch.inputs) if tensor.dim() == 4), batch.targets)
    scale = batch.targets.shape[-1] // image.shape[-1]  # images of training are not padded
    return Restore(data.max_value, scale, bgr=data.color == "bgr")


def _imitate(model: nn.Module, data: Data | None, device: torch.device) -> Task:
    return Imitate(frozen(model, device))


TASKS: dict[str, Maker] = {
    "classify": lambda model, data, device: Classify(),
    "segment": _segment,
    "restore": _restore,
    "imitate": _imitate,
}
OF_KIND = {"classes": "classify", "masks": "segment", "images": "restore", "nothing": "imitate"}


def find_task(name: str | None, model: nn.Module, inputs: Inputs, data: Data | None, device: torch.device) -> Task:
    """The task `name`; None: by the kind of targets in `data`, or without data by the outputs of `model`, which is on the CPU.

    Raises UsageError for an unknown name, and for data of another kind.
    """
    if name is not None and name not in TASKS:
        raise UsageError(f"--task {name} is not one of {', '.join(TASKS)}{did_you_mean(name, TASKS) or '.'}")
    if name is None:
        name = OF_KIND[data.kind] if data is not None else _by_outputs(model, inputs)
    task = TASKS[name](model, data, device)
    if data is not None:
        task.check_kind(data)
    return task


def _by_outputs(model: nn.Module, inputs: Inputs) -> str:
    with torch.no_grad():
        output = logits_of(inputs.call(model.eval(), inputs.random(1, like=model)))
    return "classify" if output.dim() == 2 and output.shape[1] > 1 else "imitate"
