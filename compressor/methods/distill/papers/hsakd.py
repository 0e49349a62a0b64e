"""HSAKD: the student learns, at the end of each stage, what the teacher makes of turned images.

Yang, An, Cai, Xu: "Hierarchical Self-supervised Augmented Knowledge Distillation", IJCAI 2021, arXiv 2107.13715. Of the paper
only the abstract was read; the formulas are those of its authors' slides and code.

Each image comes in four turns, r = 0..3 times 90 degrees, and has the joint label k = 4 y + r. Both networks have, at the end
of each stage l, a head that tells the joint label, q_l. The teacher's heads are trained first:

    L_T = CE(z_t[r = 0], y) + sum_l CE(q_l^t, k)

and then the student with its heads. The student itself is told no joint label:

    L_S = w_ce CE(z_s[r = 0], y) + w_joint sum_l T^2 KL(q_l^t || q_l^s) + w_kd T^2 KL(z_t || z_s)

Terms without [r = 0] are averaged over all four turns. T = 3, and all weights are 1.

The paper has two teachers: one that is trained as usual and frozen while its heads learn, for 100 epochs where the student has
240, and (`joint=true`, the better one) one that is trained together with its heads, for as long as the student.

Unlike the paper: the teacher that is trained together with its heads begins with the weights that it has, not from scratch.
Interpretation: for a network with other stages than a ResNet, a head is what `taps.Branch` makes of the rest of the network.
"""

from torch import Tensor

from compressor.data import Batch
from compressor.methods.distill.rotations import SelfSupervised, rotated
from compressor.training.method import Job


class HSAKD(SelfSupervised):
    """The student learns which class and which turn the teacher sees at the end of each stage, its answers, and the labels.

    cross_entropy: weight of the labels, for images that are not turned
    joint_kd: weight of what the teacher's heads tell of class and turn
    kd: weight of the teacher's answers, for images in all turns
    temperature: what logits are divided by, T
    joint: train the teacher together with its heads first, not the heads alone
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
        student, teacher = self.from_teacher(rotated(batch.images))
        return self.weigh(
            {
                "cross_entropy": lambda: self.labels(student.upright, batch),
                "joint_kd": lambda: self.imitate(student.joint, teacher.joint),
                "kd": lambda: self.imitate([student.logits], [teacher.logits]),
            }
        )
