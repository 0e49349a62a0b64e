"""Group Fisher pruning: the importance of coupled channels is the Fisher information of a shared gate.

Liu, Zhang, Kuang, Zhou, Xue, Wang, Chen, Yang, Liao, Zhang: "Group Fisher Pruning for Practical Network Compression",
ICML 2021, arXiv 2108.00708, section 3.

    s_i = sum over images n of ( dL_n / dm_i )^2,    dL_n / dm_i = sum over the layers X that consume channel i of dL_n / dm_i^X

The gate m_i = 1 multiplies channel i at its consumers, and is shared by all coupled layers (see `importance.py`). The squared
gradients of single images estimate the diagonal of the Fisher information and thereby, at a minimum of the loss, the
second-order change of the loss when m_i is set to 0. The importance is divided by the cost that the removal saves, so that of
two equally important channels the more expensive one is pruned.

Unlike the paper: the cost is measured in multiply-adds, one of its two measures, because the cost tables do not have the other,
the memory of activations. All channels are pruned in one step before training, instead of one every few training steps.
Interpretation: a layer that is scattered into a residual stream of full width has its own gate.
"""

import numpy as np

from compressor.channels import Channels
from compressor.methods.prune.filters import OneShot
from compressor.methods.prune.importance import first_order, gates, gather, savings
from compressor.methods.widths import Scores
from compressor.training.method import Job


class Fisher(OneShot):
    """Prunes the channels whose gates have the least Fisher information per MAC saved, then fine-tunes.

    images: number of training images for scoring, one gradient each
    by_cost: divide the importance by the multiply-adds saved with the channel
    """

    paper = "Liu et al., ICML 2021 (arXiv 2108.00708)"
    looks = True
    labelled = True

    def __init__(self, job: Job, *, images: int = 512, by_cost: bool = True) -> None:
        super().__init__(job)
        self.images, self.by_cost = images, by_cost

    def scores(self, channels: Channels) -> Scores:
        places, scores = gates(channels), np.zeros(channels.atoms)
        for terms in first_order(self.model, self.job.objective, self.samples(self.images, batch_size=1)):
            scores += gather(channels, terms, places) ** 2
        return scores / np.maximum(savings(channels, channels.macs), 1) if self.by_cost else scores
