"""What a cut costs is made up for without training, as far as that goes: statistics first, then the layers behind the cut.

Each step is measured on the test images; whether a repair is kept is up to the held-out images.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import nn

from compressor.data import Batches, Data
from compressor.filters import FilterPruning
from compressor.journal import Journal
from compressor.recalibrate import recalibrate
from compressor.repair import refit
from compressor.report import figures
from compressor.runtime import first_line
from compressor.stages import Stages
from compressor.train import HELD_OUT_BATCH, frozen, top1

RECALIBRATION_IMAGES = 2048
REPAIR_IMAGES, REPAIR_PIXELS = 512, 64 * 224 * 224  # so many training images, fewer where they are large

Some = Callable[[int], Batches]


def recover(method: FilterPruning, stages: Stages, journal: Journal, seed: int, repair: bool) -> None:
    """Measure the network that `method` has cut; then with statistics of its own, and repaired if that is better."""
    small, data = method.model, stages.data
    stages.add("cut", small)
    if data is None:
        return

    def some(images: int) -> Batches:
        """Training images as they are."""
        return data.batches("train", batch_size=128, device=stages.device, seed=seed, augment=False, limit=images)

    repaired: list[nn.Module] = []
    if repair:
        try:
            repaired = _repaired(method, data, some)
        except (RuntimeError, ValueError) as error:  # a network may do what nobody thought of; the run need not end for that
            journal.say(f"repair was left away: {first_line(error)}")
    if images := recalibrate(small, some(RECALIBRATION_IMAGES)):
        stages.add("recalibrated", small, note=f"batch-norm statistics of {images} training images")
    held_out = data.batches("held_out", batch_size=HELD_OUT_BATCH, device=stages.device)
    if not repaired or not len(held_out):
        return
    before, *after = (top1(model, held_out) or 0.0 for model in (small, *repaired))
    told = f"{figures.percent(before)} -> {figures.percent(max(after))} of {data.counts['held_out']:,} held-out images"
    if max(after) <= before:
        journal.say(f"repair does not help, and is left away: {told}")
        return
    small.load_state_dict(repaired[after.index(max(after))].state_dict())
    stages.add("repaired", small, note=told)


def _repaired(method: FilterPruning, data: Data, some: Some) -> list[nn.Module]:
    """The cut network with what reads cut channels refitted: with the statistics that come of that, and with new ones.

    None when no layer could be refitted.
    """
    assert method.removed is not None, "it has cut"
    original, fitted = frozen(method.job.model, method.weak.device), copy.deepcopy(method.model)
    images = min(REPAIR_IMAGES, max(1, REPAIR_PIXELS // (data.shape[1] * data.shape[2])))
    if not refit(original, fitted, method.removed.cut, some(images), method.job.inputs).layers:
        return []
    anew = copy.deepcopy(fitted)
    return [fitted, anew] if recalibrate(anew, some(RECALIBRATION_IMAGES)) else [fitted]
