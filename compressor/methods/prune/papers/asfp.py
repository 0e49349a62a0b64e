"""Asymptotic soft filter pruning (ASFP): SFP with a pruning rate that grows from zero, fast at first.

He, Dong, Kang, Fu, Yan, Yang: "Asymptotic Soft Filter Pruning for Deep Convolutional Neural Networks", IEEE Transactions on
Cybernetics 2019, arXiv 1808.07471, section 3.

    P_t = a exp(-k t) + b  through (0, 0), (T/8, 3/4 P), (T, P)         (equation 5)
    p_t = 1 - exp(-k t),  k = ln 4 / (T/8);  1 from 0.9 T on            (closed form by Cai et al.)
    alpha_t = 0,   lambda_t = 0                                         (see `soft.py`)

At the end of the first epoch no filter is pruned (p_0 = 0), so a pretrained network is pruned gradually.

Unlike the paper: the scale and shift of the batch norm after a zeroed filter are zeroed too, unless `mask_norms=false`.
"""

from compressor.methods.prune.soft import SoftPruning, asymptotic
from compressor.training.method import Job, Progress


class ASFP(SoftPruning):
    """Soft filter pruning with a growing pruning rate: three quarters of its final value after an eighth of training.

    settled: fraction of training after which the full pruning rate is reached
    mask_norms: also zero the batch norm scale and shift of a zeroed filter: removal is exact, but recovery is unlikely
    """

    paper = "He et al., IEEE Trans. Cybernetics 2019 (arXiv 1808.07471)"
    trains = True

    def __init__(self, job: Job, *, settled: float = 0.9, mask_norms: bool = True) -> None:
        super().__init__(job, mask_norms)
        self.settled = settled

    def rate(self, progress: Progress) -> float:
        return asymptotic(progress, self.settled)
