"""One-shot pruning of the smallest channels, ranked over the whole network.

Li, Kadav, Durdanovic, Samet, Graf: "Pruning Filters for Efficient ConvNets", ICLR 2017, arXiv 1608.08710 (the norm of a filter
as its importance, section 3.1); Fang, Ma, Song, Mi, Wang: "DepGraph: Towards Any Structural Pruning", CVPR 2023,
arXiv 2301.12900 (one importance for all coupled weights, section 3.3).

    s_i = || all weights that make or read channel i ||_2 / root mean square of these norms over the group

The channels with the smallest s of all groups together are cut before training, until the goal is met; what remains is then
fine-tuned. Interpretation: the norm runs over producers and consumers alike, and groups are scaled to the same mean square, as
the second paper scales them to the same mean. With `largest=true` each group is scaled by its largest channel. That is better
for some networks (ResNet-20 at half its MACs) and far worse for others (ResNet-18), where one large channel makes all others of
its group look weak.
"""

import numpy as np

from compressor.channels import Channels
from compressor.methods.prune.filters import OneShot, norms, over_group
from compressor.methods.widths import Scores
from compressor.training.method import Job


class Magnitude(OneShot):
    """Cuts the channels of smallest L2 norm, all layers ranked together, then fine-tunes.

    largest: scale each group by its largest channel instead of the root mean square of all
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
