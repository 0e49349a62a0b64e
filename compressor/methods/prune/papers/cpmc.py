"""Channels whose weights are worth little, for what they cost, go first.

Yan, Guo, Li, Yang, Xu: "Channel Pruning via Multi-Criteria based on Weight Dependency", IJCNN 2021, arXiv 2011.03240,
section 3. Channel j of layer l goes together with what reads it in layer l+1, so all three criteria look at both:

    w_{l,j} = sum of |W| over filter j of layer l and over the weights of layer l+1 that read it      weight value
    f_l     = multiply-adds that vanish with the channel                                              computational cost
    p_l     = parameters that vanish with the channel                                                 parameter quantity

Each is normalised over the channels of all layers; one ranking decides, and the lowest go.

Interpretation: the abstract says that much; the rest is reconstructed. Each criterion is divided by its mean over all channels,
and they meet in

    S = w - macs f - params p            or, with `ratio=true`,            S = w / (f^macs p^params)

With `mean=true`, w is the mean of |W| instead of its sum, so that no channel is strong because its layer is wide; of a
ResNet-20 cut to half its MACs, the sum left more accuracy. What vanishes is read from the tables of costs, and so is right for
whatever layers share the channel.
"""

import numpy as np

from compressor.channels import Channels
from compressor.methods.prune.filters import OneShot, energies
from compressor.methods.prune.importance import savings
from compressor.methods.widths import Scores
from compressor.training.method import Job


class CPMC(OneShot):
    """Cuts the channels of least weight for their cost and parameters, all layers ranked together, then fine-tunes.

    macs: how much the multiply-adds that go with a channel count against it
    params: how much the parameters that go with a channel count against it
    ratio: divide the weight by powers of cost and parameters, instead of subtracting them
    mean: the weight of a channel is the mean over its weights, instead of their sum
    squares: of squared weights (L2) instead of absolute ones (L1)
    """

    paper = "Yan et al., IJCNN 2021 (arXiv 2011.03240)"

    def __init__(
        self,
        job: Job,
        *,
        macs: float = 0.1,
        params: float = 0.1,
        ratio: bool = False,
        mean: bool = False,
        squares: bool = False,
    ) -> None:
        super().__init__(job)
        self.macs, self.params, self.ratio, self.mean, self.squares = macs, params, ratio, mean, squares

    def scores(self, channels: Channels) -> Scores:
        weight = self.weight(channels)
        cost, params = (savings(channels, table) for table in (channels.macs, channels.params))
        weight, cost, params = (values / max(values.mean(), np.finfo(float).tiny) for values in (weight, cost, params))
        if self.ratio:
            return np.asarray(weight / (cost**self.macs * params**self.params))
        return np.asarray(weight - self.macs * cost - self.params * params)

    def weight(self, channels: Channels) -> Scores:
        """w of each channel [atoms]; with squares, the root of their sum or mean."""
        power = 2 if self.squares else 1
        weight = energies(self.model, channels, ("out", "in"), power)
        if self.mean:
            weight = weight / np.maximum(energies(self.model, channels, ("out", "in"), 0), 1)  # |w|^0 counts the weights
        return weight ** (1 / power)
