"""DKD: decoupled knowledge distillation, with separate weights for the target class and the non-target classes.

Zhao, Cui, Song, Qiu, Liang: "Decoupled Knowledge Distillation", CVPR 2022, arXiv 2203.08679, section 3.

    p = softmax(z / T),   b = (p_y, 1 - p_y)                    the target class y against all others
    q = softmax of z_i / T over the non-target classes i != y
    KL(p_t || p_s) = KL(b_t || b_s) + (1 - p_y of the teacher) KL(q_t || q_s)
    L = CE(z_s, y) + ramp T^2 (tckd KL(b_t || b_s) + nckd KL(q_t || q_s))

Plain KD (third line) gives the non-target term (NCKD) less weight the more confident the teacher is; DKD replaces that factor
by a constant. The authors' nckd for CIFAR-100 is 8 for ResNet-32x4 to ResNet-8x4, 6 for pairs of Wide-ResNets and of VGGs, 2
for ResNet-56 to ResNet-20; for ImageNet it is 0.5, with T = 1. The default here is the smallest value for CIFAR: with 8 and a
learning rate of 0.05, a ResNet-20 trained from scratch, with a ResNet-56 as teacher (ten classes, 5,000 images), was at chance
level after four epochs.

The ramp (warm-up) is that of the authors' code: min(e / 20, 1) in epoch e = 1, 2, ... of 240. A shorter training ends before
the two terms reach their full weight, and a shorter ramp was worse: with one of 1.25 of 15 epochs, on 5,000 images, a
ResNet-20 trained from scratch ended 8.7 points below one trained with the labels alone.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from compressor.data import Batch
from compressor.methods.distill.teaching import Distillation, above
from compressor.tasks.likeness import softened
from compressor.training.method import Job, Progress

FAR = 1000.0  # subtracted from the target logit to exclude it from the softmax; an infinity would lead to 0 x infinity


class DKD(Distillation):
    """Splits the KD loss into a target-class and a non-target-class term with independent weights.

    cross_entropy: weight of the cross-entropy with the labels
    tckd: weight of target-class knowledge distillation (TCKD), alpha in the paper
    nckd: weight of non-target-class knowledge distillation (NCKD), beta in the paper
    temperature: temperature of the distillation, T (logits are divided by it)
    ramp: epochs of linear warm-up of tckd and nckd; 1: full weight from the first epoch
    """

    paper = "Zhao et al., CVPR 2022 (arXiv 2203.08679)"
    teacher_is = "needed"
    trains = True

    def __init__(
        self,
        job: Job,
        *,
        cross_entropy: float = 1.0,
        tckd: float = 1.0,
        nckd: float = 2.0,
        temperature: float = 4.0,
        ramp: int = 20,
    ) -> None:
        super().__init__(job, {"cross_entropy": cross_entropy, "tckd": tckd, "nckd": nckd})
        above(0, temperature=temperature, ramp=ramp)
        self.temperature, self.ramp = temperature, ramp
        self.grown = 1.0  # factor of tckd and nckd in this epoch

    def begin_epoch(self, progress: Progress) -> None:
        self.grown = min((progress.epoch + 1) / self.ramp, 1.0)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        student, teacher = self.student.ask(self.model, batch.inputs), self.taught().logits(batch)
        both = student.logits, teacher
        return self.weigh(
            {
                "cross_entropy": lambda: self.labels(student, batch),
                "tckd": lambda: self.grown * self.compare(*(right_or_not(z, batch.targets, self.temperature) for z in both)),
                "nckd": lambda: self.grown * self.compare(*(others(z, batch.targets, self.temperature) for z in both)),
            }
        )

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        return softened(student, teacher, self.temperature)


def right_or_not(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Logits [n, classes] -> [n, 2], whose softmax at this temperature is (p_y, 1 - p_y)."""
    right = targets[:, None]  # [n, 1]
    wrong = logits.scatter(1, right, -torch.inf)
    together = temperature * (wrong / temperature).logsumexp(1, keepdim=True)
    return torch.cat([logits.gather(1, right), together], dim=1)


def others(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Logits [n, classes] with the target logit lowered so far that its probability at this temperature is 0."""
    return logits - FAR * temperature * F.one_hot(targets, logits.shape[1])
