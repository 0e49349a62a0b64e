"""Convolutions split in four by CP decomposition: the fewest weights, and the hardest to fit and to train.

Lebedev, Ganin, Rakhuba, Oseledets, Lempitsky: "Speeding-up Convolutional Neural Networks Using Fine-tuned CP-Decomposition",
ICLR 2015, arXiv 1412.6553. Of the paper, only the abstract was read: a kernel as a sum of few products of vectors, found by
non-linear least squares; four small convolutions in its place; then the whole network is fine-tuned.

    W = sum over r of  last[:, r] x first[:, r] x rows[:, r] x columns[:, r]        W [N, C, k, k]

is a 1 x 1 convolution from C to r channels, one of k x 1 and one of 1 x k on each channel alone, and a 1 x 1 convolution to N.
Fully-connected layers, 1 x 1 convolutions and kernels that are a line already are split in two.

It is unstable. A tensor need not have a nearest one of a given rank: the fit may go on for ever with ever larger components
that cancel each other, and rounding and training feel these (Phan et al., "Stable Low-Rank Tensor Decomposition for Compression
of Convolutional Neural Network", ECCV 2020, arXiv 2008.05441). So here each step of the fit has a ridge, which bounds all
components, and the length of a component is shared evenly by its four vectors.

Unlike the paper: alternating least squares instead of Gauss-Newton, and all layers at once. Errors are estimated by short fits
at a few ranks a layer: still the slowest of the methods. What was seen on images does not change the fit, only the ranks.
"""

from collections.abc import Sequence

from torch import nn

from compressor.methods.lowrank.decompositions import SPLITS, Layer, Split
from compressor.methods.lowrank.factor import LowRank
from compressor.training.method import Job


class CP(LowRank):
    """Splits convolutions in four by CP decomposition, other layers in two, then fine-tunes.

    ranks: how the ranks are chosen: knapsack, greedy, energy, minmax, uniform or evbmf
    whiten: split other layers by what they give on images (when there are any), not by their weights alone
    """

    paper = "Lebedev et al., ICLR 2015 (arXiv 1412.6553)"

    def __init__(self, job: Job, *, ranks: str = "knapsack", whiten: bool = True) -> None:
        super().__init__(job, ranks=ranks, whiten=whiten)

    def splits(self, name: str, layer: Layer) -> Sequence[Split]:
        if isinstance(layer, nn.Linear):
            return [SPLITS["linear"]]
        return [SPLITS["channel" if min(layer.kernel_size) == 1 else "cp"]]
