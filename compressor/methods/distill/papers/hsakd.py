"""HSAKD: at the end of each stage, the student matches the teacher's joint distribution over classes and rotations.

Yang, An, Cai, Xu: "Hierarchical Self-supervised Augmented Knowledge Distillation", IJCAI 2021, arXiv 2107.13715. Of the paper
only the abstract was available; the formulas follow the authors' slides and code.

Each image is rotated by r = 0..3 times 90 degrees and has the joint label k = 4 y + r. Both networks have, at the end of each
stage l, an auxiliary head that predicts the joint label, with logits q_l. The teacher's heads are trained first:

    L_T = CE(z_t[r = 0], y) + sum_l CE(q_l^t, k)

then the student with its heads, without a cross-entropy with the joint labels:

    L_S = w_ce CE(z_s[r = 0], y) + w_joint sum_l T^2 KL(q_l^t || q_l^s) + w_kd T^2 KL(z_t || z_s)

Terms without [r = 0] are averaged over all four rotations. T = 3, and all weights are 1.

The paper has two kinds of teachers: one trained as usual and frozen while its heads are trained, for 100 epochs where the
student has 240, and (`joint=true`, the better one) one trained together with its heads, for as many epochs as the student.

Unlike the paper: the teacher that is trained together with its heads starts from its given weights, not from scratch.
Interpretation: for a network whose stages differ from a ResNet's, a head is a `branches.Branch`, a copy of the layers after
the end of the stage.
"""

from torch import Tensor

from compressor.data import Batch
from compressor.methods.distill.rotations import SelfSupervised, rotated
from compressor.training.method import Job


class HSAKD(SelfSupervised):
    """Distils the teacher's logits and, at the end of each stage, its joint distribution over classes and rotations.

    cross_entropy: weight of the cross-entropy with the labels, for images that are not rotated
    joint_kd: weight of the distillation from the teacher's auxiliary heads (joint distribution over classes and rotations)
    kd: weight of the distillation from the teacher's logits, for all rotations
    temperature: temperature of the distillation, T (logits are divided by it)
    joint: first train the teacher together with its auxiliary heads, not the heads alone
    """

    paper = "Yang et al., IJCAI 2021 (arXiv 2107.13715)"
    teacher_is = "needed"
    trains = True

    def __init__(
        self,
        job: Job,
        *,
        cross_entropy: float = 1.0,
        joint_kd: float = 1.0,
        kd: float = 1.0,
        temperature: float = 3.0,
        joint: bool = False,
    ) -> None:
        super().__init__(job, {"cross_entropy": cross_entropy, "joint_kd": joint_kd, "kd": kd}, temperature, joint)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        student, teacher = self.from_teacher(rotated(batch.inputs))
        return self.weigh(
            {
                "cross_entropy": lambda: self.labels(student.upright, batch),
                "joint_kd": lambda: self.imitate(student.joint, teacher.joint),
                "kd": lambda: self.imitate([student.logits], [teacher.logits]),
            }
        )
