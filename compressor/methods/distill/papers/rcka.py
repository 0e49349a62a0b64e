"""RCKA: relation-centered kernel alignment, by CKA (centered kernel alignment) of student and teacher in logits and features.

Zhou, Shen, Shao, Gong, Lin: "Rethinking Centered Kernel Alignment in Knowledge Distillation", IJCAI 2024, arXiv 2401.11824.
Of the paper only the abstract was available: formulas and weights follow the authors' code (github.com/Klayand/PCKA).

    K = X X^T,  G = Y Y^T;   K_ij / sqrt(K_ii),  G_ij / sqrt(G_ii)      (the latter with `scale`)
    CKA(X, Y) = tr(K G^T) / sqrt(tr(K K^T) tr(G G^T)),  the cosine similarity of K and G as vectors
    L = CE(z_s, y) - intra CKA(z_t, z_s) - inter CKA(z_t^T, z_s^T) - feature sum over l of CKA'(F_t^l, F_s^l) [+ kd KL]

z are logits [n, classes]: the second term compares the n images of a batch, the third the classes. F are the features at the
end of stage l, [n, channels x height x width]: their Gram matrices are [n, n] for any number of channels, so no projection
between the two networks has to be trained. CKA' normalises each row of the Gram matrices to length 1 instead.

The authors' code does not center, despite the name; `center=true` subtracts the mean row from X and from Y first.

Unlike the authors' code: its weights differ between its files, with 15 for intra and inter in its run on logits, for 240
epochs and more. Here all weights are 1. For a ResNet-20 trained from scratch for 6 epochs on 5,000 images, weights of 15, 3
and 1 gave a held-out top-1 of 29, 49 and 53 %, and the labels alone 53 %.

Interpretation: the stages of two networks are matched from the last one backwards, as many as both have.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from compressor.data import Batch
from compressor.errors import UsageError
from compressor.methods.distill.teaching import Distillation, above
from compressor.tasks.likeness import softened
from compressor.training.method import Job


class RCKA(Distillation):
    """Aligns the similarities between images, and between classes, of student and teacher by CKA, in logits and features.

    cross_entropy: weight of the cross-entropy with the labels
    intra: weight of the CKA between images of a batch, in the logits
    inter: weight of the CKA between classes, in the logits of a batch
    feature: weight of the CKA between images of a batch, in the features of each stage
    kd: weight of the KL divergence from the teacher's softened probabilities
    center: subtract the mean row from logits and features first
    softmax: compare probabilities instead of logits
    scale: divide row i of the logits' Gram matrices by the square root of its entry i
    temperature: temperature of `kd` and `softmax`, T (logits are divided by it)
    """

    paper = "Zhou et al., IJCAI 2024 (arXiv 2401.11824)"
    teacher_is = "needed"
    trains = True

    def __init__(
        self,
        job: Job,
        *,
        cross_entropy: float = 1.0,
        intra: float = 1.0,
        inter: float = 1.0,
        feature: float = 1.0,
        kd: float = 0.0,
        center: bool = False,
        softmax: bool = False,
        scale: bool = True,
        temperature: float = 4.0,
    ) -> None:
        weights = {"cross_entropy": cross_entropy, "intra": intra, "inter": inter, "feature": feature, "kd": kd}
        super().__init__(job, weights)
        if feature and not self.pairs():
            raise UsageError("No taps were found whose features can be compared: name some with --taps, or --set feature=0.")
        self.center, self.softmax, self.scale = center, softmax, scale
        above(0, temperature=temperature)
        self.temperature = temperature

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        student = self.student.ask(self.model, batch.inputs)
        theirs: list[Tensor] = []
        if self.weights["feature"]:
            teacher = self.taught().ask(batch.inputs)
            logits, theirs = teacher.logits, teacher.features
        else:
            logits = self.taught().logits(batch)
        ours, wanted = self.shown(student.logits), self.shown(logits)
        return self.weigh(
            {
                "cross_entropy": lambda: self.labels(student, batch),
                "intra": lambda: -alignment(self.relations(wanted), self.relations(ours)),
                "inter": lambda: -alignment(self.relations(wanted.T), self.relations(ours.T)),
                "feature": lambda: self.features(student.features, theirs),
                "kd": lambda: softened(student.logits, logits, self.temperature),
            }
        )

    def shown(self, logits: Tensor) -> Tensor:
        return (logits / self.temperature).softmax(1) if self.softmax else logits

    def relations(self, rows: Tensor) -> Tensor:
        return gram(rows, self.center, self.scale)

    def features(self, ours: list[Tensor], theirs: list[Tensor]) -> Tensor:
        """Minus the sum of CKA' over the stages."""
        terms = [
            -alignment(*(F.normalize(gram(features.flatten(1), self.center), dim=1) for features in (theirs[t], ours[s])))
            for s, t in self.pairs()
        ]
        return torch.stack(terms).sum()


def gram(rows: Tensor, center: bool = False, scale: bool = False) -> Tensor:
    """Gram matrix of rows [n, values]: [n, n]; with `scale`, entry (i, j) divided by the square root of entry (i, i)."""
    with torch.autocast(rows.device.type, enabled=False):  # sums of thousands of squares overflow fp16
        rows = rows.float()
        if center:
            rows = rows - rows.mean(0)
        return (F.normalize(rows, dim=1) if scale else rows) @ rows.T


def alignment(ours: Tensor, theirs: Tensor) -> Tensor:
    """Cosine similarity of two Gram matrices [n, n] as vectors: a scalar."""
    return F.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0)
