"""Group Fisher pruning: the gates of coupled channels that single images push least go first.

Liu, Zhang, Kuang, Zhou, Xue, Wang, Chen, Yang, Liao, Zhang: "Group Fisher Pruning for Practical Network Compression",
ICML 2021, arXiv 2108.00708, section 3.

    s_i = sum over images n of ( dL_n / dm_i )^2,     dL_n / dm_i = sum over the layers X that read channel i of dL_n / dm_i^X

m_i is 1 and multiplies channel i where it is read, one and the same number for all layers that are coupled: the gates of
`importance.py`. The squares of the gradients of single images estimate the diagonal of the Fisher information, and so, at a
minimum, the second-order change of the loss when m_i becomes 0. A channel's importance is then divided by what its removal
saves, so that of two channels that matter alike the dearer goes first.

Unlike the paper: what is saved is counted in multiply-adds, the other of the paper's two measures; its memory of activations is
not in the tables of costs. And all channels go at once, before training, instead of one every few steps of it.
Interpretation: a scattered layer, whose stream stays wide, has a gate of its own.
"""

import numpy as np

from compressor.channels import Channels
from compressor.methods.prune.filters import OneShot
from compressor.methods.prune.importance import first_order, gates, gather, savings
from compressor.methods.widths import Scores
from compressor.training.method import Job


class Fisher(OneShot):
    """Cuts the channels whose gates have the least Fisher information for what they cost, then fine-tunes.

    images: how many training images to score channels on, one at a time
    by_cost: divide by the multiply-adds that go with the channel
    """

    paper = "Liu et al., ICML 2021 (arXiv 2108.00708)"
    looks = True

    def __init__(self, job: Job, *, images: int = 512, by_cost: bool = True) -> None:
        super().__init__(job)
        self.images, self.by_cost = images, by_cost

    def scores(self, channels: Channels) -> Scores:
        places, scores = gates(channels), np.zeros(channels.atoms)
        for terms in first_order(self.model, self.job.task, self.samples(self.images, batch_size=1)):
            scores += gather(channels, terms, places) ** 2
        return scores / np.maximum(savings(channels, channels.macs), 1) if self.by_cost else scores
