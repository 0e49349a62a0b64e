"""SofteR weight pruning: single weak weights are shrunk, epoch by epoch less gently, until they are zero.

Cai, An, Yang, Xu: "Softer Pruning, Incremental Regularization", ICPR 2020, arXiv 2010.09498,
section 3; its abstract says that the operator of softer filter pruning transfers to weights.

    w <- alpha_t w for the floor(P n_l) weights of smallest |w| of each layer of n_l weights, after every epoch
    alpha_t = alpha_0 exp(-kappa t),   kappa = -ln(sigma / (alpha_0 + 0.01 sigma)) / T;   0 from 0.8 T on

What comes out has the shapes of the original: zeros are stored and multiplied like other numbers. It is neither smaller nor
faster, unless a runtime for sparse weights is used. Biases and norms stay as they are. Interpretation: layers are those whose
weights have two dimensions or more; the schedule is that of the authors' code for filters, since the text of the paper was not
at hand.
"""

import torch
from torch import nn

from compressor.methods.prune.soft import decaying
from compressor.training.method import Job, Method, Progress


class SRWP(Method):
    """Shrinks the smallest single weights of every layer to zero; the network keeps its shape, and so its speed.

    alpha: what is left of a weak weight after the first epoch, alpha_0; 1 is softest, 0 sets it to zero at once
    sigma: what would be left of it after the last epoch
    zero: the share of training after which weak weights are set to zero
    """

    paper = "Cai et al., ICPR 2020 (arXiv 2010.09498)"
    trains = True
    weights = True

    def __init__(self, job: Job, *, alpha: float = 1.0, sigma: float = 1e-5, zero: float = 0.8) -> None:
        super().__init__(job)
        assert job.goal.share is not None, "a goal of weights is a share"
        self.rate, self.alpha, self.sigma, self.zero = job.goal.share, alpha, sigma, zero

    def prepare(self) -> None:
        self.weaken(self.alpha)

    def end_epoch(self, progress: Progress) -> None:
        self.weaken(decaying(progress, self.alpha, self.sigma, self.zero))

    def finish(self) -> nn.Module:
        self.weaken(0.0)  # averaged weights, for one, are not zero where the last ones were
        return self.model

    def weaken(self, factor: float) -> None:
        """Multiply the smallest weights of each layer by `factor`."""
        with torch.no_grad():
            for weight in self.model.parameters():
                if weight.dim() < 2:
                    continue
                size = weight.abs().flatten()
                weak = size.argsort(stable=True)[: int(self.rate * len(size) + 1e-9)]
                weight.view(-1)[weak] *= factor
