"""MCL: mutual contrastive learning of peers, from the labels and from the similarities of their embeddings.

Yang, An, Cai, Xu: "Mutual Contrastive Learning for Visual Representation Learning", AAAI 2022, arXiv 2104.12565. Of the paper
only the abstract was available; the formulas follow the authors' code for CIFAR.

Each of M networks has a projector from the input of its head to an L2-normalised embedding e_m. In a batch with two images of
each class, S_mn = e_m e_n^T / tau compares anchors from network m (rows) with keys from network n. With P(i) the positives of
anchor i (the other images of its class), A the mean over anchors, and D(S || R) = A of T^2 KL(softmax(R_i / T) ||
softmax(S_i / T)), where R is detached:

    C(S) = A of the mean over j in P(i) of -log( exp(S_ij) / sum over k != i of exp(S_ik) )
    L = sum over m of CE(z_m, y)
      + vcl sum over m of C(S_mm)              + icl sum over m != n of C(S_mn)
      + soft_vcl sum over m != n of D(S_mm || S_nn) + soft_icl sum over m != n of D(S_mn || S_nm)

As in the authors' code, an image in network m is neither a positive nor a negative of itself in network n. Softened rows
contain it.

`--set kd=1` adds T^2 KL from the mean of all logits, which is detached, to those of each of two networks; with more than two,
only to those of the network that is kept.

Interpretation: the networks start from different weights; the first is the given network, and is kept. The authors report the
best of them on the test images. An anchor that is the only image of its class in the batch has a contrastive loss of 0.
"""

import torch
from torch import Tensor, nn

from compressor.data import Batch
from compressor.methods.distill.contrastive import Projector, contrasts
from compressor.methods.distill.teaching import Distillation, above, ordered_pairs, total
from compressor.tasks.likeness import softened
from compressor.training.method import Job


class MCL(Distillation):
    """Trains peers of the same architecture together, with contrastive losses within and between their embeddings.

    cross_entropy: weight of the cross-entropy with the labels
    vcl: weight of the contrastive loss within a network (vanilla contrastive learning, VCL)
    soft_vcl: weight of the KL divergence between VCL similarity distributions of two networks
    icl: weight of the contrastive loss between two networks (interactive contrastive learning, ICL)
    soft_icl: weight of the KL divergence between ICL similarity distributions of two networks
    kd: weight of the distillation from the mean of all networks' logits
    peers: number of networks, M
    tau: temperature of the similarities in all four contrastive losses
    temperature: additional temperature of softened similarities, and that of logits, T
    """

    paper = "Yang et al., AAAI 2022 (arXiv 2104.12565)"
    teacher_is = "none"
    trains = True
    by_class = 2

    def __init__(
        self,
        job: Job,
        *,
        cross_entropy: float = 1.0,
        vcl: float = 0.1,
        soft_vcl: float = 1.0,
        icl: float = 0.1,
        soft_icl: float = 1.0,
        kd: float = 0.0,
        peers: int = 2,
        tau: float = 0.1,
        temperature: float = 3.0,
    ) -> None:
        weights = {"vcl": vcl, "soft_vcl": soft_vcl, "icl": icl, "soft_icl": soft_icl}
        super().__init__(job, {"cross_entropy": cross_entropy, **weights, "kd": kd})
        above(1, peers=peers)
        above(0, tau=tau, temperature=temperature)
        self.tau, self.temperature, self.others = tau, temperature, self.copies(peers - 1)
        self.projectors = nn.ModuleList(Projector(self.student.width) for _ in range(peers))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        peers = [self.student.ask(network, batch.inputs) for network in (self.model, *self.others)]
        embeddings = [project(peer.embedding) for project, peer in zip(self.projectors, peers, strict=True)]
        pairs = ordered_pairs(len(peers))
        rows = contrasts(embeddings, batch.targets, pairs, self.tau, self.temperature)
        return self.weigh(
            {
                "cross_entropy": lambda: total(self.labels(peer, batch) for peer in peers),
                "vcl": lambda: rows["vcl"]().mean(1).sum() / (len(peers) - 1),  # each network is in that many pairs
                "soft_vcl": lambda: rows["soft_vcl"]().mean(1).sum(),
                "icl": lambda: rows["icl"]().mean(1).sum(),
                "soft_icl": lambda: rows["soft_icl"]().mean(1).sum(),
                "kd": lambda: self.together([peer.logits for peer in peers]),
            }
        )

    def together(self, logits: list[Tensor]) -> Tensor:
        """KL divergence from the mean of all logits [n, classes] to those of its students."""
        mean = torch.stack(logits).mean(0).detach()
        return total(softened(z, mean, self.temperature) for z in (logits if len(logits) == 2 else logits[:1]))
