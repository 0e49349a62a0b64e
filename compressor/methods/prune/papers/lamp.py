"""Global magnitude pruning in which every layer finds its own share.

Lee, Park, Mo, Ahn, Shin: "Layer-adaptive Sparsity for the Magnitude-based Pruning", ICLR 2021, arXiv 2010.07611, section 2.

    score(u) = W[u]^2 / sum of W[v]^2 over all v with |W[v]| >= |W[u]|      (u, v: weights of one layer)

What is small beside all that would still be there when it is its turn goes first, over all layers together. The largest of a
layer scores 1, so no layer is ever emptied.

Interpretation: the paper prunes single weights. Here u is a channel, and W[u]^2 the sum of squares of all weights that make or
read it, as in `magnitude`; a layer is a group of coupled channels.
"""

import numpy as np

from compressor.channels import Channels
from compressor.methods.prune.filters import OneShot, energies
from compressor.methods.widths import Scores


class LAMP(OneShot):
    """Cuts the channels that are smallest beside those of their layer that would remain, then fine-tunes."""

    paper = "Lee et al., ICLR 2021 (arXiv 2010.07611)"

    def scores(self, channels: Channels) -> Scores:
        parts = channels.split(energies(self.model, channels, roles=("out", "in"))).values()
        return np.concatenate([adapted(own) for own in parts])


def adapted(energy: Scores) -> Scores:
    """The scores of one layer's channels of so much energy, each [channels]."""
    order = np.argsort(energy, kind="stable")
    remaining = np.cumsum(energy[order][::-1])[::-1]  # of each and all that are larger
    scores = np.empty_like(energy)
    scores[order] = energy[order] / np.maximum(remaining, np.finfo(float).tiny)
    return scores
