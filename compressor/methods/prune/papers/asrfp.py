"""Asymptotic SofteR filter pruning (ASRFP): SRFP with a pruning rate that grows from zero, fast at first.

Cai, An, Yang, Xu: "Softer Pruning, Incremental Regularization", ICPR 2020, arXiv 2010.09498,
section 3: the softness schedule of SRFP with the pruning rate of ASFP.

    W_{l,j} <- alpha_t W_{l,j} for the floor(N_l P p_t) filters of smallest || W_{l,j} ||_2, after every epoch
    alpha_t  = alpha_0 exp(-kappa t),   kappa = -ln(sigma / (alpha_0 + 0.01 sigma)) / T;   0 from 0.8 T on
    p_t      = 1 - exp(-k t),  k = ln 4 / (T/8);   1 from 0.9 T on

    lambda_t = 0                                       (see `soft.py`)

With alpha_0 = 0 this is ASFP. Interpretation: section numbers and the ends of the schedules are from the authors' code
(pretrained start), because the full text was not available.
"""

from compressor.methods.prune.soft import SoftPruning, asymptotic, decaying
from compressor.training.method import Job, Progress


class ASRFP(SoftPruning):
    """Multiplies the smallest filters of every layer by a decaying factor after each epoch, while the pruning rate grows.

    alpha: initial softness alpha_0, the factor of weak filters; 1 is softest, 0 is ASFP
    sigma: softness that the exponential schedule would reach after the last epoch
    zero: fraction of training after which weak filters are set to zero
    settled: fraction of training after which the full pruning rate is reached
    mask_norms: also scale the batch norm scale and shift of a weak filter, so that its removal is exact
    """

    paper = "Cai et al., ICPR 2020 (arXiv 2010.09498)"
    trains = True
    cutout = 0.375  # 12 of 32 pixels

    def __init__(
        self,
        job: Job,
        *,
        alpha: float = 1.0,
        sigma: float = 1e-5,
        zero: float = 0.8,
        settled: float = 0.9,
        mask_norms: bool = True,
    ) -> None:
        super().__init__(job, mask_norms)
        self.alpha, self.sigma, self.zero, self.settled = alpha, sigma, zero, settled

    def rate(self, progress: Progress) -> float:
        return asymptotic(progress, self.settled)

    def softness(self, progress: Progress) -> float:
        return decaying(progress, self.alpha, self.sigma, self.zero)
