"""Recovery of accuracy after pruning or factoring, without training.

The batch-norm statistics of a pruned or factored network are those of the original: they are re-estimated (recalibrated), and
the consumers of pruned channels, or the last layer of each factored chain, are re-estimated by least squares (repaired). A
network that was trained until its weak channels were zero has statistics of its own, and needs new ones only if constants were
removed with the channels. Held-out images decide what is kept; the result is measured on the test images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import nn

from compressor.channels import Cut
from compressor.data import Batches, Data
from compressor.errors import VerificationFailed, first_line
from compressor.network.copying import clone_network
from compressor.network.meta_device import frozen
from compressor.recovery.recalibrate import recalibrate
from compressor.recovery.repair import refit
from compressor.report import Score, formatting
from compressor.runs.journal import Journal
from compressor.runs.stages import Stages
from compressor.training.method import Method
from compressor.training.train import HELD_OUT_BATCH

RECALIBRATION_IMAGES = 2048
NAMED = 3  # layers that were not repaired for the same reason are listed up to this number
NOT_FINITE = "not finite"
REPAIR_IMAGES, REPAIR_PIXELS = 512, 64 * 224 * 224  # number of training images, fewer if they are large


def recover(method: Method, stages: Stages, journal: Journal, seed: int, *, trained: bool, repair: bool) -> None:
    """Measure the network that `method` has made, before or after training (`trained`), and recover accuracy if possible."""
    stages.add("cut" if isinstance(method.made().step, Cut) else "factored", method.model)
    if stages.data is not None:
        recovery = _Recovery(method, stages.data, stages, journal, seed)
        recovery.after_training() if trained else recovery.after_cutting(repair)


class _Recovery:
    def __init__(self, method: Method, data: Data, stages: Stages, journal: Journal, seed: int) -> None:
        self.method, self.data, self.stages, self.journal, self.seed = method, data, stages, journal, seed
        self.small, self.device = method.model, stages.device

    def after_training(self) -> None:
        anew = clone_network(self.small)
        if images := self.recalibrated(anew):
            self.keep_if_better("recalibrated", [anew], _statistics_of(images))

    def after_cutting(self, repair: bool) -> None:
        bare, anew, decides = clone_network(self.small), clone_network(self.small), bool(self.data.counts["held_out"])
        if images := self.recalibrated(anew):
            if decides:
                self.keep_if_better("recalibrated", [anew], _statistics_of(images))
            else:
                self.small.load_state_dict(anew.state_dict())
                self.stages.add("recalibrated", self.small, note=_statistics_of(images))
        if repair and decides:
            self.repair(bare)

    def repair(self, fitted: nn.Module) -> None:
        """Re-estimate layers of `fitted`, the pruned network, by least squares; keep it, with or without new statistics, if
        it is better."""
        job, made = self.method.job, self.method.made()
        cut = made.step if isinstance(made.step, Cut) else Cut()
        images = min(REPAIR_IMAGES, max(1, REPAIR_PIXELS // math.prod(self.data.shape[1:])))
        try:
            done = refit(frozen(job.model, self.device), fitted, cut, self.some(images), job.inputs, made.last)
        except (RuntimeError, ValueError) as error:  # unusual networks may not support it, but the run can continue
            self.journal.say(f"repaired: skipped ({first_line(error)})")
            return
        if not done.layers:
            if done.left:
                self.journal.say(f"repaired: nothing{not_repaired(done.left)}")
            return
        anew = clone_network(fitted)
        networks = [fitted, anew] if self.recalibrated(anew) else [fitted]
        self.keep_if_better("repaired", networks, f"least squares against the original's feature maps{not_repaired(done.left)}")

    def keep_if_better(self, name: str, others: Sequence[nn.Module], note: str) -> None:
        """Continue with the best of `others`, unless the present network is better on held-out images."""
        held_out = self.data.batches("held_out", batch_size=HELD_OUT_BATCH, device=self.device)
        before, *after = (self.score(model, held_out) for model in (self.small, *others))
        best = max(after, key=_quality)
        values = [NOT_FINITE if score is None else formatting.score(score) for score in (before, best)]
        told = f"{note}; {' -> '.join(values)} of {self.data.counts['held_out']:,} held-out images"
        if _quality(best) < _quality(before):
            self.journal.say(f"{name}: discarded, because it does not help ({told})")
            return
        self.small.load_state_dict(others[after.index(best)].state_dict())
        self.stages.add(name, self.small, note=told)

    def score(self, model: nn.Module, held_out: Batches) -> Score | None:
        """The headline score of `model`; None if its outputs are not finite."""
        try:
            return self.stages.task.measured(model, held_out).compute(intervals=False)[0]
        except VerificationFailed:
            return None

    def recalibrated(self, model: nn.Module) -> int:
        """The number of images on which the statistics of `model` were re-estimated; 0 if it has none, or they are kept."""
        return recalibrate(model, self.some(RECALIBRATION_IMAGES)) if self.method.recalibrates else 0

    def some(self, images: int) -> Batches:
        """So many training images, without augmentation."""
        return self.data.batches("train", batch_size=128, device=self.device, seed=self.seed, augment=False, limit=images)


def _statistics_of(images: int) -> str:
    return f"batch-norm statistics of {images} training images"


def not_repaired(left: Mapping[str, str]) -> str:
    """The layers that were not re-estimated, by reason."""
    names: dict[str, list[str]] = {}
    for name, reason in left.items():
        names.setdefault(reason, []).append(name)
    return "".join(
        f"; not {', '.join(some[:NAMED])}{f' and {len(some) - NAMED} more' if len(some) > NAMED else ''} ({reason})"
        for reason, some in names.items()
    )


def _quality(score: Score | None) -> float:
    """The larger, the better."""
    return -math.inf if score is None else score.sign * score.value
