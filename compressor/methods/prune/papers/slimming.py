"""Network slimming: channels of small batch-norm scale go first.

Liu, Li, Shen, Huang, Yan, Zhang: "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017,
arXiv 1708.06519, section 3.

    z_out = gamma (z_in - mu) / sqrt(sigma^2 + eps) + beta;       s_i = | gamma_i |

One threshold for all layers. Unlike the paper: the criterion alone is applied. The paper first trains the network with
lambda sum |gamma| added to the loss (lambda = 1e-4), which drives scales apart; on a network trained without it the scales
say less.

Interpretation: where norms share channels, as in a residual stream, the scale is the mean of theirs. Channels without a batch
norm go last.
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
    """Cuts the channels of smallest batch-norm scale, all layers ranked together, then fine-tunes."""

    paper = "Liu et al., ICCV 2017 (arXiv 1708.06519)"

    def scores(self, channels: Channels) -> Scores:
        norms = [f"{name}.weight" for name, module in self.model.named_modules() if isinstance(module, _BatchNorm)]
        scales = {name: tensor.detach().abs() for name, tensor in self.model.named_parameters() if name in norms}
        total = gather(channels, scales, channels.places)
        count = gather(channels, {name: torch.ones_like(scale) for name, scale in scales.items()}, channels.places)
        if not count.any():
            raise UsageError(
                "slimming ranks channels by the scales of batch norms, but no channel has one: use --method magnitude."
            )
        means: Scores = np.divide(total, count, out=np.full(channels.atoms, np.inf), where=count > 0)
        return means
