"""Hard filter pruning: filters that are set to zero stay zero.

The baseline that He, Kang, Dong, Fu, Yang: "Soft Filter Pruning for Accelerating Deep Convolutional Neural Networks", IJCAI
2018, arXiv 1808.06866, section 3.1, set out from. In every layer the floor(N_l P) filters of smallest || W_{l,j} ||_2 go before
training; the rest is fine-tuned:

    p_t = 1,   alpha_t = 0,   lambda_t = 1            (see `soft.py`)

Ranking once before training and ranking again in every epoch come to the same, for a filter that is held at zero has the
smallest norm there is. Since nothing comes back, the network is small from the first step on.
"""

from compressor.methods.prune.soft import SoftPruning
from compressor.training.method import Job, Progress


class HFP(SoftPruning):
    """Removes the smallest filters of every layer before training, the same share of each."""

    paper = "the hard baseline of He et al., IJCAI 2018 (arXiv 1808.06866)"
    trains = True

    def __init__(self, job: Job) -> None:
        super().__init__(job, mask_norms=True)

    def prepare(self) -> None:
        self.weaken(rate=1.0, softness=0.0, hardness=1.0)

    def hardness(self, progress: Progress) -> float:
        return 1.0
