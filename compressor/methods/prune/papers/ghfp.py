"""Gradually hard filter pruning: of the filters that are pruned softly, more and more are pruned for good.

Cai, An, Xu: "GHFP: Gradually Hard Filter Pruning", 2020, arXiv 2011.03170, section 3.

    weak: the floor(N_l P p_t) filters of smallest || W_{l,j} ||_2
    hard: the floor(N_l P p_t lambda_t) smallest among those
    W_{l,j} <- 0 where hard,  alpha_t W_{l,j} where weak;   hard filters get no gradient
    lambda_t = 1 - (1 - (t+1)/T)^3;   1 from 0.8 T on
    p_t      = 1 - exp(-k t),  k = ln 4 / (T/8);   1 from 0.9 T on
    alpha_t  = alpha_0 exp(-kappa t);   0 from 0.8 T on            (see `soft.py`)

alpha_0 = 0 hardens SFP, alpha_0 = 1 SRFP. lambda = 0 is (A)SFP or (A)SRFP, lambda = 1 is HFP. As filters become hard they leave
the network, so that epochs get cheaper while it trains.

Unlike the authors' code: the norm behind a hard filter is zero at once, and after each step, so that hard filters do not drift.
Interpretation: section numbers and the schedules' ends are those of the authors' code (pretrained start), since the text of the
paper was not at hand.
"""

from compressor.methods.prune.soft import SoftPruning, asymptotic, cubic, decaying
from compressor.training.method import Job, Progress


class GHFP(SoftPruning):
    """Prunes softly at first, then ever more filters for good: these leave the network while it trains.

    alpha: what is left of a weak filter after the first epoch, alpha_0; 1 is softest, 0 hardens soft filter pruning
    sigma: what would be left of it after the last epoch
    ending: the share of training after which all weak filters are hard
    settled: the share of training after which the whole rate is pruned
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
