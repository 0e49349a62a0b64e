"""Prior gradient mask guided pruning-aware fine-tuning: weak filters also learn more and more slowly.

Cai, An, Yang, Yan, Xu: "Prior Gradient Mask Guided Pruning-Aware Fine-Tuning", AAAI 2022 (no arXiv number), section 3, which
builds on the same authors' softer pruning, arXiv 2010.09498.

After epoch t the filters of smallest norm are weak, and shrunk as in ASRFP. In the next epoch, at every iteration, the mask
damps the gradient of each filter j of layer l, after the backward pass:

    B_j ~ Bernoulli(1/2), drawn anew for each filter and iteration
    G_j = 1 where kept,  (1 - lambda_t) B_j where weak
    g_{l,j} <- G_j g_{l,j}

    lambda_t = 1 - (1 - (t+1)/T)^3;   1 from 0.8 T on
    alpha_t  = alpha_0 exp(-kappa t);   0 from 0.8 T on
    p_t      = 1 - exp(-k t),  k = ln 4 / (T/8);   1 from 0.9 T on            (see `soft.py`)

With lambda = 0 and a coin that always says 1 it is ASRFP.

Unlike the authors' code: once weak filters are zero and get no gradient they are held at zero, and leave the network while it
trains; there, momentum and weight decay move them until they are set to zero again. The mask stays on the device, where it
costs little. Interpretation: section numbers and the schedules' ends are those of that code (pretrained start), since the text
of the paper was not at hand; where channels of several layers are coupled, they share one coin.
"""

import torch

from compressor.methods.prune.soft import SoftPruning, asymptotic, cubic, decaying
from compressor.training.method import Job, Progress


class PGMPF(SoftPruning):
    """Shrinks the smallest filters after each epoch, and damps their gradients by a mask with random holes in the next.

    alpha: what is left of a weak filter after the first epoch, alpha_0
    sigma: what would be left of it after the last epoch
    ending: the share of training after which weak filters are zero and learn no more
    settled: the share of training after which the whole rate is pruned
    coin: let a weak filter learn in every second iteration only, on average
    """

    paper = "Cai et al., AAAI 2022 (on arXiv 2010.09498)"
    trains = True
    cutout = 0.375  # 12 of 32 pixels

    damping: torch.Tensor  # lambda_t of the epoch before

    def __init__(
        self,
        job: Job,
        *,
        alpha: float = 1.0,
        sigma: float = 1e-5,
        ending: float = 0.8,
        settled: float = 0.9,
        coin: bool = True,
    ) -> None:
        super().__init__(job, mask_norms=True)
        self.alpha, self.sigma, self.ending, self.settled, self.coin = alpha, sigma, ending, settled, coin
        self.register_buffer("damping", torch.zeros(()))

    def rate(self, progress: Progress) -> float:
        return asymptotic(progress, self.settled)

    def softness(self, progress: Progress) -> float:
        return decaying(progress, self.alpha, self.sigma, self.ending)

    def hardness(self, progress: Progress) -> float:
        over = self.softness(progress) == 0 and cubic(progress, self.ending) == 1
        return float(over)

    def begin_epoch(self, progress: Progress) -> None:
        super().begin_epoch(progress)
        self.damps = bool((self.weak & ~self.gone).any())

    def edit_gradients(self) -> None:
        if self.damps:
            tossed = torch.rand(len(self.weak), device=self.weak.device) < 0.5 if self.coin else torch.ones_like(self.weak)
            self.scale_gradients(torch.where(self.weak, (1 - self.damping) * tossed, 1.0), self.mask_norms)

    def end_epoch(self, progress: Progress) -> None:
        super().end_epoch(progress)
        self.damping.fill_(cubic(progress, self.ending))
