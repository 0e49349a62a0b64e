"""Mutual contrastive learning: networks learn together, from the labels and from which images the others find alike.

Yang, An, Cai, Xu: "Mutual Contrastive Learning for Visual Representation Learning", AAAI 2022, arXiv 2104.12565. Of the paper
only the abstract was at hand; the formulas are those of the authors' code for CIFAR.

Each of M networks has a projector from what its head reads to an embedding e_m of length 1. Of a batch with two images of each
class, S_mn = e_m e_n^T / tau compares anchors in network m (rows) with images in network n. With P(i) the other images of the
class of i, A the mean over anchors, and D(S || R) = A of T^2 KL(softmax(R_i / T) || softmax(S_i / T)), R standing still:

    C(S) = A of the mean over j in P(i) of -log( exp(S_ij) / sum over k != i of exp(S_ik) )
    L = sum over m of CE(z_m, y)
      + vcl sum over m of C(S_mm)              + icl sum over m != n of C(S_mn)
      + soft_vcl sum over m != n of D(S_mm || S_nn) + soft_icl sum over m != n of D(S_mn || S_nm)

As in the authors' code, an image in network m is neither a positive nor a negative of itself in network n. Softened rows
contain it.

`--set kd=1` adds T^2 KL of the mean of all logits, which stands still, to those of each of two networks; of more than two, only
to those of the network that is kept.

Interpretation: the networks begin with weights of their own; the first is the one that was given, and is kept. The authors
report the best of them on the test images. Where a batch has only one image of a class, this anchor has no contrast.
"""

import torch
from torch import Tensor, nn

from compressor.data import Batch
from compressor.methods.distill.contrastive import Projector, contrasts
from compressor.methods.distill.teaching import Distillation, above, ordered_pairs, total
from compressor.tasks.classify import softened
from compressor.training.method import Job


class MCL(Distillation):
    """Networks of one build learn together, each from the labels and from which images the others find alike.

    cross_entropy: weight of the labels
    vcl: weight of telling classes apart within a network
    soft_vcl: weight of finding the same images alike as the other networks do
    icl: weight of telling classes apart between two networks
    soft_icl: weight of comparing with another network as that one compares with this
    kd: weight of the mean of all networks' answers
    peers: how many networks learn together, M
    tau: what similarities are divided by in all four contrasts
    temperature: what they, and logits, are divided by further where they are softened, T
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
        peers = [self.student.ask(network, batch.images) for network in (self.model, *self.others)]
        embeddings = [project(peer.embedding) for project, peer in zip(self.projectors, peers, strict=True)]
        pairs = ordered_pairs(len(peers))
        rows = contrasts(embeddings, batch.targets, pairs, self.tau, self.temperature)
        return self.weigh(
            {
                "cross_entropy": lambda: total(self.labels(peer, batch) for peer in peers),
                "vcl": lambda: rows["vcl"]().mean(1).sum() / (len(peers) - 1),  # a network is in so many pairs
                "soft_vcl": lambda: rows["soft_vcl"]().mean(1).sum(),
                "icl": lambda: rows["icl"]().mean(1).sum(),
                "soft_icl": lambda: rows["soft_icl"]().mean(1).sum(),
                "kd": lambda: self.together([peer.logits for peer in peers]),
            }
        )

    def together(self, logits: list[Tensor]) -> Tensor:
        """How far from the mean of all logits [n, classes] those are that learn from it."""
        mean = torch.stack(logits).mean(0).detach()
        return total(softened(z, mean, self.temperature) for z in (logits if len(logits) == 2 else logits[:1]))
