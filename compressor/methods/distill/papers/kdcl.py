"""KDCL: peers, each trained on its own augmented view of the images, distil from an ensemble of their logits.

Guo, Wang, Wu, Yu, Liang, Hu, Luo: "Online Knowledge Distillation via Collaborative Learning", CVPR 2020. It is in no open
archive, and only the abstract was available: several networks are trained together in one stage, with soft targets made from
all their outputs, on distorted images. Everything below that goes beyond this is an interpretation, from memory of the paper.

Each of M networks gets its own random augmentation of the same image. With p = softmax(z / T):

    L = sum over m of [ w_ce CE(z_m, y) + w_distillation T^2 KL(p_t || p_m) ]

p_t is detached. The teacher's logits z_t are, with `--set ensemble=...`:

    minlogit   z_t[c] = min over m of ( z_m[c] - z_m[y] ):  the smallest logit of each class relative to the true class
    naive      z_m of the network with the lowest cross-entropy on this batch
    linear     sum of a_m z_m, a >= 0 with sum 1, with the lowest cross-entropy on this batch
    general    sum of a_m z_m, a = C^-1 1 / (1^T C^-1 1), C[m, n] = mean of <e_m, e_n>, e_m = softmax(z_m) - onehot(y)

For `general`, C is measured on the held-out images before each epoch; these a can be negative. Interpretation: a millionth of
its mean is added to the diagonal of C (ridge), for networks with equal predictions. Interpretation: T = 2, weights of 1, and
M = 2 networks of the same architecture; the first is the given network, and is kept.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from compressor.data import Batch
from compressor.errors import UsageError, did_you_mean
from compressor.methods.distill.teaching import Distillation, above, total
from compressor.network.meta_device import evaluating
from compressor.tasks.likeness import softened
from compressor.training.method import Job, Progress

ENSEMBLES = ("minlogit", "naive", "linear", "general")
STEPS = 20  # of LBFGS, for `linear`
LOOK = 500  # held-out images per batch


class KDCL(Distillation):
    """Trains peers together, each on its own augmented view of the images, with labels and an ensemble of their logits.

    cross_entropy: weight of the cross-entropy with the labels
    distillation: weight of the distillation from the ensemble
    peers: number of networks, M
    ensemble: how the teacher's logits are made from the peers' logits: minlogit, naive, linear or general
    temperature: temperature of the distillation, T (logits are divided by it)
    """

    paper = "Guo et al., CVPR 2020"
    teacher_is = "none"
    trains = True
    shares: Tensor

    def __init__(
        self,
        job: Job,
        *,
        cross_entropy: float = 1.0,
        distillation: float = 1.0,
        peers: int = 2,
        ensemble: str = "minlogit",
        temperature: float = 2.0,
    ) -> None:
        super().__init__(job, {"cross_entropy": cross_entropy, "distillation": distillation})
        above(1, peers=peers)
        above(0, temperature=temperature)
        if ensemble not in ENSEMBLES:
            near = did_you_mean(ensemble, ENSEMBLES)
            raise UsageError(f"--set ensemble={ensemble}: must be one of {', '.join(ENSEMBLES)}{near or '.'}")
        self.ensemble, self.temperature, self.views = ensemble, temperature, peers
        self.others = self.copies(peers - 1)
        self.register_buffer("shares", torch.full((peers,), 1 / peers))  # a of `general`

    def begin_epoch(self, progress: Progress) -> None:
        if self.ensemble == "general" and self.weights["distillation"]:
            self.shares.copy_(uncorrelated(self.covariance()))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        views, networks = batch.views or (batch.inputs,) * self.views, (self.model, *self.others)
        answers = [self.student.ask(network, view) for network, view in zip(networks, views, strict=True)]
        logits = torch.stack([answer.logits for answer in answers])  # [M, n, classes]

        def distillation() -> Tensor:
            teacher = self.teach(logits.detach(), batch.targets)
            return total(softened(student, teacher, self.temperature) for student in logits)

        return self.weigh(
            {
                "cross_entropy": lambda: total(self.labels(answer, batch) for answer in answers),
                "distillation": distillation,
            }
        )

    def teach(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The teacher's logits [n, classes] from those of M networks [M, n, classes]."""
        match self.ensemble:
            case "minlogit":
                return least(logits, targets)
            case "naive":
                return mixed(best(logits, targets), logits)
            case "linear":
                return mixed(best_together(logits, targets), logits)
        return mixed(self.shares, logits)

    @torch.no_grad()
    def covariance(self) -> Tensor:
        """C [M, M] on the held-out images. Raises UsageError if there are none."""
        device = self.shares.device
        looks = self.job.images.batches("held_out", batch_size=LOOK, device=device, augment=False) if self.job.images else ()
        found, images = torch.zeros(len(self.shares), len(self.shares), device=device), 0
        with evaluating(self):
            for batch in looks:
                logits = [self.student.ask(network, batch.inputs).logits for network in (self.model, *self.others)]
                found += products(torch.stack(logits), batch.targets)
                images += len(batch.inputs)
        if not images:
            raise UsageError("--set ensemble=general needs held-out images, and there are none: use more images, or minlogit.")
        return found / images


def least(logits: Tensor, targets: Tensor) -> Tensor:
    """The minimum over M networks of their logits [M, n, classes] relative to the true class: [n, classes]."""
    true = logits.gather(2, targets.expand(len(logits), -1)[:, :, None])  # [M, n, 1]
    return (logits - true).amin(0)


def mixed(shares: Tensor, logits: Tensor) -> Tensor:
    """The weighted sum of logits [M, n, classes], with one weight [M] per network."""
    return (shares[:, None, None].to(logits) * logits).sum(0)


def best(logits: Tensor, targets: Tensor) -> Tensor:
    """1 for the network with the lowest cross-entropy, 0 for the others: [M]."""
    errors = torch.stack([F.cross_entropy(of_one, targets) for of_one in logits])
    return F.one_hot(errors.argmin(), len(logits))


def best_together(logits: Tensor, targets: Tensor) -> Tensor:
    """Non-negative weights [M] with sum 1 that minimise the cross-entropy of the mixed logits: a softmax, found by LBFGS."""
    logits, targets = logits.double().cpu(), targets.cpu()  # small, and every step reads the loss
    free = torch.zeros(len(logits), dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([free], max_iter=STEPS, line_search_fn="strong_wolfe")

    def error() -> Tensor:
        search.zero_grad()
        loss = F.cross_entropy(mixed(free.softmax(0), logits), targets)
        loss.backward()  # type: ignore[no-untyped-call]  # untyped in torch
        return loss

    with torch.enable_grad():
        search.step(error)  # type: ignore[no-untyped-call]  # untyped in torch
    return free.detach().softmax(0)


def products(logits: Tensor, targets: Tensor) -> Tensor:
    """Inner products of the errors of M networks, summed over images, from logits [M, n, classes]: [M, M]."""
    errors = (logits.softmax(2) - F.one_hot(targets, logits.shape[2])).flatten(1)
    return errors @ errors.T


def uncorrelated(covariance: Tensor) -> Tensor:
    """Weights [M] with sum 1 that minimise the error of the mixed predictions: C^-1 1, normalised."""
    matrix = covariance.double()
    ridge = 1e-6 * matrix.diagonal().mean() * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    found = torch.linalg.solve(matrix + ridge, torch.ones_like(matrix[0]))
    shares: Tensor = found / found.sum()
    return shares
