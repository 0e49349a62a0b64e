"""Low-rank factorization by singular value decomposition (SVD) that minimises the error of layer outputs.

Zhang, Zou, He, Sun: "Accelerating Very Deep Convolutional Networks for Classification and Detection", TPAMI 2016,
arXiv 1505.06798. Section 2.1: a convolution y = W x with N filters is replaced by `rank` filters and a 1 x 1 convolution,

    y = U U^T (W x - mean) + mean,     U: the first eigenvectors of the covariance of y on training images

which minimises the reconstruction error of the output for this rank. Without images, U are the left singular vectors of W.
Section 2.4: the ranks of all layers are selected jointly, so that the product of the kept energies is maximal within the budget
(`--set ranks=greedy`).

Beyond the paper, a layer can also be decomposed into k x 1 and 1 x k filters (Tai et al., ICLR 2016, arXiv 1511.06067), which
is cheaper at the same rank, or by a reduction of its input channels. Each decomposition is tried in each layer alone, at half
the cost of the layer, and the one that changes the output of the network least is used (of a classifier, by KL divergence; on
training images, without labels). This change also weights the errors of the layers in the rank selection. Without images, the
errors of the weights are used.

Unlike the paper: by default the weighted sum of the layer errors is minimised instead of maximising the product of the
energies, and there is no asymmetric reconstruction. Instead, the last layer of each chain is re-estimated by least squares,
from the first layer to the last, to reproduce the output of the original (repair.py).
"""

from collections.abc import Sequence

from compressor.errors import UsageError, did_you_mean
from compressor.methods.lowrank.decompositions import SPLITS, Layer, Split
from compressor.methods.lowrank.factor import LowRank
from compressor.training.method import Job

WAYS = ("channel", "separable", "input", "linear")


class Svd(LowRank):
    """Factors layers by singular value decomposition (SVD) with the least error of layer outputs, then fine-tunes.

    split: decomposition of convolutions: channel, separable, input, or auto (the best for each layer)
    ranks: rank selection rule: knapsack, greedy, energy, minmax, uniform or evbmf
    whiten: minimise the error of layer outputs on images (if there are any) instead of the error of the weights
    cost: what the ranks reduce: macs (or parameters, if the target is in parameters), or latency measured per layer
    """

    paper = "Zhang et al., TPAMI 2016 (arXiv 1505.06798); Tai et al., ICLR 2016 (arXiv 1511.06067)"

    def __init__(
        self, job: Job, *, split: str = "auto", ranks: str = "knapsack", whiten: bool = True, cost: str = "macs"
    ) -> None:
        super().__init__(job, ranks=ranks, whiten=whiten, cost=cost)
        known = ("auto", *WAYS[:-1])
        if split not in known:
            raise UsageError(f"--set split={split} is unknown: use {', '.join(known)}{did_you_mean(split, known) or '.'}")
        self.ways = [SPLITS[name] for name in (WAYS if split == "auto" else (split, "linear"))]

    def splits(self, name: str, layer: Layer) -> Sequence[Split]:
        return [split for split in self.ways if isinstance(layer, split.kind)]
