"""Without labels: a network is trained, chosen and scored by how near its outputs are to those of the original."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compressor.data import Batch
from compressor.network.outputs import tensors_in
from compressor.tasks.likeness import RelativeError
from compressor.tasks.meter import Meter
from compressor.tasks.task import Task

TINY = 1e-12


@dataclass(frozen=True)
class Imitate(Task):
    """The squared error of all outputs, relative to the outputs of `original`, which is in eval mode on the batches' device."""

    name = "imitate"
    kinds = ("classes", "masks", "images", "nothing")
    labels = False
    output = "output"

    original: nn.Module

    def compared(self, outputs: Any) -> list[Tensor]:
        return [tensor for tensor in tensors_in(outputs) if tensor.is_floating_point()]

    def loss(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            wanted = self.compared(self.call(self.original, batch.inputs))
        return {"imitation": self.distance(self.compared(outputs), wanted)}

    def distance(self, ours: Sequence[Tensor], theirs: Sequence[Tensor], temperature: float = 1.0) -> Tensor:
        """The mean over all outputs of the squared error, divided by the mean square of the original's output."""
        pairs = [(a.float(), b.float()) for a, b in zip(ours, theirs, strict=True)]
        return torch.stack([(a - b).square().mean() / b.square().mean().clamp(min=TINY) for a, b in pairs]).mean()

    def meter(self) -> Meter:
        return RelativeError()

    def likeness(self) -> Meter:
        return RelativeError()

    def score(self, meter: Meter, main: Tensor, batch: Batch) -> None:
        """Against the main output of the original."""
        with torch.inference_mode():
            wanted = self.main(self.original, batch)
        meter.update(main, wanted, batch.indices)
