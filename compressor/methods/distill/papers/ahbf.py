"""AHBF-OKD: branches of increasing depth are fused, one by one, into assistants, which teach the shallower branches.

Gong, Lin, Zhang, Shen, Li, Qiao, Ren, Li, Yu, Ma: "Adaptive Hierarchy-Branch Fusion for Online Knowledge Distillation", AAAI
2023. Only the abstract and the authors' code were available; the formulas follow the code. Its file for CIFAR ResNets does not
run, because it names a class that is not defined.

All stages but the last are shared. The last stage and the classifier exist M times: branch m has m a blocks more than the
given network, which is branch 0. Fusion module m concatenates the feature map U of the previous assistant (first F_0, that of
branch 0) and the feature map F_m of branch m, and predicts a weight for each of the two, per image:

    U_m = BN(Conv1x1([U_{m-1}, F_m]))                                  2 C -> C channels
    (g, h) = softmax(ReLU(BN(W GAP(U_m))))                             GAP: global average pooling
    u_m = g u_{m-1} + h z_m                                            logits of assistant m; u_0 = z_0

With KL(q || p) = T^2 KL of softmax(q / T), the teacher, and softmax(p / T), the student, and m = 1..M-1 in all sums but the
first:

    L = w_cross_entropy sum over m >= 0 of CE(z_m, y) + w_fused sum CE(u_m, y)
      + r w_assistant sum [ KL(u_m || u_{m-1}) + KL(u_m || z_m) ] + r w_branch sum KL(z_m || u_{m-1})
    r = 0.75 exp(-5 (1 - min(epoch, 240) / 240)^2)

M = 4, T = 3. The code has a = 2 (4 for ResNet-32), w_assistant = 2 and w_branch = 4; summaries of the paper have these two
weights the other way round. As in the code, the teacher's side receives gradients, too (`--set detach_teacher=true` stops
them).

As in the code, r depends on the number of epochs, of which it trains 300: in a short training the distillation terms stay
small. The shared stages receive the gradients of 2 M - 1 cross-entropies, so a short training needs a smaller learning rate: a
ResNet-20 trained from scratch for 3 epochs on 5,000 images had a held-out top-1 of 47 % at 0.02 and 26 % at 0.05; with the
labels alone, at 0.05, it had 42 %.

Interpretation: all networks get the additional blocks at the end of the last stage; the code spreads them over several stages
in some networks. The code adds 1e-7 to the teacher's probabilities, which log-softmax makes unnecessary. Interpretation: for
features that are tokens, pooling is over tokens.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from compressor.data import Batch
from compressor.methods.distill.taps import Answer, by_channel
from compressor.methods.distill.teaching import Branched, above, total
from compressor.tasks.likeness import softened
from compressor.training.method import Job, Progress


class AHBF(Branched):
    """Distils between branches of increasing depth: assistants, fused from the branches, teach the shallower ones.

    cross_entropy: weight of the cross-entropy with the labels, for each branch
    fused: weight of the cross-entropy with the labels, for each assistant
    assistant: weight of the distillation from each assistant to the previous one and to its own branch
    branch: weight of the distillation from each branch to the previous assistant
    branches: number of branches, M
    blocks: number of blocks that each branch has more than the previous one, a
    temperature: temperature of the distillation, T (logits are divided by it)
    detach_teacher: stop gradients into the teacher's side of the distillation terms
    """

    paper = "Gong et al., AAAI 2023"
    teacher_is = "none"
    trains = True

    def __init__(
        self,
        job: Job,
        *,
        cross_entropy: float = 1.0,
        fused: float = 1.0,
        assistant: float = 2.0,
        branch: float = 4.0,
        branches: int = 4,
        blocks: int = 2,
        temperature: float = 3.0,
        detach_teacher: bool = False,
    ) -> None:
        weights = {"cross_entropy": cross_entropy, "fused": fused, "assistant": assistant, "branch": branch}
        above(-1, blocks=blocks)
        above(0, temperature=temperature)
        super().__init__(job, weights, branches, deeper=blocks)
        self.temperature, self.detach_teacher, self.ramp = temperature, detach_teacher, ramp(0)
        width = self.student.widths(self.model)[-1]
        self.mixers = nn.ModuleList(mixer(width) for _ in self.others)
        self.gates = nn.ModuleList(gate(width) for _ in self.others)

    def begin_epoch(self, progress: Progress) -> None:
        self.ramp = ramp(progress.epoch)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        answers = self.answers(batch.inputs)
        assistants = self.assistants(answers)
        steps = [(*pair, answer.logits) for pair, answer in zip(pairwise(assistants), answers[1:], strict=True)]
        return self.weigh(
            {
                "cross_entropy": lambda: total(self.labels(answer, batch) for answer in answers),
                "fused": lambda: total(self.labels(answers[0]._replace(output=u), batch) for u in assistants[1:]),
                "assistant": lambda: self.ramp * total(self.teach(u, last) + self.teach(u, z) for last, u, z in steps),
                "branch": lambda: self.ramp * total(self.teach(z, last) for last, _, z in steps),
            }
        )

    def assistants(self, answers: list[Answer]) -> list[Tensor]:
        """Logits [n, classes] of branch 0 and of the M - 1 assistants."""
        fused, logits = by_channel(answers[0].features[-1]), [answers[0].logits]
        for mix, weigh, answer in zip(self.mixers, self.gates, answers[1:], strict=True):
            fused = mix(torch.cat([fused, by_channel(answer.features[-1])], 1))  # [n, C, positions]
            shares = weigh(fused.mean(2)).float()  # [n, 2]
            logits.append(shares[:, :1] * logits[-1] + shares[:, 1:] * answer.logits)
        return logits

    def teach(self, teacher: Tensor, student: Tensor) -> Tensor:
        """KL(teacher || student)."""
        return softened(student, teacher.detach() if self.detach_teacher else teacher, self.temperature)


def mixer(width: int) -> nn.Sequential:
    """1 x 1 convolution and batch norm: concatenated maps [n, 2 width, positions] -> [n, width, positions]."""
    return nn.Sequential(nn.Conv1d(2 * width, width, 1), nn.BatchNorm1d(width))


def gate(width: int) -> nn.Sequential:
    """Pooled features [n, width] -> the weights of two logits [n, 2]."""
    return nn.Sequential(nn.Linear(width, 2), nn.BatchNorm1d(2), nn.ReLU(), nn.Softmax(1))


def ramp(epoch: int) -> float:
    """r in this epoch, counted from 0."""
    return 0.75 * math.exp(-5 * (1 - min(epoch, 240) / 240) ** 2)
