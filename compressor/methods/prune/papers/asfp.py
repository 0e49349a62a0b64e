"""Asymptotic soft filter pruning: SFP whose rate grows from nothing, fast at first.

He, Dong, Kang, Fu, Yan, Yang: "Asymptotic Soft Filter Pruning for Deep Convolutional Neural Networks", IEEE Transactions on
Cybernetics 2019, arXiv 1808.07471, section 3.

    P_t = a exp(-k t) + b  through (0, 0), (T/8, 3/4 P), (T, P)         (equation 5)
    p_t = 1 - exp(-k t),  k = ln 4 / (T/8);  1 from 0.9 T on            (its closed form, by Cai et al.)
    alpha_t = 0,   lambda_t = 0                                         (see `soft.py`)

So the first epoch trains the whole network, and a network that was trained before is not torn down at once.

Unlike the paper: the batch norm behind a zeroed filter is set to zero too; `mask_norms=false` leaves it.
"""

from compressor.methods.prune.soft import SoftPruning, asymptotic
from compressor.training.method import Job, Progress


class ASFP(SoftPruning):
    """Soft filter pruning of a share that grows: most of it in the first eighth of training.

    settled: the share of training after which the whole rate is pruned
    mask_norms: zero the batch norm's scale and shift of a zeroed filter too: its removal is exact, its return unlikely
    """

    paper = "He et al., IEEE Trans. Cybernetics 2019 (arXiv 1808.07471)"
    trains = True

    def __init__(self, job: Job, *, settled: float = 0.9, mask_norms: bool = True) -> None:
        super().__init__(job, mask_norms)
        self.settled = settled

    def rate(self, progress: Progress) -> float:
        return asymptotic(progress, self.settled)
