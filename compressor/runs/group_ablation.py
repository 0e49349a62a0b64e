"""Ablation of one group of coupled channels: it alone is pruned, verified, and evaluated; the results are rows of a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from compressor.channels import Channels, Mask, remove
from compressor.channels.groups import Group
from compressor.data import Batch
from compressor.errors import DataError
from compressor.methods.widths import Scores
from compressor.network.inputs import Inputs
from compressor.network.outputs import torch_predict
from compressor.runs.evaluation_batch import batch_for
from compressor.runs.sensitivity_table import Row
from compressor.runs.sources import Opened
from compressor.tasks import Task

HELD_OUT_IMAGES = 2000
MOST = 2**30  # bytes of outputs of the original, which limit the number of images
DIGITS = 6  # decimal places in the table


@dataclass(frozen=True)
class Sample:
    """The held-out images that networks are evaluated on, and the outputs of the original for them."""

    batches: list[Batch]
    outputs: list[Tensor]  # on the CPU

    @staticmethod
    def take(opened: Opened, task: Task, count: int | None, device: torch.device) -> Sample:
        """`count` held-out images, evenly spaced, or as many as there is memory for.

        Raises DataError when none are held out.
        """
        data, model = opened.data, opened.loaded.model
        assert data is not None, "checked by the command"
        if not data.counts.get("held_out"):
            raise DataError(
                f"{data.spec} has no held-out images, and test images must not be used: have it return held-out images."
            )
        predict, batches, outputs, size = torch_predict(model, device), list[Batch](), list[Tensor](), 0
        together = batch_for(model, opened.inputs)
        for batch in data.batches("held_out", batch_size=together, device=device, limit=count or HELD_OUT_IMAGES):
            answers = task.answers(predict, batch).cpu()
            if batches and (size := size + answers.nbytes) > MOST:
                break
            batches.append(batch)
            outputs.append(answers)
        return Sample(batches, outputs)

    @property
    def described(self) -> str:
        return f"{sum(batch.size for batch in self.batches):,} held-out images"


class Bench:
    """The network, and what pruned ones are compared with."""

    def __init__(self, model: nn.Module, inputs: Inputs, channels: Channels, sample: Sample, task: Task) -> None:
        self.model, self.inputs, self.channels, self.sample, self.task = model, inputs, channels, sample, task

    def rows(self, group: Group, scores: Scores, rates: Sequence[float]) -> list[Row]:
        """A row for the original, and one for each rate, with the lowest-scored channels of one group pruned.

        `scores` [group.size]. Empty when the group cannot be pruned.
        """
        order = np.argsort(scores, kind="stable")
        rows = [self._row(group, 0.0, np.ones(group.size, bool), self.model)]
        for rate in rates:
            kept = np.ones(group.size, bool)
            kept[order[: min(max(round(rate * group.size), 1), group.size - 1)]] = False
            small = self._cut(group, kept)
            if small is None:
                return []
            rows.append(self._row(group, rate, kept, small))
        return rows

    def _cut(self, group: Group, kept: Mask) -> nn.Module | None:
        """The verified network in which one group keeps only `kept` [group.size]; None when it cannot be pruned."""
        removed = remove(self.model, self.channels, lambda channels: channels.join({group.name: kept}), self.inputs)
        return None if removed.mask.all() else removed.model

    def _row(self, group: Group, rate: float, kept: Mask, network: nn.Module) -> Row:
        whole, mask = self.channels.all_kept(), self.channels.join({group.name: kept})
        shares = [1 - table.total(mask) / table.total(whole) for table in (self.channels.macs, self.channels.params)]
        meter, likeness = self.task.meter(), self.task.likeness()
        predict = torch_predict(network, self.sample.batches[0].indices.device)
        for batch, wanted in zip(self.sample.batches, self.sample.outputs, strict=True):
            answers = self.task.answers(predict, batch)
            self.task.score(meter, answers, batch)
            likeness.update(answers, wanted, batch.indices)
        (score, *_), (alike, *further) = meter.compute(intervals=False), likeness.compute(intervals=False)
        agreement = alike.value if alike.more_is_better else max(0.0, 1 - alike.value)
        is_share = score.unit == "%" and score.more_is_better
        figures = (score.value if is_share else agreement, agreement, further[0].value if further else alike.value, *shares)
        measured = score.label if is_share else "agreement with the original"
        return Row(group.name, group.size, rate, int(kept.sum()), measured, *(round(figure, DIGITS) for figure in figures))
