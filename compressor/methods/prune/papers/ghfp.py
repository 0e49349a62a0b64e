"""Gradually hard filter pruning (GHFP): a smooth transition from soft to hard filter pruning.

Cai, An, Xu: "GHFP: Gradually Hard Filter Pruning", 2020, arXiv 2011.03170, section 3.

    weak: the floor(N_l P p_t) filters of smallest || W_{l,j} ||_2
    hard: the floor(N_l P p_t lambda_t) smallest among those
    W_{l,j} <- 0 if hard,  alpha_t W_{l,j} if weak;   the gradient of hard filters is zero
    lambda_t = 1 - (1 - (t+1)/T)^3;   1 from 0.8 T on
    p_t      = 1 - exp(-k t),  k = ln 4 / (T/8);   1 from 0.9 T on
    alpha_t  = alpha_0 exp(-kappa t);   0 from 0.8 T on            (see `soft.py`)

alpha_0 = 0 starts from SFP, alpha_0 = 1 from SRFP. lambda = 0 is (A)SFP or (A)SRFP, lambda = 1 is HFP. Hard filters are removed
from the network during training, so later epochs are cheaper.

Unlike the authors' code: the batch norm of a hard filter is zeroed at once, and both are zeroed again after each step, so that
momentum and weight decay do not change them.
Interpretation: section numbers and the ends of the schedules are from the authors' code (pretrained start), because the full
text was not available.
"""

from compressor.methods.prune.soft import SoftPruning, asymptotic, cubic, decaying
from compressor.training.method import Job, Progress


class GHFP(SoftPruning):
    """Soft filter pruning that turns gradually into hard pruning; hard filters are removed during training.

    alpha: initial softness alpha_0, the factor of weak filters; 1 starts from SRFP, 0 from SFP
    sigma: softness that the exponential schedule would reach after the last epoch
    ending: fraction of training after which all weak filters are hard
    settled: fraction of training after which the full pruning rate is reached
    """

    paper = "Cai et al., 2020 (arXiv 2011.03170)"
    trains = True
    cutout = 0.375  # 12 of 32 pixels

    def __init__(self, job: Job, *, alpha: float = 0.0, sigma: float = 1e-5, ending: float = 0.8, settled: float = 0.9) -> None:
        super().__init__(job, mask_norms=True)
        self.alpha, self.sigma, self.ending, self.settled = alpha, sigma, ending, settled

    def rate(self, progress: Progress) -> float:
        return asymptotic(progress, self.settled)

    def softness(self, progress: Progress) -> float:
        return decaying(progress, self.alpha, self.sigma, self.ending)

    def hardness(self, progress: Progress) -> float:
        return cubic(progress, self.ending)
