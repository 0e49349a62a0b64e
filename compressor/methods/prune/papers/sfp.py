"""Soft filter pruning: filters set to zero after each epoch may come back in the next.

He, Kang, Dong, Fu, Yang: "Soft Filter Pruning for Accelerating Deep Convolutional Neural Networks", IJCAI 2018,
arXiv 1808.06866.

    s_{l,j} = || W_{l,j} ||_2                          (section 3.2: the norm of filter j of layer l)
    W_{l,j} <- 0 for the floor(N_l P) filters of smallest s of each layer, before training and after every epoch

    p_t = 1,   alpha_t = 0,   lambda_t = 0             (see `soft.py`)

Every layer gives the same share P of its filters; no layer is ranked against another. Gradients, and the optimizer's
momentum, are untouched, so a zeroed filter trains on and may re-enter. After the last epoch the zeroed filters are removed.

Unlike the paper: the batch norm behind a zeroed filter is set to zero too; `mask_norms=false` leaves it.
"""

from compressor.methods.prune.soft import SoftPruning
from compressor.training.method import Job


class SFP(SoftPruning):
    """Zeroes the smallest filters of every layer after each epoch, lets them train on, and removes them at the end.

    mask_norms: zero the batch norm's scale and shift of a zeroed filter too: its removal is exact, its return unlikely
    """

    paper = "He et al., IJCAI 2018 (arXiv 1808.06866)"
    trains = True

    def __init__(self, job: Job, *, mask_norms: bool = True) -> None:
        super().__init__(job, mask_norms)

    def prepare(self) -> None:
        self.weaken(rate=1.0, softness=0.0, hardness=0.0)
