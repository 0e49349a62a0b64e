"""Prior gradient mask guided pruning-aware fine-tuning (PGMPF): the gradients of weak filters are masked, too.

Cai, An, Yang, Yan, Xu: "Prior Gradient Mask Guided Pruning-Aware Fine-Tuning", AAAI 2022 (no arXiv number), section 3, which
extends the softer pruning of the same authors, arXiv 2010.09498.

After epoch t the weak filters, those of smallest norm, are scaled down as in ASRFP. In every iteration of the next epoch the
gradient of filter j of layer l is multiplied by the mask G, after the backward pass:

    B_j ~ Bernoulli(1/2), sampled for each filter and iteration
    G_j = 1 if kept,  (1 - lambda_t) B_j if weak
    g_{l,j} <- G_j g_{l,j}

    lambda_t = 1 - (1 - (t+1)/T)^3;   1 from 0.8 T on
    alpha_t  = alpha_0 exp(-kappa t);   0 from 0.8 T on
    p_t      = 1 - exp(-k t),  k = ln 4 / (T/8);   1 from 0.9 T on            (see `soft.py`)

With lambda = 0 and B_j = 1 this is ASRFP.

Unlike the authors' code: once weak filters are zero and their gradients are masked, they are kept at zero and removed from the
network during training; in that code, momentum and weight decay change them until they are zeroed again. The mask is computed
on the device.
Interpretation: section numbers and the ends of the schedules are from that code (pretrained start), because the full text was
not available; coupled channels of several layers share one B_j.
"""

import torch

from compressor.methods.prune.soft import SoftPruning, asymptotic, cubic, decaying
from compressor.training.method import Job, Progress


class PGMPF(SoftPruning):
    """Scales down the smallest filters after each epoch, and multiplies their gradients by a random mask in the next one.

    alpha: initial softness alpha_0, the factor of weak filters
    sigma: softness that the exponential schedule would reach after the last epoch
    ending: fraction of training after which weak filters and their gradients are zero
    settled: fraction of training after which the full pruning rate is reached
    coin: mask the gradient of a weak filter at random in half of the iterations (B_j); otherwise B_j is 1
    """

    paper = "Cai et al., AAAI 2022 (on arXiv 2010.09498)"
    trains = True
    cutout = 0.375  # 12 of 32 pixels

    damping: torch.Tensor  # lambda_t of the previous epoch

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
