"""MCL-OKD: contrastive learning between branches of one network, whose mean logits teach the branch that is kept.

Yang, An, Xu: "Multi-view Contrastive Learning for Online Knowledge Distillation", ICASSP 2021, arXiv 2006.04093. Only the
abstract and the authors' code were available; the formulas follow the code.

The first stage is shared; all later layers exist M times. Branch m maps the input h_m of its classifier to an embedding e_m =
W_m h_m / |W_m h_m| of dimension 128, and a memory bank keeps a row v_m for every training image. For each ordered pair of
branches (i, j), noise-contrastive estimation (NCE) discriminates image b from K negatives, drawn from other classes in each
step:

    s_k = exp(<v_i[k], e_j[b]> / tau) / Z,    Z = N (mean of all exp(...) of this pair in the batch),    c = K / N
    L_ij = -mean over b of [ log( s_b / (s_b + c) ) + sum over the K others of log( c / (s_k + c) ) ]
    L = w_ce sum_m CE(z_m, y) + w_distillation T^2 KL(p_mean || p_0) + w_contrast sum over i != j of L_ij

with p = softmax(z / T), where p_mean is that of the mean of all branches' logits; p_mean and Z are detached. N, the number of
training images, cancels: Z grows with it, and c shrinks. After each step, the rows of the batch are updated:
v = normalise(0.5 v + 0.5 e). tau = 0.1 (0.07 on ImageNet); K = 256 for ResNets and DenseNets, 16384 for VGG-16; T = 3.

The authors keep the last branch; here the first is the given network, and is kept. The branches differ in nothing else. On
ImageNet they share two stages (`--set share=2`).

Interpretation: with log-sigmoid, the 1e-7 that the code adds to denominators is not needed.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compressor.data import Batch
from compressor.errors import UsageError
from compressor.methods.distill.taps import Answer
from compressor.methods.distill.teaching import Branched, above, total
from compressor.tasks.likeness import softened
from compressor.training.method import Job

WIDTH = 128  # of an embedding
MOMENTUM = 0.5  # weight of the old row in an update of the bank


class MCLOKD(Branched):
    """Contrasts the embeddings of an image by branches of one network; their mean logits teach the branch that is kept.

    cross_entropy: weight of the cross-entropy with the labels, for each branch
    distillation: weight of the distillation from the mean logits to the branch that is kept
    contrast: weight of the contrastive loss (NCE), for each pair of branches
    branches: number of branches, M
    share: number of stages that branches share; 0: all but the last
    temperature: temperature of the distillation, T (logits are divided by it)
    tau: temperature of the similarities in the contrastive loss
    negatives: number of negatives (images of other classes) per image, K
    """

    paper = "Yang et al., ICASSP 2021 (arXiv 2006.04093)"
    teacher_is = "none"
    trains = True
    alone = True  # the memory bank
    bank: Tensor  # [M, rows, 128], a row per index of a training image
    order: Tensor  # indices [N] of training images, sorted by class
    begins: Tensor  # offset of each class in `order`
    many: Tensor  # number of images of each class

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
            raise UsageError("This method keeps an embedding per training image: give images with --data.")
        indices, targets = job.images.targets("train")
        many = targets.bincount()
        bank = torch.empty(branches, int(indices.max()) + 1, WIDTH).uniform_(-1, 1) * math.sqrt(3 / WIDTH)
        self.register_buffer("bank", bank)
        self.register_buffer("order", indices[targets.argsort(stable=True)], persistent=False)
        self.register_buffer("begins", many.cumsum(0) - many, persistent=False)
        self.register_buffer("many", many, persistent=False)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        answers = self.answers(batch.inputs)
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
            with torch.autocast(embeddings.device.type, enabled=False):  # half precision is too coarse for tau
                scores = torch.einsum("nkd,mnd->mnk", bank[rows], embeddings) / self.tau
            losses += [nce(score.float()) for j, score in enumerate(scores) if j != i]
        return total(losses)

    def draw(self, targets: Tensor) -> Tensor:
        """Indices [n, K] of random training images, of other classes than that of their row."""
        begins, many = self.begins[targets, None], self.many[targets, None]
        uniform = torch.rand(len(targets), self.negatives, dtype=torch.float64, device=targets.device)
        places = (uniform * (len(self.order) - many)).long()  # among the images of all other classes
        return self.order[torch.where(places < begins, places, places + many)]

    def end_step(self, batch: Batch) -> None:
        if self.weights["contrast"]:
            old = self.bank[:, batch.indices]
            self.bank[:, batch.indices] = F.normalize(MOMENTUM * old + (1 - MOMENTUM) * self.newest, dim=2)


def nce(scores: Tensor) -> Tensor:
    """L_ij from <v, e> / tau [n, 1 + K], the positive first.

    s / (s + c) = sigmoid(log s - log c), and log s - log c is the score minus log(K mean(exp(scores))): N cancels.
    """
    logits = scores - (scores.detach().logsumexp((0, 1)) - math.log(scores.numel())) - math.log(scores.shape[1] - 1)
    return -(F.logsigmoid(logits[:, 0]) + F.logsigmoid(-logits[:, 1:]).sum(1)).mean()
