"""HSSAKD: networks of one build teach each other, at the end of each stage, what they make of turned images.

Yang, An, Cai, Xu: "Knowledge Distillation Using Hierarchical Self-Supervision Augmented Distribution", IEEE TNNLS, 2022,
arXiv 2109.03075. Of the paper only the abstract was read; the formulas are those of its authors' code.

Each image comes in four turns, r = 0..3 times 90 degrees, and has the joint label k = 4 y + r. Each network m of M has, at the
end of each stage l, a head that tells the joint label, q_l^m. All are trained together from scratch:

    L = sum_m [w_ce CE(z_m[r = 0], y) + w_labels sum_l CE(q_l^m, k)]
        + 1 / (M - 1) sum_{m != n} [w_kd T^2 KL(z_n || z_m) + w_joint sum_l T^2 KL(q_l^n || q_l^m)]

Terms without [r = 0] are averaged over all four turns, and network n gets no gradient from what it teaches m. T = 3, all
weights are 1, and M = 2.

With a teacher this is the method of the same authors' paper of IJCAI 2021 (arXiv 2107.13715): there are no other networks, the
teacher takes the place of network n, its heads are trained before the student, for 100 epochs where that has 240, or with
`joint=true` together with itself and for as long, and the student is told no joint label.

Unlike the paper: the first network begins with the weights that it has, and it is the one that is kept, not the better one.

Interpretation: with M > 2, 1 / (M - 1), so that a network learns as much from the others as it does from one.
"""

from torch import Tensor, nn

from compressor.data import Batch
from compressor.methods.distill.rotations import Heads, SelfSupervised, Told, rotated
from compressor.methods.distill.teaching import above, ordered_pairs, total
from compressor.training.method import Job


class HSSAKD(SelfSupervised):
    """Networks learn from each other, or from a teacher, which class and which turn is seen at the end of each stage.

    cross_entropy: weight of the labels, for images that are not turned
    joint_labels: weight of the labels of class and turn, for the heads of networks without a teacher
    kd: weight of each other's answers, for images in all turns
    joint_kd: weight of what each other's heads tell of class and turn
    temperature: what logits are divided by, T
    peers: how many networks learn together when there is no teacher, M
    joint: train the teacher, if there is one, together with its heads first, not the heads alone
    """

    paper = "Yang et al., TNNLS 2022 (arXiv 2109.03075)"
    teacher_is = "optional"
    trains = True

    def __init__(
        self,
        job: Job,
        *,
        cross_entropy: float = 1.0,
        joint_labels: float = 1.0,
        kd: float = 1.0,
        joint_kd: float = 1.0,
        temperature: float = 3.0,
        peers: int = 2,
        joint: bool = False,
    ) -> None:
        told = joint_labels if job.teacher is None else 0.0
        weights = {"cross_entropy": cross_entropy, "joint_labels": told, "kd": kd, "joint_kd": joint_kd}
        super().__init__(job, weights, temperature, joint)
        above(1, peers=peers)
        self.peers = self.copies(peers - 1 if self.teacher is None else 0)
        self.peers_heads = nn.ModuleList(Heads(peer, self.student) for peer in self.peers)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        learners, lessons = self.online(batch) if self.teacher is None else self.offline(batch)
        share = 1 / max(1, len(learners) - 1)
        return self.weigh(
            {
                "cross_entropy": lambda: total([self.labels(m.upright, batch) for m in learners]),
                "joint_labels": lambda: total([m.joint_cross_entropy(batch.targets) for m in learners]),
                "kd": lambda: share * total([self.imitate([m.logits], [n.logits]) for m, n in lessons]),
                "joint_kd": lambda: share * total([self.imitate(m.joint, n.joint) for m, n in lessons]),
            }
        )

    def offline(self, batch: Batch) -> tuple[list[Told], list[tuple[Told, Told]]]:
        """Who learns, and who learns from whom: the student from the teacher."""
        student, teacher = self.from_teacher(rotated(batch.images))
        return [student], [(student, teacher)]

    def online(self, batch: Batch) -> tuple[list[Told], list[tuple[Told, Told]]]:
        """Likewise: each network from each other."""
        images = rotated(batch.images)
        networks, heads = [self.model, *self.peers], [self.heads, *self.peers_heads]
        told = [Told(self.student.ask(network, images), its) for network, its in zip(networks, heads, strict=True)]
        return told, [(told[m], told[n]) for m, n in ordered_pairs(len(told))]
