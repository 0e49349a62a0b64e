"""SofteR weight pruning (SRWP): unstructured pruning by a decaying factor on individual weights.

Cai, An, Yang, Xu: "Softer Pruning, Incremental Regularization", ICPR 2020, arXiv 2010.09498,
section 3; according to the abstract, the operator of softer filter pruning also applies to weights.

    w <- alpha_t w for the floor(P n_l) weights of smallest |w| of each layer of n_l weights, after every epoch
    alpha_t = alpha_0 exp(-kappa t),   kappa = -ln(sigma / (alpha_0 + 0.01 sigma)) / T;   0 from 0.8 T on

The weights become sparse, but tensors keep their shapes: the network is neither smaller nor faster, unless a runtime exploits
the sparsity. Biases and norms are not pruned. Interpretation: all weights with two or more dimensions are pruned; the schedule
is that for filters in the authors' code, because the full text was not available.
"""

import torch
from torch import nn

from compressor.methods.prune.soft import decaying
from compressor.training.method import Job, Method, Progress


class SRWP(Method):
    """Unstructured pruning: decays the smallest weights of every layer to zero; the network becomes sparse, but not faster.

    alpha: initial softness alpha_0, the factor of weak weights; 1 is softest, 0 zeroes them at once
    sigma: softness that the exponential schedule would reach after the last epoch
    zero: fraction of training after which weak weights are set to zero
    """

    paper = "Cai et al., ICPR 2020 (arXiv 2010.09498)"
    trains = True
    weights = True

    def __init__(self, job: Job, *, alpha: float = 1.0, sigma: float = 1e-5, zero: float = 0.8) -> None:
        super().__init__(job)
        assert job.goal.share is not None, "the goal must be a fraction of the weights"
        self.rate, self.alpha, self.sigma, self.zero = job.goal.share, alpha, sigma, zero

    def prepare(self) -> None:
        self.weaken(self.alpha)

    def end_epoch(self, progress: Progress) -> None:
        self.weaken(decaying(progress, self.alpha, self.sigma, self.zero))

    def finish(self) -> nn.Module:
        self.weaken(0.0)  # averaged (EMA) weights are not zero where the last ones are
        return self.model

    def weaken(self, factor: float) -> None:
        """Multiply the smallest weights of each layer by `factor`."""
        with torch.no_grad():
            for weight in self.model.parameters():
                if weight.dim() < 2:
                    continue
                size = weight.abs().flatten()
                weak = size.argsort(stable=True)[: int(self.rate * len(size) + 1e-9)]
                factors = torch.ones_like(size)
                factors[weak] = factor
                weight.mul_(factors.view_as(weight))
