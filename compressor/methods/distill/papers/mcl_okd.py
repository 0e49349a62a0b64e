"""MCL-OKD: branches of one network embed the same image alike, and the one that is kept learns from their mean.

Yang, An, Xu: "Multi-view Contrastive Learning for Online Knowledge Distillation", ICASSP 2021, arXiv 2006.04093. Read were
only the abstract and the authors' code, which the formulas are of.

The first stage is shared, all behind it is there M times. Branch m embeds what its classifier reads, e_m = W_m h_m /
|W_m h_m|, of 128 numbers, and a bank keeps a row v_m for every training image. For each ordered pair of branches (i, j), image
b is told apart from K images of other classes, drawn anew, by noise-contrastive estimation:

    s_k = exp(<v_i[k], e_j[b]> / tau) / Z,    Z = N (mean of all exp(...) of this pair in the batch),    c = K / N
    L_ij = -mean over b of [ log( s_b / (s_b + c) ) + sum over the K others of log( c / (s_k + c) ) ]
    L = w_ce sum_m CE(z_m, y) + w_distillation T^2 KL(p_mean || p_0) + w_contrast sum over i != j of L_ij

with p = softmax(z / T), of the mean of all branches' logits for p_mean; no gradient goes through it, nor through Z. N, the
number of training images, drops out, for Z grows with it and c shrinks. After each step the batch's rows become v =
normalise(0.5 v + 0.5 e). tau = 0.1 (0.07 on ImageNet); K = 256 for ResNets and DenseNets, 16384 for VGG-16; T = 3.

The authors keep the last branch; here the first is the network that was given, and is kept: between branches nothing else
differs. On ImageNet they share two stages (`--set share=2`).

Interpretation: computed by log-sigmoid, nothing has to be added to denominators (the code adds 1e-7).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compressor.data import Batch
from compressor.errors import UsageError
from compressor.methods.distill.taps import Answer
from compressor.methods.distill.teaching import Branched, above, total
from compressor.tasks.classify import softened
from compressor.training.method import Job

WIDTH = 128  # of an embedding
MOMENTUM = 0.5  # share of a bank's row that stays


class MCLOKD(Branched):
    """Branches of one network learn to embed an image alike, from the labels, and the kept one from the mean of all.

    cross_entropy: weight of the labels for each branch
    distillation: weight of the mean answer, for the branch that is kept
    contrast: weight of telling an image's embedding from those of other classes, for each pair of branches
    branches: how many branches learn together, M
    share: how many stages they share; 0: all but the last
    temperature: what logits are divided by, T
    tau: what the similarity of two embeddings is divided by
    negatives: how many images of other classes each image is told from, K
    """

    paper = "Yang et al., ICASSP 2021 (arXiv 2006.04093)"
    teacher_is = "none"
    trains = True
    alone = True  # the bank
    bank: Tensor  # [M, rows, 128], a row for each index of a training image
    order: Tensor  # indices [N] of training images, class by class
    begins: Tensor  # where in it each class begins
    many: Tensor  # images of each class

    def __init__(
        self,
        job: Job,
        *,
        cross_entropy: float = 1.0,
        distillation: float = 1.0,
        contrast: float = 0.025,
        branches: int = 4,
        share: int = 1,
        temperature: float = 3.0,
        tau: float = 0.1,
        negatives: int = 256,
    ) -> None:
        weights = {"cross_entropy": cross_entropy, "distillation": distillation, "contrast": contrast}
        super().__init__(job, weights, branches, share)
        above(0, temperature=temperature, tau=tau, negatives=negatives)
        self.temperature, self.tau, self.negatives = temperature, tau, negatives
        self.embed = nn.ModuleList(nn.Linear(self.student.width, WIDTH) for _ in range(branches))
        if job.images is None:
            raise UsageError("This method remembers training images: give some with --data.")
        indices, targets = job.images.targets("train")
        many = targets.bincount()
        bank = torch.empty(branches, int(indices.max()) + 1, WIDTH).uniform_(-1, 1) * math.sqrt(3 / WIDTH)
        self.register_buffer("bank", bank)
        self.register_buffer("order", indices[targets.argsort(stable=True)], persistent=False)
        self.register_buffer("begins", many.cumsum(0) - many, persistent=False)
        self.register_buffer("many", many, persistent=False)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        answers = self.answers(batch.images)
        teacher = torch.stack([answer.logits for answer in answers]).mean(0).detach()
        return self.weigh(
            {
                "cross_entropy": lambda: total(self.labels(answer, batch) for answer in answers),
                "distillation": lambda: softened(answers[0].logits, teacher, self.temperature),
                "contrast": lambda: self.contrast(answers, batch),
            }
        )

    def contrast(self, answers: list[Answer], batch: Batch) -> Tensor:
        """The sum of L_ij over all pairs of branches."""
        pairs = zip(self.embed, answers, strict=True)
        embeddings = torch.stack([F.normalize(embed(answer.embedding).float()) for embed, answer in pairs])  # [M, n, 128]
        self.newest = embeddings.detach()
        rows = torch.cat([batch.indices[:, None], self.draw(batch.targets)], 1)  # [n, 1 + K]
        losses = []
        for i, bank in enumerate(self.bank):
            scores = torch.einsum("nkd,mnd->mnk", bank[rows], embeddings) / self.tau
            losses += [nce(score.float()) for j, score in enumerate(scores) if j != i]
        return total(losses)

    def draw(self, targets: Tensor) -> Tensor:
        """Indices [n, K] of training images, none of them of the class that it stands beside."""
        begins, many = self.begins[targets, None], self.many[targets, None]
        uniform = torch.rand(len(targets), self.negatives, dtype=torch.float64, device=targets.device)
        places = (uniform * (len(self.order) - many)).long()  # among the images of all other classes
        return self.order[torch.where(places < begins, places, places + many)]

    def end_step(self, batch: Batch) -> None:
        if self.weights["contrast"]:
            old = self.bank[:, batch.indices]
            self.bank[:, batch.indices] = F.normalize(MOMENTUM * old + (1 - MOMENTUM) * self.newest, dim=2)


def nce(scores: Tensor) -> Tensor:
    """L_ij from <v, e> / tau [n, 1 + K], the image's own in front.

    s / (s + c) = sigmoid(log s - log c), and log s - log c is the score less the log of (mean exp score) K: N is in both.
    """
    logits = scores - (scores.detach().logsumexp((0, 1)) - math.log(scores.numel())) - math.log(scores.shape[1] - 1)
    return -(F.logsigmoid(logits[:, 0]) + F.logsigmoid(-logits[:, 1:]).sum(1)).mean()
