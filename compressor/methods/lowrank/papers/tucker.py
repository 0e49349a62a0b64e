"""Convolutions split in three by Tucker decomposition: channels in, a small kernel, channels out.

Kim, Park, Yoo, Choi, Yang, Shin: "Compression of Deep Convolutional Neural Networks for Fast and Low Power Mobile
Applications", ICLR 2016, arXiv 1511.06530. Of the paper, only the abstract was read: ranks by variational Bayesian matrix
factorisation, Tucker decomposition of the kernels, fine-tuning of the whole network at once.

    W = sum over a, b of  last[:, a] core[a, b, :, :] first[b, :]        W [N, C, k, k], core [r2, r1, k, k]

is a 1 x 1 convolution from C to r1 channels, the core, and a 1 x 1 convolution to N. The kernel's own two sides are too short
to be cut. Without images the factors are found by higher-order orthogonal iteration (`tucker` in decompositions.py); with
images, the output's principal components are kept on one side and what matters of the input on the other. Fully-connected
layers and 1 x 1 convolutions have no core and are split in two.

Unlike the paper: one rank for both sides, so that the search has one number a layer, and ranks that meet a budget together.
`--set ranks=evbmf` shares out the budget in proportion to what variational Bayes finds in the two unfoldings of W, of which the
one with the higher rank counts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn

from compressor.methods.lowrank.decompositions import SPLITS, Layer, Seen, Split
from compressor.methods.lowrank.factor import LowRank, Site
from compressor.training.method import Job


class Tucker(LowRank):
    """Splits convolutions in three by Tucker decomposition, other layers in two, then fine-tunes.

    ranks: how the ranks are chosen: knapsack, greedy, energy, minmax, uniform or evbmf
    whiten: decide by what layers give on images (when there are any), not by their weights alone
    """

    paper = "Kim et al., ICLR 2016 (arXiv 1511.06530)"

    def __init__(self, job: Job, *, ranks: str = "knapsack", whiten: bool = True) -> None:
        super().__init__(job, ranks=ranks, whiten=whiten)

    def splits(self, name: str, layer: Layer) -> Sequence[Split]:
        if isinstance(layer, nn.Linear):
            return [SPLITS["linear"]]
        return [SPLITS["channel" if max(layer.kernel_size) == 1 else "tucker"]]

    def sites(self, seen: Mapping[str, Seen]) -> list[Site]:
        return [_by_unfolding(site, seen.get(site.name)) for site in super().sites(seen)]


def _by_unfolding(site: Site, seen: Seen | None) -> Site:
    """The site with the singular values of the unfolding in which variational Bayes finds the higher rank."""
    if site.split is not SPLITS["tucker"]:
        return site
    unfolded = [SPLITS["channel"], SPLITS["input"]]
    ladders = [
        replace(site.ladder, singular=s.singular(site.layer, seen).cpu().numpy(), shape=s.shape(site.layer)) for s in unfolded
    ]
    return replace(site, ladder=max(ladders, key=lambda ladder: ladder.analytic))
