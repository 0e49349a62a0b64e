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
from compressor.errors import DataError, UsageError
from compressor.methods.widths import Scores
from compressor.network.inputs import Inputs
from compressor.network.outputs import logits_of
from compressor.runs.evaluation_batch import batch_for
from compressor.runs.sensitivity_table import Row
from compressor.runs.sources import Opened
from compressor.tasks import metrics

HELD_OUT_IMAGES, RANDOM_INPUTS = 2000, 64
RANDOM_BATCH = 8
DIGITS = 6  # decimal places in the table


@dataclass(frozen=True)
class Sample:
    """What the networks are evaluated on: batches with one tensor for each input, and the labels [n] if there are any."""

    batches: list[list[Tensor]]
    targets: Tensor | None
    name: str

    @staticmethod
    def take(opened: Opened, count: int | None, device: torch.device, seed: int) -> Sample:
        """`count` held-out images, evenly spaced; random inputs without data. Raises DataError when none are held out."""
        data = opened.data
        if data is None:
            count = count or RANDOM_INPUTS
            drawn = opened.inputs.random(count, seed, opened.loaded.model.to(device))
            return Sample(
                [list(batch) for batch in zip(*(torch.split(t, RANDOM_BATCH) for t in drawn), strict=True)],
                None,
                "random inputs",
            )
        if not data.counts.get("held_out"):
            raise DataError(
                f"{data.spec} has no held-out images, and test images must not be used: have it return held-out images."
            )
        size = batch_for(opened.loaded.model.to(device), opened.inputs)
        read = list(data.batches("held_out", batch_size=size, device=device, limit=count or HELD_OUT_IMAGES))
        return Sample([[batch.images] for batch in read], torch.cat([batch.targets for batch in read]).cpu(), "held-out images")

    @property
    def described(self) -> str:
        return f"{sum(len(tensors[0]) for tensors in self.batches):,} {self.name}"

    def ask(self, model: nn.Module, inputs: Inputs) -> Tensor:
        """The logits [n, classes] on the CPU; one row per pixel if the network classifies pixels. Raises UsageError."""
        with torch.inference_mode():
            answers = [logits_of(inputs.call(model.eval(), tensors)).float().cpu() for tensors in self.batches]
        if answers[0].dim() < 2 or len({answer.shape[1:] for answer in answers}) > 1:
            raise UsageError("The network does not output logits of classes: its sensitivity cannot be measured.")
        return torch.cat([answer.movedim(1, -1).flatten(0, -2) for answer in answers])


class Bench:
    """The network, and its logits without pruning."""

    def __init__(self, model: nn.Module, inputs: Inputs, channels: Channels, sample: Sample) -> None:
        self.model, self.inputs, self.channels, self.sample = model, inputs, channels, sample
        self.before = sample.ask(model, inputs)  # [n, classes]

    def rows(self, group: Group, scores: Scores, rates: Sequence[float]) -> list[Row]:
        """A row for the original, and one for each rate, with the lowest-scored channels of one group pruned.

        `scores` [group.size]. Empty when the group cannot be pruned.
        """
        order = np.argsort(scores, kind="stable")
        rows = [self._row(group, 0.0, np.ones(group.size, bool), self.before)]
        for rate in rates:
            kept = np.ones(group.size, bool)
            kept[order[: min(max(round(rate * group.size), 1), group.size - 1)]] = False
            small = self._cut(group, kept)
            if small is None:
                return []
            rows.append(self._row(group, rate, kept, self.sample.ask(small, self.inputs)))
        return rows

    def _cut(self, group: Group, kept: Mask) -> nn.Module | None:
        """The verified network in which one group keeps only `kept` [group.size]; None when it cannot be pruned."""
        removed = remove(self.model, self.channels, lambda channels: channels.join({group.name: kept}), self.inputs)
        return None if removed.mask.all() else removed.model

    def _row(self, group: Group, rate: float, kept: Mask, after: Tensor) -> Row:
        whole, mask = self.channels.all_kept(), self.channels.join({group.name: kept})
        shares = [1 - table.total(mask) / table.total(whole) for table in (self.channels.macs, self.channels.params)]
        targets = self.sample.targets
        blank = torch.zeros(0)
        closeness = metrics.fidelity(lambda _: self.before, lambda _: after, [Batch(blank, blank, blank)], self.sample.name)
        accuracy = None if targets is None else metrics.accuracy(lambda logits: logits, [Batch(after, targets, blank)]).top1
        rest = [round(figure, DIGITS) for figure in (closeness.agreement, closeness.mean_kl, *shares)]
        return Row(group.name, group.size, rate, int(kept.sum()), accuracy, *rest)
