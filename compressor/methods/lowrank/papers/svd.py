"""Every layer split in two where its output changes least.

Zhang, Zou, He, Sun: "Accelerating Very Deep Convolutional Networks for Classification and Detection", TPAMI 2016,
arXiv 1505.06798. Section 2.1: a convolution y = W x of N filters becomes rank filters and a 1 x 1 convolution,

    y = U U^T (W x - mean) + mean,     U: the first eigenvectors of the covariance of y on training images

which is the chain of that rank whose output is nearest. Without images, U are the left singular vectors of W. Section 2.4: the
ranks of all layers are chosen together, so that the product of the energies they keep is the largest for the budget
(`--set ranks=greedy`).

The default goes further: a layer may also be split into k x 1 and 1 x k filters (Tai et al., ICLR 2016, arXiv 1511.06067),
which is cheaper at the same rank, or have its inputs reduced first. Each way is tried in each layer alone, at half the layer's
cost, and the one is taken that changes the network's answers least (KL divergence on training images, labels unused). That
divergence also says how much an error of this layer weighs against one of another when the budget is shared out. Without images
the errors of the weights themselves decide.

Unlike the paper: errors of layers add up instead of their kept energies being multiplied, by default; and no asymmetric
reconstruction. The last layer of each chain is refitted afterwards instead, from the first layer to the last, to what the
original gives (repair.py).
"""

from collections.abc import Sequence

from compressor.errors import UsageError, did_you_mean
from compressor.methods.lowrank.decompositions import SPLITS, Layer, Split
from compressor.methods.lowrank.factor import LowRank
from compressor.training.method import Job

WAYS = ("channel", "separable", "input", "linear")


class Svd(LowRank):
    """Splits layers by singular value decomposition where their output changes least, then fine-tunes.

    split: auto, or one way for all convolutions: channel, separable or input
    ranks: how the ranks are chosen: knapsack, greedy, energy, minmax, uniform or evbmf
    whiten: decide by what layers give on images (when there are any), not by their weights alone
    cost: what ranks are to save: macs (or parameters, if the goal is about them), or latency, as measured layer by layer
    """

    paper = "Zhang et al., TPAMI 2016 (arXiv 1505.06798); Tai et al., ICLR 2016 (arXiv 1511.06067)"

    def __init__(
        self, job: Job, *, split: str = "auto", ranks: str = "knapsack", whiten: bool = True, cost: str = "macs"
    ) -> None:
        super().__init__(job, ranks=ranks, whiten=whiten, cost=cost)
        known = ("auto", *WAYS[:-1])
        if split not in known:
            raise UsageError(f"--set split={split}: known are {', '.join(known)}{did_you_mean(split, known) or '.'}")
        self.ways = [SPLITS[name] for name in (WAYS if split == "auto" else (split, "linear"))]

    def splits(self, name: str, layer: Layer) -> Sequence[Split]:
        return [split for split in self.ways if isinstance(layer, split.kind)]
