"""Layer-adaptive magnitude-based pruning (LAMP): a rescaled magnitude makes weights of different layers comparable.

Lee, Park, Mo, Ahn, Shin: "Layer-adaptive Sparsity for the Magnitude-based Pruning", ICLR 2021, arXiv 2010.07611, section 2.

    score(u) = W[u]^2 / sum of W[v]^2 over all v with |W[v]| >= |W[u]|      (u, v: weights of one layer)

The score relates the squared magnitude to that of the weights of the layer that survive it. Scores are ranked globally, and the
lowest are pruned. The largest score of a layer is 1, so no layer is pruned completely.

Interpretation: the paper prunes individual weights. Here u is a channel, W[u]^2 is the sum of squares of all weights that
produce or consume it, as in `magnitude`, and a layer is a group of coupled channels.
"""

import numpy as np

from compressor.channels import Channels
from compressor.methods.prune.filters import OneShot, energies
from compressor.methods.widths import Scores


class LAMP(OneShot):
    """Prunes the channels with the lowest layer-adaptive magnitude (LAMP) score, ranked globally, then fine-tunes."""

    paper = "Lee et al., ICLR 2021 (arXiv 2010.07611)"

    def scores(self, channels: Channels) -> Scores:
        parts = channels.split(energies(self.model, channels, roles=("out", "in"))).values()
        return np.concatenate([adapted(own) for own in parts])


def adapted(energy: Scores) -> Scores:
    """LAMP scores of the channels of one layer [channels]; `energy` is the squared norm of each."""
    order = np.argsort(energy, kind="stable")
    remaining = np.cumsum(energy[order][::-1])[::-1]  # sum over each channel and all larger ones
    scores = np.empty_like(energy)
    scores[order] = energy[order] / np.maximum(remaining, np.finfo(float).tiny)
    return scores
