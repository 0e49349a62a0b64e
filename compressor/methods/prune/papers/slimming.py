"""Network slimming: the importance of a channel is its batch norm scaling factor.

Liu, Li, Shen, Huang, Yan, Zhang: "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017,
arXiv 1708.06519, section 3.

    z_out = gamma (z_in - mu) / sqrt(sigma^2 + eps) + beta;       s_i = | gamma_i |

One global threshold is used for all layers. Unlike the paper: only the criterion is applied. The paper first trains the
network with sparsity regularisation, lambda sum |gamma| added to the loss (lambda = 1e-4), which pushes scaling factors to
zero; without it they are less informative.

Interpretation: if several norms share a channel, as in a residual stream, its score is the mean of their factors. Channels
without a batch norm are pruned last.
"""

import numpy as np
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from compressor.channels import Channels
from compressor.errors import UsageError
from compressor.methods.prune.filters import OneShot
from compressor.methods.prune.importance import gather
from compressor.methods.widths import Scores


class Slimming(OneShot):
    """Prunes the channels with the smallest batch norm scaling factors, ranked globally, then fine-tunes."""

    paper = "Liu et al., ICCV 2017 (arXiv 1708.06519)"

    def scores(self, channels: Channels) -> Scores:
        norms = [f"{name}.weight" for name, module in self.model.named_modules() if isinstance(module, _BatchNorm)]
        scales = {name: tensor.detach().abs() for name, tensor in self.model.named_parameters() if name in norms}
        total = gather(channels, scales, channels.places)
        count = gather(channels, {name: torch.ones_like(scale) for name, scale in scales.items()}, channels.places)
        if not count.any():
            raise UsageError(
                "slimming ranks channels by batch norm scaling factors, but no channel has one: use --method magnitude."
            )
        means: Scores = np.divide(total, count, out=np.full(channels.atoms, np.inf), where=count > 0)
        return means
