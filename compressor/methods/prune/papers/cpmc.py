"""Channel pruning by multiple criteria (CPMC): weight value, computational cost and parameter quantity.

Yan, Guo, Li, Yang, Xu: "Channel Pruning via Multi-Criteria based on Weight Dependency", IJCNN 2021, arXiv 2011.03240,
section 3. Pruning channel j of layer l also removes the weights of layer l+1 that consume it, so all criteria cover both:

    w_{l,j} = sum of |W| over filter j of layer l and over the weights of layer l+1 that consume it   weight value
    f_l     = multiply-adds saved by removing the channel                                             computational cost
    p_l     = parameters saved by removing the channel                                                parameter quantity

Each criterion is normalised over the channels of all layers. Channels are ranked globally, and the lowest are pruned.

Interpretation: this follows the abstract; the rest is reconstructed. Each criterion is divided by its mean over all channels,
and they are combined as

    S = w - macs f - params p            or, with `ratio=true`,            S = w / (f^macs p^params)

With `mean=true`, w is the mean of |W| instead of the sum, so that it does not depend on the width of the layer; on ResNet-20 at
half its MACs, the sum gave higher accuracy. Costs are computed for all layers that share the channel.
"""

import numpy as np

from compressor.channels import Channels
from compressor.methods.prune.filters import OneShot, energies
from compressor.methods.prune.importance import savings
from compressor.methods.widths import Scores
from compressor.training.method import Job


class CPMC(OneShot):
    """Prunes the channels with the lowest weight value relative to their cost and parameters, ranked globally, then fine-tunes.

    macs: weight of the computational cost in the score
    params: weight of the parameter quantity in the score
    ratio: divide the weight value by powers of cost and parameters, instead of subtracting them
    mean: use the mean over the weights of a channel instead of their sum
    squares: use the L2 norm instead of the L1 norm of the weights
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
        """w of each channel [atoms]; with `squares`, the root of the sum or mean of squares."""
        power = 2 if self.squares else 1
        weight = energies(self.model, channels, ("out", "in"), power)
        if self.mean:
            weight = weight / np.maximum(energies(self.model, channels, ("out", "in"), 0), 1)  # |w|^0 counts the weights
        return weight ** (1 / power)
