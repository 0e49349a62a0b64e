"""Decoupled knowledge distillation: what the teacher says of the right class, and of all others, weighed apart.

Zhao, Cui, Song, Qiu, Liang: "Decoupled Knowledge Distillation", CVPR 2022, arXiv 2203.08679, section 3.

    p = softmax(z / T),   b = (p_y, 1 - p_y)                    of the right class y against the rest
    q = softmax of z_i / T over the classes i other than y
    KL(p_t || p_s) = KL(b_t || b_s) + (1 - p_y of the teacher) KL(q_t || q_s)
    L = CE(z_s, y) + ramp T^2 (tckd KL(b_t || b_s) + nckd KL(q_t || q_s))

In the third line the part of the other classes counts the less, the surer the teacher is; the fourth takes that factor away.
The authors' nckd for CIFAR-100 is 8 from a ResNet-32x4 to a ResNet-8x4, 6 for pairs of Wide-ResNets and of VGGs, 2 from a
ResNet-56 to a ResNet-20; for ImageNet it is 0.5, with T = 1. The least of those for CIFAR is the default here: with 8, and
a rate of 0.05, a new ResNet-20 that a ResNet-56 taught ten classes on 5,000 images was at chance after four epochs.

The ramp is that of the authors' code: min(e / 20, 1) in epoch e = 1, 2, ... of 240. A shorter training ends before the two
terms have their whole weight, and is the better for it: with a ramp of 1.25 of 15 epochs, on 5,000 images, a new ResNet-20
ended 8.7 points below one that had the labels alone.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from compressor.data import Batch
from compressor.methods.distill.teaching import Distillation, above
from compressor.tasks.classify import softened
from compressor.training.method import Job, Progress

FAR = 1000.0  # what the right class is behind the others when only these are compared; an infinity would make 0 x infinity


class DKD(Distillation):
    """The student learns from the teacher how likely the right class is and, apart from that, how the others compare.

    cross_entropy: weight of the labels
    tckd: weight of the teacher's probability of the right class, the paper's alpha
    nckd: weight of the teacher's probabilities among the other classes, the paper's beta
    temperature: what logits are divided by, T
    ramp: epochs in which the teacher's two weights grow to what they are; 1: they have them at once
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
        self.grown = 1.0  # the share of their weights that the teacher's terms have in this epoch

    def begin_epoch(self, progress: Progress) -> None:
        self.grown = min((progress.epoch + 1) / self.ramp, 1.0)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        student, teacher = self.student.ask(self.model, batch.images), self.taught().logits(batch)
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
    """Logits [n, classes] with the right class so far behind that its share of the softmax at this temperature is 0."""
    return logits - FAR * temperature * F.one_hot(targets, logits.shape[1])
