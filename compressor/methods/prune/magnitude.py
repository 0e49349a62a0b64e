"""One-shot pruning of the smallest channels, ranked over the whole network.

Li, Kadav, Durdanovic, Samet, Graf: "Pruning Filters for Efficient ConvNets", ICLR 2017, arXiv 1608.08710 (the norm of a filter
as its importance, section 3.1); Fang, Ma, Song, Mi, Wang: "DepGraph: Towards Any Structural Pruning", CVPR 2023,
arXiv 2301.12900 (one importance for all coupled weights, section 3.3).

    s_i = || all weights that make or read channel i ||_2 / max over the group

The channels with the smallest s of all groups together are cut before training, until the goal is met; what remains is then
fine-tuned. Interpretation: the norm runs over producers and consumers alike, and each group is scaled by its largest channel.
On the CIFAR ResNets, at half the MACs, this kept more accuracy after recalibration than scaling by the group's mean or L2
norm or not at all.
"""

import numpy as np

from compressor.budget import Scores
from compressor.channels import Channels
from compressor.filters import OneShot, norms, over_group


class Magnitude(OneShot):
    """Cuts the channels of smallest L2 norm, all layers ranked together, then fine-tunes."""

    paper = "Li et al., ICLR 2017 (arXiv 1608.08710); Fang et al., CVPR 2023 (arXiv 2301.12900)"

    def scores(self, channels: Channels) -> Scores:
        return over_group(channels, norms(self.model, channels, roles=("out", "in")), np.max)
