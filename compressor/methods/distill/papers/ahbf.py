"""AHBF-OKD: ever deeper branches of one network are fused, one by one, into assistants that teach the shallower ones.

Gong, Lin, Zhang, Shen, Li, Qiao, Ren, Li, Yu, Ma: "Adaptive Hierarchy-Branch Fusion for Online Knowledge Distillation",
AAAI 2023. Read were only the abstract and the authors' code, which the formulas are of; the file for CIFAR's ResNets does not
run there, for it names a class that is nowhere.

All stages but the last are shared. The last one and the classifier are there M times, branch m with m a blocks more than the
network that was given, which is branch 0. Fusion m joins the map U of the assistant before (branch 0's map F_0 at first) with
branch m's map F_m, and says for each image how much each of the two counts:

    U_m = BN(Conv1x1([U_{m-1}, F_m]))                                  2 C -> C channels
    (g, h) = softmax(ReLU(BN(W mean of U_m over its positions)))
    u_m = g u_{m-1} + h z_m                                            logits of assistant m; u_0 = z_0

With KL(q || p) = T^2 KL of softmax(q / T), which teaches, and softmax(p / T), which learns, and m = 1..M-1 in all but the
first sum:

    L = w_cross_entropy sum over m >= 0 of CE(z_m, y) + w_fused sum CE(u_m, y)
      + r w_assistant sum [ KL(u_m || u_{m-1}) + KL(u_m || z_m) ] + r w_branch sum KL(z_m || u_{m-1})
    r = 0.75 exp(-5 (1 - min(epoch, 240) / 240)^2)

M = 4, T = 3. The code has a = 2, and 4 for ResNet-32; 2 for w_assistant and 4 for w_branch. Summaries of the paper have these
two the other way round. Gradients go to the side that teaches, too, as in the code (`--set detach_teacher=true` stops them).

As in the code, r counts epochs, of which it trains for 300: in a short training branches hardly teach each other. The shared
stages learn from 2 M - 1 cross-entropies at once, and a short training wants a smaller rate for that: a ResNet-20 with new
weights knew 47 % of held-out images after 3 epochs on 5,000 at 0.02, 26 % at 0.05, and with labels alone, at 0.05, 42 %.

Interpretation: branches are deeper at the end of the last stage, in all networks; the code spreads their blocks over several
stages of some. The code adds 1e-7 to probabilities that teach, which logarithms of softmax do not need. Interpretation: where
features are tokens, positions are tokens.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from compressor.data import Batch
from compressor.methods.distill.taps import Answer, by_channel
from compressor.methods.distill.teaching import Branched, above, total
from compressor.tasks.classify import softened
from compressor.training.method import Job, Progress


class AHBF(Branched):
    """Ever deeper branches learn from the labels, and assistants fused from them teach the shallower ones.

    cross_entropy: weight of the labels for each branch
    fused: weight of the labels for each assistant
    assistant: weight of what an assistant teaches the one before it, and its own branch
    branch: weight of what a branch teaches the assistant before it
    branches: how many branches learn together, M
    blocks: how many blocks each branch has more than the one before, a
    temperature: what logits are divided by, T
    detach_teacher: let no gradient go to the side that teaches
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
        answers = self.answers(batch.images)
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
    """Two maps side by side [n, 2 width, positions] to one [n, width, positions], by what is a 1 x 1 convolution of maps."""
    return nn.Sequential(nn.Conv1d(2 * width, width, 1), nn.BatchNorm1d(width))


def gate(width: int) -> nn.Sequential:
    """Means of a map [n, width] to the shares of two logits [n, 2]."""
    return nn.Sequential(nn.Linear(width, 2), nn.BatchNorm1d(2), nn.ReLU(), nn.Softmax(1))


def ramp(epoch: int) -> float:
    """r after so many epochs."""
    return 0.75 * math.exp(-5 * (1 - min(epoch, 240) / 240) ** 2)
