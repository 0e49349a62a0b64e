"""Hard filter pruning (HFP): pruned filters are never updated again.

The baseline of He, Kang, Dong, Fu, Yang: "Soft Filter Pruning for Accelerating Deep Convolutional Neural Networks", IJCAI 2018,
arXiv 1808.06866, section 3.1. In every layer the floor(N_l P) filters with the smallest || W_{l,j} ||_2 are pruned before
training, and the pruned network is fine-tuned:

    p_t = 1,   alpha_t = 0,   lambda_t = 1            (see `soft.py`)

Ranking once before training and ranking again after every epoch give the same result, because a filter that is kept at zero has
the smallest norm. No filter recovers, so the network is trained at its pruned size from the first step.
"""

from compressor.methods.prune.soft import SoftPruning
from compressor.training.method import Job, Progress


class HFP(SoftPruning):
    """Prunes the filters with the smallest L2 norm before training, at the same rate in every layer, then fine-tunes."""

    paper = "the hard baseline of He et al., IJCAI 2018 (arXiv 1808.06866)"
    trains = True

    def __init__(self, job: Job) -> None:
        super().__init__(job, mask_norms=True)

    def prepare(self) -> None:
        self.weaken(rate=1.0, softness=0.0, hardness=1.0)

    def hardness(self, progress: Progress) -> float:
        return 1.0
