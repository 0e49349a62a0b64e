"""KD: knowledge distillation from the teacher's softened class probabilities, in addition to the labels.

Hinton, Vinyals, Dean: "Distilling the Knowledge in a Neural Network", 2015, arXiv 1503.02531, section 2, and, with
`standardise=true`, Sun, Ren, Li, Wang, Cao: "Logit Standardization in Knowledge Distillation", CVPR 2024, arXiv 2403.01427.

    p = softmax(z / T)
    L = w_ce CE(z_s, y) + w_kd T^2 KL(p_t || p_s)

The weights 0.1 and 0.9 and T = 4 are customary for CIFAR-100 since Tian et al., ICLR 2020, arXiv 1910.10699. The second paper
standardises each row of logits to mean 0 and standard deviation 1 before dividing it by T, so that the student need not match
the scale of the teacher's logits; it uses T = 2 and a weight of 9.

Beyond the papers, other networks than classifiers have the loss of their task in place of CE, and in place of the divergence
what their task compares outputs by: the divergence of each pixel, or for images the mean squared error, which has no T.
"""

from torch import Tensor

from compressor.data import Batch
from compressor.errors import UsageError
from compressor.methods.distill.teaching import Distillation, above
from compressor.training.method import Job

TINY = 1e-7


class KD(Distillation):
    """Trains the student on the teacher's softened class probabilities and on the labels.

    cross_entropy: weight of the cross-entropy with the labels
    kd: weight of the KL divergence from the teacher's softened probabilities
    temperature: temperature of the distillation, T (logits are divided by it)
    standardise: scale each row of logits to mean 0 and standard deviation 1 first (its paper: temperature=2 and kd=9)
    """

    paper = "Hinton et al., 2015 (arXiv 1503.02531); Sun et al., CVPR 2024 (arXiv 2403.01427)"
    teacher_is = "needed"
    tasks = ""
    trains = True

    def __init__(
        self,
        job: Job,
        *,
        cross_entropy: float = 0.1,
        kd: float = 0.9,
        temperature: float = 4.0,
        standardise: bool = False,
    ) -> None:
        super().__init__(job, {"cross_entropy": cross_entropy, "kd": kd})
        above(0, temperature=temperature)
        self.temperature = temperature
        self.scaled = standardised if standardise else lambda logits: logits
        if standardise and job.task.name != "classify":
            raise UsageError("--set standardise=true is for the logits of a classifier: omit it.")

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        student, teacher = self.student.ask(self.model, batch.inputs), self.taught().logits(batch)
        return self.weigh(
            {
                "cross_entropy": lambda: self.labels(student, batch),
                "kd": lambda: self.job.task.distance([self.scaled(student.logits)], [self.scaled(teacher)], self.temperature),
            }
        )


def standardised(logits: Tensor) -> Tensor:
    """Each row minus its mean, divided by its sample standard deviation.

    Sun, Ren, Li, Wang, Cao: "Logit Standardization in Knowledge Distillation", CVPR 2024, arXiv 2403.01427, algorithm 1.
    """
    return (logits - logits.mean(1, keepdim=True)) / (logits.std(1, keepdim=True) + TINY)
