"""Batch-norm statistics measured anew: after a cut, the means and variances that a network carries are of another network."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from compressor.data import Batch
from compressor.network.meta_device import evaluating


def recalibrate(model: nn.Module, batches: Iterable[Batch]) -> int:
    """Replace running means and variances by plain averages over `batches` (unaugmented training images, labels unused).

    Only batch norms run in train mode, so dropout stays off and no weight moves. Returns how many images were used; 0 when the
    model has no batch norm with statistics, or there were no images: then the old statistics stay.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return 0
    before = [(norm, norm.momentum, copy.deepcopy(norm.state_dict())) for norm in norms]
    images = 0
    with evaluating(model), torch.no_grad():
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # torch's word for a cumulative average
            norm.train()
        try:
            for batch in batches:
                model(batch.images)
                images += len(batch.images)
        finally:
            for norm, momentum, state in before:
                norm.momentum = momentum
                if not images:
                    norm.load_state_dict(state)
    return images
