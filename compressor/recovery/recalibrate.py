"""Recalibration of batch norms: after pruning, the running means and variances are still those of the original network."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from compressor.data import Batch
from compressor.network.inputs import call
from compressor.network.meta_device import evaluating


def recalibrate(model: nn.Module, batches: Iterable[Batch]) -> int:
    """Replace running means and variances by plain averages over `batches` (unaugmented training images, labels unused).

    Only batch norms run in train mode, so dropout stays off and no weight changes. Returns the number of images used; 0 if the
    model has no batch norm with running statistics, or there were no images: then the statistics do not change.
    """
    norms = [m for m in nn.Module.modules(model) if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return 0
    before = [(norm, norm.momentum, copy.deepcopy(norm.state_dict())) for norm in norms]
    images = 0
    with evaluating(model), torch.no_grad():
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative average, in torch
            norm.train()
        try:
            for batch in batches:
                call(model, batch.inputs)
                images += batch.size
        finally:
            for norm, momentum, state in before:
                norm.momentum = momentum
                if not images:
                    norm.load_state_dict(state)
    return images
