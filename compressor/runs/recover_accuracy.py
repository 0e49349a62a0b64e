"""What a cut costs, or a factoring, is made up for without training, as far as that goes.

A network that was changed carries the statistics of another one: they are measured anew, and what reads something else than
before is refitted, in a factored layer the last of its chain. One that was trained until its weak channels were zero has
statistics of its own, and needs new ones only where constants went with the channels. Held-out images decide; what is kept is
measured on the test images.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import nn

from compressor.channels import Cut
from compressor.data import Batches, Data
from compressor.errors import first_line
from compressor.network.meta_device import frozen
from compressor.recovery.recalibrate import recalibrate
from compressor.recovery.repair import refit
from compressor.report import formatting
from compressor.runs.journal import Journal
from compressor.runs.stages import Stages
from compressor.training.method import Method
from compressor.training.train import HELD_OUT_BATCH, top1

RECALIBRATION_IMAGES = 2048
REPAIR_IMAGES, REPAIR_PIXELS = 512, 64 * 224 * 224  # so many training images, fewer where they are large


def recover(method: Method, stages: Stages, journal: Journal, seed: int, *, trained: bool, repair: bool) -> None:
    """Measure the network that `method` has made, before it was `trained` or after, and make it better where that works."""
    stages.add("cut" if isinstance(method.made().step, Cut) else "factored", method.model)
    if stages.data is not None:
        recovery = _Recovery(method, stages.data, stages, journal, seed)
        recovery.after_training() if trained else recovery.after_cutting(repair)


class _Recovery:
    def __init__(self, method: Method, data: Data, stages: Stages, journal: Journal, seed: int) -> None:
        self.method, self.data, self.stages, self.journal, self.seed = method, data, stages, journal, seed
        self.small, self.device = method.model, stages.device

    def after_training(self) -> None:
        anew = copy.deepcopy(self.small)
        if images := self.recalibrated(anew):
            self.keep_if_better("recalibrated", [anew], _statistics_of(images))

    def after_cutting(self, repair: bool) -> None:
        bare = copy.deepcopy(self.small)
        if images := self.recalibrated(self.small):
            self.stages.add("recalibrated", self.small, note=_statistics_of(images))
        repaired = self.repaired(bare) if repair and self.data.counts["held_out"] else []
        if repaired:
            self.keep_if_better("repaired", repaired, "refitted to what the original gives")

    def repaired(self, fitted: nn.Module) -> list[nn.Module]:
        """The network as it was cut, refitted: with the statistics that come of that, and with new ones; or none."""
        job, made = self.method.job, self.method.made()
        cut = made.step if isinstance(made.step, Cut) else Cut()
        images = min(REPAIR_IMAGES, max(1, REPAIR_PIXELS // (self.data.shape[1] * self.data.shape[2])))
        try:
            done = refit(frozen(job.model, self.device), fitted, cut, self.some(images), job.inputs, made.last)
        except (RuntimeError, ValueError) as error:  # a network may do what nobody thought of; the run need not end for that
            self.journal.say(f"repaired: left away ({first_line(error)})")
            return []
        if not done.layers:
            return []
        anew = copy.deepcopy(fitted)
        return [fitted, anew] if self.recalibrated(anew) else [fitted]

    def keep_if_better(self, name: str, others: Sequence[nn.Module], note: str) -> None:
        """Go on with the best of `others`, unless the network as it is does better on held-out images."""
        held_out = self.data.batches("held_out", batch_size=HELD_OUT_BATCH, device=self.device)
        before, *after = (top1(model, held_out) or 0.0 for model in (self.small, *others))
        best = after.index(max(after))
        count = self.data.counts["held_out"]
        told = f"{note}; {formatting.percent(before)} -> {formatting.percent(after[best])} of {count:,} held-out images"
        if after[best] < before:
            self.journal.say(f"{name}: left away, for it does not help ({told})")
            return
        self.small.load_state_dict(others[best].state_dict())
        self.stages.add(name, self.small, note=told)

    def recalibrated(self, model: nn.Module) -> int:
        """On how many images the statistics of `model` were measured anew; 0 when it has none, or they are to stay."""
        return recalibrate(model, self.some(RECALIBRATION_IMAGES)) if self.method.recalibrates else 0

    def some(self, images: int) -> Batches:
        """So many training images as they are."""
        return self.data.batches("train", batch_size=128, device=self.device, seed=self.seed, augment=False, limit=images)


def _statistics_of(images: int) -> str:
    return f"batch-norm statistics of {images} training images"
