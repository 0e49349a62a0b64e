"""HSSAKD: peers distil joint distributions over classes and rotations into each other, at the end of each stage.

Yang, An, Cai, Xu: "Knowledge Distillation Using Hierarchical Self-Supervision Augmented Distribution", IEEE TNNLS, 2022,
arXiv 2109.03075. Of the paper only the abstract was available; the formulas follow the authors' code.

Each image is rotated by r = 0..3 times 90 degrees and has the joint label k = 4 y + r. Each network m of M has, at the end of
each stage l, an auxiliary head that predicts the joint label, with logits q_l^m. All are trained together from scratch:

    L = sum_m [w_ce CE(z_m[r = 0], y) + w_labels sum_l CE(q_l^m, k)]
        + 1 / (M - 1) sum_{m != n} [w_kd T^2 KL(z_n || z_m) + w_joint sum_l T^2 KL(q_l^n || q_l^m)]

Terms without [r = 0] are averaged over all four rotations, and in the KL terms network n, the teacher, is detached. T = 3, all
weights are 1, and M = 2.

With a teacher, this is the method of the same authors' paper of IJCAI 2021 (arXiv 2107.13715): the teacher takes the place of
network n, and there are no peers. Its heads are trained before the student: alone, for 100 epochs where the student has 240,
or with `joint=true` together with the teacher, for as many epochs as the student. The student has no cross-entropy with the
joint labels.

Unlike the paper: the first network starts from its given weights, and it is the one that is kept, not the better one.

Interpretation: with M > 2, the factor 1 / (M - 1) keeps the weight of the distillation the same as with one other network.
"""

from torch import Tensor, nn

from compressor.data import Batch
from compressor.methods.distill.rotations import Heads, SelfSupervised, Told, rotated
from compressor.methods.distill.teaching import above, ordered_pairs, total
from compressor.training.method import Job


class HSSAKD(SelfSupervised):
    """Distils logits and joint distributions over classes and rotations between peers, or from a teacher.

    cross_entropy: weight of the cross-entropy with the labels, for images that are not rotated
    joint_labels: weight of the cross-entropy with the joint labels, for the auxiliary heads; only without a teacher
    kd: weight of the distillation of logits, for all rotations
    joint_kd: weight of the distillation between auxiliary heads (joint distribution over classes and rotations)
    temperature: temperature of the distillation, T (logits are divided by it)
    peers: number of networks, M; only without a teacher
    joint: first train the teacher, if there is one, together with its auxiliary heads, not the heads alone
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
        """The trained networks, and pairs (student, teacher)."""
        student, teacher = self.from_teacher(rotated(batch.inputs))
        return [student], [(student, teacher)]

    def online(self, batch: Batch) -> tuple[list[Told], list[tuple[Told, Told]]]:
        """The same for peers: each is the student of every other."""
        images = rotated(batch.inputs)
        networks, heads = [self.model, *self.peers], [self.heads, *self.peers_heads]
        told = [Told(self.student.ask(network, images), its) for network, its in zip(networks, heads, strict=True)]
        return told, [(told[m], told[n]) for m, n in ordered_pairs(len(told))]
