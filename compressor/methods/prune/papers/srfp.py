"""SofteR filter pruning (SRFP): pruned filters are multiplied by a decaying factor instead of zeroed.

Cai, An, Yang, Xu: "Softer Pruning, Incremental Regularization", ICPR 2020, arXiv 2010.09498,
section 3.

    W_{l,j} <- alpha_t W_{l,j} for the floor(N_l P) filters of smallest || W_{l,j} ||_2, after every epoch
    alpha_t  = alpha_0 exp(-kappa t),   kappa = -ln(sigma / (alpha_0 + 0.01 sigma)) / T;   0 from 0.8 T on

    p_t = 1,   lambda_t = 0                            (see `soft.py`)

The scaling is a gradient step on the squared norm of the weak filters, with a coefficient that grows as alpha_t decays: the
incremental regularisation of the title. With alpha_0 = 0 this is SFP. Interpretation: section numbers and the end of the
schedule are from the authors' code (pretrained start), because the full text was not available.
"""

from compressor.methods.prune.soft import SoftPruning, decaying
from compressor.training.method import Job, Progress


class SRFP(SoftPruning):
    """Multiplies the smallest filters of every layer by a decaying factor after each epoch, and removes them at the end.

    alpha: initial softness alpha_0, the factor of weak filters; 1 is softest, 0 is SFP
    sigma: softness that the exponential schedule would reach after the last epoch
    zero: fraction of training after which weak filters are set to zero
    mask_norms: also scale the batch norm scale and shift of a weak filter, so that its removal is exact
    """

    paper = "Cai et al., ICPR 2020 (arXiv 2010.09498)"
    trains = True
    cutout = 0.375  # 12 of 32 pixels

    def __init__(
        self, job: Job, *, alpha: float = 1.0, sigma: float = 1e-5, zero: float = 0.8, mask_norms: bool = True
    ) -> None:
        super().__init__(job, mask_norms)
        self.alpha, self.sigma, self.zero = alpha, sigma, zero

    def prepare(self) -> None:
        self.weaken(rate=1.0, softness=self.alpha, hardness=0.0)

    def softness(self, progress: Progress) -> float:
        return decaying(progress, self.alpha, self.sigma, self.zero)
