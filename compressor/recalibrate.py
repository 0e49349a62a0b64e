"""Batch-norm statistics measured anew: after a cut, the means and variances that a network carries are of another network."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from compressor.method import Batch


def recalibrate(model: nn.Module, batches: Iterable[Batch]) -> int:
    """Replace running means and variances by plain averages over `batches` (unaugmented training images, labels unused).

    Only batch norms run in train mode, so dropout stays off and no weight moves. Returns how many images were used; 0 when the
    model has no batch norm with statistics.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return 0
    was_training, momenta = model.training, [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's word for a cumulative average
        norm.train()
    images = 0
    try:
        with torch.no_grad():
            for batch in batches:
                model(batch.images)
                images += len(batch.images)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        model.train(was_training)
    return images
