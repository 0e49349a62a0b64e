"""Soft filter pruning: filters set to zero after each epoch may come back in the next.

He, Kang, Dong, Fu, Yang: "Soft Filter Pruning for Accelerating Deep Convolutional Neural Networks", IJCAI 2018,
arXiv 1808.06866.

    s_{l,j} = || W_{l,j} ||_2                          (section 3.2: the norm of filter j of layer l)
    W_{l,j} <- 0 for the floor(N_l P) filters of smallest s of each layer, after every epoch

Every layer gives the same share P of its filters; no layer is ranked against another. Gradients, and the optimizer's
momentum, are untouched, so a zeroed filter trains on and may re-enter. After the last epoch the zeroed filters are removed.

When the goal is a budget instead of a rate of filters, P is the rate that meets it; layers round in turn to meet it closely.
Unlike the paper: the scale and shift of the batch norm behind a zeroed filter are set to zero too (`mask_norms`). Otherwise its
constant output feeds the next layer, and removing the filter changes the network. The price is that a ReLU behind a norm that
answers zero passes no gradient: such a filter comes back only by the momentum it still had. With `mask_norms=false` filters
re-enter as in the paper, and the statistics measured after the cut make up for the constants that are gone.
"""

import numpy as np
import torch

from compressor import budget
from compressor.budget import Scores
from compressor.channels import Channels
from compressor.filters import FilterPruning, norms, weakest
from compressor.method import Job, Progress


class SFP(FilterPruning):
    """Zeroes the smallest filters of every layer after each epoch, lets them train on, and removes them at the end.

    mask_norms: zero the batch norm's scale and shift of a zeroed filter too: its removal is exact, its return unlikely
    """

    paper = "He et al., IJCAI 2018 (arXiv 1808.06866)"
    trains = True

    def __init__(self, job: Job, *, mask_norms: bool = True) -> None:
        super().__init__(job)
        self.mask_norms = mask_norms
        kept = weakest(job, self.channels, budget.uniform(self.channels, self.scores(self.channels)))
        self.counts = [int((~own).sum()) for own in self.channels.split(kept).values()]  # filters that go, by group

    def scores(self, channels: Channels) -> Scores:
        return norms(self.model, channels)

    def prepare(self) -> None:
        self.zero()

    def end_epoch(self, progress: Progress) -> None:
        self.zero()

    def zero(self) -> None:
        """Choose the weak filters anew from their present norms, and set them to zero."""
        parts = self.channels.split(self.scores(self.channels)).values()
        weak = [
            np.argsort(np.argsort(own, kind="stable"), kind="stable") < n for own, n in zip(parts, self.counts, strict=True)
        ]
        self.weak.copy_(torch.from_numpy(np.concatenate(weak)))
        self.scale_weights(0.0, norms=self.mask_norms)
