"""Pruning while training: what HFP, SFP, ASFP, SRFP, ASRFP, GHFP and PGMPF share, so that their files show how they differ.

Before training, and at the end of each epoch t = 0..T-1, in every layer l of N_l filters:

    weak: the floor(N_l P_l p_t) filters of smallest norm || W_{l,j} ||_2
    hard: the floor(N_l P_l p_t lambda_t) smallest among those
    W_{l,j} <- 0 where hard,  alpha_t W_{l,j} where weak,  as it is elsewhere

P_l is the share of filters that goes in the end. A paper is three schedules: how much of it goes by now (`rate` p_t), what is
left of a weak filter (`softness` alpha_t), and how many of the weak can never come back (`hardness` lambda_t); PGMPF adds what
it does to gradients. The mask is chosen anew each time, so a weak filter that grew comes back.

Every layer gives the same share. When the goal is a budget instead of a rate of filters, that share is the one that meets the
budget; layers round in turn to meet it closely.

Decided here, for all of them:

- *Norms follow the mask.* The scale and shift of the batch norm behind a weak filter are scaled with it (`mask_norms`).
  Otherwise the constant that a norm answers to nothing feeds the next layer, and removing the filter changes the network.
  The price: a ReLU behind a norm that answers zero passes no gradient, so a filter at zero comes back only by the momentum it
  had. With `mask_norms=false` filters re-enter as in the first papers, and statistics measured after the cut make up for the
  constants that are gone.
- *Hard filters are held.* A gradient of zero does not stop a filter: weight decay and momentum move it on. After every
  step hard filters are set to zero again, which freezes them under any optimizer, without a look at its state. So are the
  weights that read them, which would only decay, but count in the norms of the filters that they belong to.
- *The end comes early enough.* "From 0.8 T" leaves nothing of a training of three epochs. Interpretation: what is to hold at
  the end holds at the latest one epoch before it, so that the network that remains trains once as it is.
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
    """Whether the end of this epoch belongs to the last part of training: from `share` of it on, or before the last epoch."""
    return progress.epoch >= min(share * progress.epochs, progress.epochs - 2)


def asymptotic(progress: Progress, settled: float) -> float:
    """p_t = 1 - exp(-k t) with k = ln 4 / (T/8): 0 at first, 3/4 after an eighth of training, 1 from the share `settled` on.

    He, Dong, Kang, Fu, Yan, Yang: "Asymptotic Soft Filter Pruning", IEEE Trans. Cybernetics 2019, arXiv 1808.07471, equation 5;
    the closed form is that of Cai et al.
    """
    if near_end(progress, settled):
        return 1.0
    return 1 - math.exp(-math.log(4) / (progress.epochs / 8) * progress.epoch)


def decaying(progress: Progress, start: float, end: float, zero: float) -> float:
    """alpha_t = start exp(-kappa t), which would be `end` after the last epoch; nothing from the share `zero` on."""
    if near_end(progress, zero):
        return 0.0
    kappa = -math.log(end / (start + 0.01 * end)) / progress.epochs
    alpha = start * math.exp(-kappa * progress.epoch)
    return alpha if alpha >= NOTHING else 0.0


def cubic(progress: Progress, full: float) -> float:
    """lambda_t = 1 - (1 - (t+1)/T)^3: fast at first, 1 from the share `full` of training on."""
    return 1.0 if near_end(progress, full) else 1 - (1 - (progress.epoch + 1) / progress.epochs) ** 3


class SoftPruning(FilterPruning):
    """Abstract. Weakens the smallest filters of every layer after each epoch, and removes them in the end."""

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
        """The share of P_l that is pruned by the end of this epoch, p_t."""
        return 1.0

    def softness(self, progress: Progress) -> float:
        """What weak filters are multiplied by at the end of this epoch, alpha_t."""
        return 0.0

    def hardness(self, progress: Progress) -> float:
        """The share of the weak that is hard from the end of this epoch on, lambda_t."""
        return 0.0

    # The loop ---------------------------------------------------------------------------------------------------------

    def edit_gradients(self) -> None:
        if self.holds:
            self.scale_gradients((~self.hard).float(), self.mask_norms)

    def end_epoch(self, progress: Progress) -> None:
        self.weaken(self.rate(progress), self.softness(progress), self.hardness(progress))

    def weaken(self, rate: float, softness: float, hardness: float) -> None:
        """Choose weak and hard filters anew from their present norms, and weaken them."""
        scores = np.where(self.hard.cpu().numpy(), -1.0, self.scores(self.channels))  # whatever else is zero: hard stays hard
        parts = self.channels.split(scores).values()
        ranks = [np.argsort(np.argsort(own, kind="stable"), kind="stable") for own in parts]  # 0: the smallest of its layer
        for mask, share in ((self.weak, rate), (self.hard, rate * hardness)):
            smallest = np.concatenate([rank < n for rank, n in zip(ranks, self.pruned(share), strict=True)])
            mask.copy_(torch.from_numpy(smallest))
        self.scale_weights(torch.where(self.weak, softness, 1.0), self.mask_norms)
        self.hold()

    def pruned(self, share: float) -> np.typing.NDArray[np.int64]:
        """How many filters of each layer are pruned when this share of P_l is [layers]."""
        return np.minimum(np.floor(self.sizes * self.shares * share + 1e-9).astype(np.int64), self.counts)
