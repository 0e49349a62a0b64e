"""Asymptotic softer filter pruning: SRFP whose rate grows from nothing, fast at first.

Cai, An, Yang, Xu: "Softer Pruning, Incremental Regularization", ICPR 2020, arXiv 2010.09498,
section 3: SRFP's shrinking with ASFP's rate.

    W_{l,j} <- alpha_t W_{l,j} for the floor(N_l P p_t) filters of smallest || W_{l,j} ||_2, after every epoch
    alpha_t  = alpha_0 exp(-kappa t),   kappa = -ln(sigma / (alpha_0 + 0.01 sigma)) / T;   0 from 0.8 T on
    p_t      = 1 - exp(-k t),  k = ln 4 / (T/8);   1 from 0.9 T on

    lambda_t = 0                                       (see `soft.py`)

With alpha_0 = 0 it is ASFP. Interpretation: section numbers and the schedules' ends are those of the authors' code (pretrained
start), since the text of the paper was not at hand.
"""

from compressor.methods.prune.soft import SoftPruning, asymptotic, decaying
from compressor.training.method import Job, Progress


class ASRFP(SoftPruning):
    """Shrinks the smallest filters of every layer, more of them and more strongly from epoch to epoch.

    alpha: what is left of a weak filter after the first epoch, alpha_0; 1 is softest, 0 is ASFP
    sigma: what would be left of it after the last epoch
    zero: the share of training after which weak filters are set to zero
    settled: the share of training after which the whole rate is pruned
    mask_norms: shrink the batch norm's scale and shift of a weak filter too, so that its removal is exact
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
