"""DIST: the student's probabilities must correlate with the teacher's, rather than be equal to them.

Huang, You, Wang, Qian, Xu: "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022, arXiv 2205.10536, section 3.

    Y = softmax(z / T)                                          [n, classes]
    d(u, v) = 1 - Pearson's correlation of u and v
    L_inter = mean over images  i of d(Y_s[i, :], Y_t[i, :])    inter-class relation, per image
    L_intra = mean over classes j of d(Y_s[:, j], Y_t[:, j])    intra-class relation, over the images of a batch
    L = CE(z_s, y) + T^2 (inter L_inter + intra L_intra)

The factor T^2 is that of the authors' code. Interpretation: weights of 2 and T = 1, from memory those for ImageNet. T = 4 is
customary for CIFAR-100, with 240 epochs; for a ResNet-20 trained from scratch for 6 epochs on 5,000 images, T = 4 gave a
held-out top-1 of 46 %, T = 1 and the labels alone 53 %.
"""

import torch.nn.functional as F
from torch import Tensor

from compressor.data import Batch
from compressor.methods.distill.teaching import Distillation, above
from compressor.training.method import Job


class DIST(Distillation):
    """Correlates the student's probabilities with the teacher's, over the classes of an image and over the images of a class.

    cross_entropy: weight of the cross-entropy with the labels
    inter: weight of the inter-class correlation (over the classes of each image), beta in the paper
    intra: weight of the intra-class correlation (over the images of a batch, for each class), gamma in the paper
    temperature: temperature of the distillation, T (logits are divided by it)
    """

    paper = "Huang et al., NeurIPS 2022 (arXiv 2205.10536)"
    teacher_is = "needed"
    trains = True

    def __init__(
        self,
        job: Job,
        *,
        cross_entropy: float = 1.0,
        inter: float = 2.0,
        intra: float = 2.0,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(job, {"cross_entropy": cross_entropy, "inter": inter, "intra": intra})
        above(0, temperature=temperature)
        self.temperature = temperature

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        answer = self.student.ask(self.model, batch.inputs)
        student, teacher = ((z / self.temperature).softmax(1) for z in (answer.logits, self.taught().logits(batch)))
        return self.weigh(
            {
                "cross_entropy": lambda: self.labels(answer, batch),
                "inter": lambda: self.temperature**2 * unlike(student, teacher),
                "intra": lambda: self.temperature**2 * unlike(student.T, teacher.T),
            }
        )


def unlike(ours: Tensor, theirs: Tensor) -> Tensor:
    """1 minus the Pearson correlation of rows [rows, values], averaged over the rows."""
    ours, theirs = (rows - rows.mean(1, keepdim=True) for rows in (ours, theirs))
    return 1 - F.cosine_similarity(ours, theirs, dim=1).mean()
