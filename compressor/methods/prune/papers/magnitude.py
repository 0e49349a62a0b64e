"""One-shot magnitude pruning: L2 norms of coupled channels, ranked globally.

Li, Kadav, Durdanovic, Samet, Graf: "Pruning Filters for Efficient ConvNets", ICLR 2017, arXiv 1608.08710 (the norm of a filter
as its importance, section 3.1); Fang, Ma, Song, Mi, Wang: "DepGraph: Towards Any Structural Pruning", CVPR 2023,
arXiv 2301.12900 (one importance for all coupled weights, section 3.3).

    s_i = || all weights that produce or consume channel i ||_2 / root mean square of these norms over the group

The channels with the smallest s over all groups are pruned before training, until the goal is met; the pruned network is then
fine-tuned. Interpretation: the norm includes both producers and consumers, and groups are normalised to the same mean square,
where the second paper normalises to the same mean. With `largest=true` each group is normalised by its largest channel. This is
better for some networks (ResNet-20 at half its MACs) and far worse for others (ResNet-18), where one large channel lowers the
scores of all others in its group.
"""

import numpy as np

from compressor.channels import Channels
from compressor.methods.prune.filters import OneShot, norms, over_group
from compressor.methods.widths import Scores
from compressor.training.method import Job


class Magnitude(OneShot):
    """Prunes the channels with the smallest L2 norm, ranked globally over all layers, then fine-tunes.

    largest: normalise each group by its largest channel instead of the root mean square of all
    """

    paper = "Li et al., ICLR 2017 (arXiv 1608.08710); Fang et al., CVPR 2023 (arXiv 2301.12900)"

    def __init__(self, job: Job, *, largest: bool = False) -> None:
        super().__init__(job)
        self.largest = largest

    def scores(self, channels: Channels) -> Scores:
        size = norms(self.model, channels, roles=("out", "in"))
        return over_group(channels, size, np.max if self.largest else root_mean_square)


def root_mean_square(values: Scores) -> float:
    return float(np.sqrt(np.mean(values**2)))
