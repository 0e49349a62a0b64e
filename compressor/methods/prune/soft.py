"""Soft filter pruning during training: the algorithm that HFP, SFP, ASFP, SRFP, ASRFP, GHFP and PGMPF share.

Before training, and at the end of each epoch t = 0..T-1, in every layer l of N_l filters:

    weak: the floor(N_l P_l p_t) filters of smallest norm || W_{l,j} ||_2
    hard: the floor(N_l P_l p_t lambda_t) smallest among those
    W_{l,j} <- 0 if hard,  alpha_t W_{l,j} if weak,  unchanged otherwise

P_l is the final pruning rate of layer l. Each paper is defined by three schedules: the fraction of P_l pruned by epoch t
(`rate`, p_t), the factor of weak filters (`softness`, alpha_t), and the fraction of the weak filters that is pruned for good
(`hardness`, lambda_t). PGMPF also masks gradients. The weak filters are selected again after each epoch, so a filter whose
norm has grown recovers.

All layers have the same pruning rate. If the goal is a budget instead of a filter rate, P_l is the rate that meets the budget,
and single layers are rounded to meet it closely.

Design decisions for all of these methods:

- *Batch norm is masked with the filter.* The scale and shift of the batch norm after a weak filter are multiplied by the same
  factor (`mask_norms`). Otherwise a zeroed filter still contributes the constant beta to the next layer, and its removal
  changes the network. The drawback: the gradient of a ReLU at zero is zero, so a zeroed filter recovers only by its momentum.
  With `mask_norms=false` filters recover as in the original papers, and batch norm statistics re-estimated after the removal
  compensate for the constants.
- *Hard filters are kept at zero.* A zero gradient does not freeze a filter: weight decay and momentum still change it. Hard
  filters are therefore set to zero after every step, which works with any optimizer and needs no access to its state. The
  weights that consume them are zeroed too: they would only decay, but count in the norms of the filters they belong to.
- *Schedules end early enough.* In a training of three epochs, "from 0.8 T on" is never reached. Interpretation: the final state
  is reached at least one epoch before the end, so that the pruned network is fine-tuned for one epoch.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from compressor.methods.prune.filters import FilterPruning, weakest
from compressor.methods.widths import uniform
from compressor.training.method import Job, Progress

NOTHING = 1e-4  # a softness below this counts as 0


def near_end(progress: Progress, share: float) -> bool:
    """Whether this epoch is in the last part of training: from the fraction `share` on, at least one epoch before the end."""
    return progress.epoch >= min(share * progress.epochs, progress.epochs - 2)


def asymptotic(progress: Progress, settled: float) -> float:
    """p_t = 1 - exp(-k t), k = ln 4 / (T/8): 0 in epoch 0, 3/4 after T/8, 1 from the fraction `settled` of training on.

    He, Dong, Kang, Fu, Yan, Yang: "Asymptotic Soft Filter Pruning", IEEE Trans. Cybernetics 2019, arXiv 1808.07471, equation 5;
    the closed form is that of Cai et al.
    """
    if near_end(progress, settled):
        return 1.0
    return 1 - math.exp(-math.log(4) / (progress.epochs / 8) * progress.epoch)


def decaying(progress: Progress, start: float, end: float, zero: float) -> float:
    """alpha_t = start exp(-kappa t), with alpha_T close to `end`; 0 from the fraction `zero` of training on."""
    if near_end(progress, zero):
        return 0.0
    kappa = -math.log(end / (start + 0.01 * end)) / progress.epochs
    alpha = start * math.exp(-kappa * progress.epoch)
    return alpha if alpha >= NOTHING else 0.0


def cubic(progress: Progress, full: float) -> float:
    """lambda_t = 1 - (1 - (t+1)/T)^3; 1 from the fraction `full` of training on."""
    return 1.0 if near_end(progress, full) else 1 - (1 - (progress.epoch + 1) / progress.epochs) ** 3


class SoftPruning(FilterPruning):
    """Abstract. Scales down the smallest filters of every layer after each epoch, and removes them after training."""

    def __init__(self, job: Job, mask_norms: bool) -> None:
        super().__init__(job)
        self.mask_norms = mask_norms
        kept = weakest(job, self.channels, uniform(self.channels, self.scores(self.channels)))
        self.sizes = np.array([group.size for group in self.channels.groups], np.int64)  # N_l
        self.counts = np.array([int((~own).sum()) for own in self.channels.split(kept).values()], np.int64)
        share = job.goal.share if job.goal.quantity == "filters" else None
        self.shares = self.counts / self.sizes if share is None else np.full(len(self.sizes), share)  # P_l

    # What papers override ---------------------------------------------------------------------------------------------

    def rate(self, progress: Progress) -> float:
        """The fraction of P_l that is pruned at the end of this epoch, p_t."""
        return 1.0

    def softness(self, progress: Progress) -> float:
        """The factor of weak filters at the end of this epoch, alpha_t."""
        return 0.0

    def hardness(self, progress: Progress) -> float:
        """The fraction of the weak filters that is hard from the end of this epoch on, lambda_t."""
        return 0.0

    # The loop ---------------------------------------------------------------------------------------------------------

    def edit_gradients(self) -> None:
        if self.holds:
            self.scale_gradients((~self.hard).float(), self.mask_norms)

    def end_epoch(self, progress: Progress) -> None:
        self.weaken(self.rate(progress), self.softness(progress), self.hardness(progress))

    def weaken(self, rate: float, softness: float, hardness: float) -> None:
        """Select weak and hard filters by their current norms, and scale their weights."""
        scores = np.where(self.hard.cpu().numpy(), -1.0, self.scores(self.channels))  # so that hard filters stay hard
        parts = self.channels.split(scores).values()
        ranks = [np.argsort(np.argsort(own, kind="stable"), kind="stable") for own in parts]  # 0: the smallest of its layer
        for mask, share in ((self.weak, rate), (self.hard, rate * hardness)):
            smallest = np.concatenate([rank < n for rank, n in zip(ranks, self.pruned(share), strict=True)])
            mask.copy_(torch.from_numpy(smallest))
        self.scale_weights(torch.where(self.weak, softness, 1.0), self.mask_norms)
        self.hold()

    def pruned(self, share: float) -> np.typing.NDArray[np.int64]:
        """The number of filters to prune in each layer [layers] at the fraction `share` of P_l."""
        return np.minimum(np.floor(self.sizes * self.shares * share + 1e-9).astype(np.int64), self.counts)
