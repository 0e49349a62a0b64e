"""Soft filter pruning (SFP): filters zeroed after an epoch are still updated in the next one, and can recover.

He, Kang, Dong, Fu, Yang: "Soft Filter Pruning for Accelerating Deep Convolutional Neural Networks", IJCAI 2018,
arXiv 1808.06866.

    s_{l,j} = || W_{l,j} ||_2                          (section 3.2: the norm of filter j of layer l)
    W_{l,j} <- 0 for the floor(N_l P) filters with the smallest s of each layer, before training and after every epoch

    p_t = 1,   alpha_t = 0,   lambda_t = 0             (see `soft.py`)

All layers have the same pruning rate P; filters of different layers are not compared. Gradients and momentum are not changed,
so a zeroed filter is still trained and can recover. After the last epoch the zeroed filters are removed.

Unlike the paper: the scale and shift of the batch norm after a zeroed filter are zeroed too, unless `mask_norms=false`.
"""

from compressor.methods.prune.soft import SoftPruning
from compressor.training.method import Job


class SFP(SoftPruning):
    """Zeroes the smallest filters of every layer after each epoch but keeps training them, and removes them at the end.

    mask_norms: also zero the batch norm scale and shift of a zeroed filter: removal is exact, but recovery is unlikely
    """

    paper = "He et al., IJCAI 2018 (arXiv 1808.06866)"
    trains = True

    def __init__(self, job: Job, *, mask_norms: bool = True) -> None:
        super().__init__(job, mask_norms)

    def prepare(self) -> None:
        self.weaken(rate=1.0, softness=0.0, hardness=0.0)
