"""SofteR filter pruning: weak filters are not zeroed but shrunk, epoch by epoch less gently.

Cai, An, Yang, Xu: "Softer Pruning, Incremental Regularization", ICPR 2020, arXiv 2010.09498,
section 3.

    W_{l,j} <- alpha_t W_{l,j} for the floor(N_l P) filters of smallest || W_{l,j} ||_2, after every epoch
    alpha_t  = alpha_0 exp(-kappa t),   kappa = -ln(sigma / (alpha_0 + 0.01 sigma)) / T;   0 from 0.8 T on

    p_t = 1,   lambda_t = 0                            (see `soft.py`)

One such shrinking is a gradient step on the squared norm of the weak filters, whose weight grows from nothing to infinity as
alpha_t falls: the incremental regularisation of the title. With alpha_0 = 0 it is SFP. Interpretation: section numbers and the
schedule's ends are those of the authors' code (pretrained start), since the text of the paper was not at hand.
"""

from compressor.methods.prune.soft import SoftPruning, decaying
from compressor.training.method import Job, Progress


class SRFP(SoftPruning):
    """Shrinks the smallest filters of every layer after each epoch, more and more, and removes them at the end.

    alpha: what is left of a weak filter after the first epoch, alpha_0; 1 is softest, 0 is SFP
    sigma: what would be left of it after the last epoch
    zero: the share of training after which weak filters are set to zero
    mask_norms: shrink the batch norm's scale and shift of a weak filter too, so that its removal is exact
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
