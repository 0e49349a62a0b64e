"""ONE: on-the-fly native ensemble; the branches of one network distil from their gated ensemble.

Lan, Zhu, Gong: "Knowledge Distillation by On-the-Fly Native Ensemble", NeurIPS 2018, arXiv 1806.04606. Only the
abstract and an implementation in the code of MCL-OKD, for CIFAR-100, were available.

The network's last stage and its classifier exist M times, with separate weights; all layers before are shared. A gate predicts
a weight per branch, for each image, from the shared feature map F:

    g = softmax(ReLU(BN(W GAP(F))))                                  [M]; GAP: global average pooling
    z_e = sum over m of g_m z_m
    L = w_ce sum_m CE(z_m, y) + w_ensemble CE(z_e, y) + w_distillation sum_m T^2 KL(softmax(z_e / T) || softmax(z_m / T))

The ensemble is trained with the labels, through gate and branches; as the teacher it is detached. T = 3. Interpretation: M = 3
(from memory of the paper; the code has 4). The first branch is the given network, and is kept.

Interpretation: the number of shared stages is a setting. For features that are tokens, pooling is over tokens.
"""

import torch
from torch import Tensor, nn

from compressor.data import Batch
from compressor.methods.distill.taps import by_channel
from compressor.methods.distill.teaching import Branched, above, total
from compressor.tasks.likeness import softened
from compressor.training.method import Job


class ONE(Branched):
    """Trains branches of one network with the labels and with their ensemble, which a gate weights for each image.

    cross_entropy: weight of the cross-entropy with the labels, for each branch
    ensemble: weight of the cross-entropy with the labels, for the ensemble
    distillation: weight of the distillation from the ensemble, for each branch
    branches: number of branches, M
    share: number of stages that branches share; 0: all but the last
    temperature: temperature of the distillation, T (logits are divided by it)
    """

    paper = "Lan et al., NeurIPS 2018 (arXiv 1806.04606)"
    teacher_is = "none"
    trains = True

    def __init__(
        self,
        job: Job,
        *,
        cross_entropy: float = 1.0,
        ensemble: float = 1.0,
        distillation: float = 1.0,
        branches: int = 3,
        share: int = 0,
        temperature: float = 3.0,
    ) -> None:
        weights = {"cross_entropy": cross_entropy, "ensemble": ensemble, "distillation": distillation}
        super().__init__(job, weights, branches, share)
        above(0, temperature=temperature)
        self.temperature = temperature
        width = self.student.widths(self.model)[self.shared]
        self.gate = nn.Sequential(nn.Linear(width, branches), nn.BatchNorm1d(branches), nn.ReLU(), nn.Softmax(1))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        answers = self.answers(batch.inputs)
        shares = self.gate(by_channel(answers[0].features[self.shared]).mean(2))  # [n, M]
        mixed = ensemble(shares, torch.stack([answer.logits for answer in answers], 1))
        together, teacher = answers[0]._replace(output=mixed, logits=mixed), mixed.detach()
        return self.weigh(
            {
                "cross_entropy": lambda: total(self.labels(answer, batch) for answer in answers),
                "ensemble": lambda: self.labels(together, batch),
                "distillation": lambda: total(softened(answer.logits, teacher, self.temperature) for answer in answers),
            }
        )


def ensemble(shares: Tensor, logits: Tensor) -> Tensor:
    """Logits [n, M, classes], weighted per image by shares [n, M]: [n, classes]."""
    return (shares.float()[:, :, None] * logits).sum(1)
