"""DML: deep mutual learning of peers of the same architecture, from the labels and from each other's predictions.

Zhang, Xiang, Hospedales, Lu: "Deep Mutual Learning", CVPR 2018, arXiv 1706.00384. Only the abstract and an
implementation in the code of MCL-OKD, for CIFAR-100, were available. With M peers, p_m = softmax(z_m / T):

    L = sum over m of [ w_ce CE(z_m, y) + w_mutual / (M - 1) sum over n != m of T^2 KL(p_n || p_m) ]

The target p_n is detached. Interpretation: M = 2 and T = 1, where the factor T^2 is 1, as in the paper (from memory: 200
epochs, SGD with Nesterov momentum, learning rate 0.1, batches of 64). Others use T = 2 with the factor.

Interpretation: peers are whole networks. They start from different weights, because identical peers would have nothing to
learn from each other; the first is the given network, and is kept.

Unlike the paper: all peers are updated in the same step (from memory: the paper updates one, recomputes its predictions, then
updates the other).
"""

from torch import Tensor

from compressor.data import Batch
from compressor.methods.distill.teaching import Distillation, above, ordered_pairs, total
from compressor.tasks.likeness import softened
from compressor.training.method import Job


class DML(Distillation):
    """Trains peers of the same architecture together, each on the labels and on the predictions of all others.

    cross_entropy: weight of the cross-entropy with the labels
    mutual: weight of the KL divergence from the other peers' predictions
    peers: number of networks, M
    temperature: temperature of the distillation, T (logits are divided by it)
    """

    paper = "Zhang et al., CVPR 2018 (arXiv 1706.00384)"
    teacher_is = "none"
    trains = True

    def __init__(
        self,
        job: Job,
        *,
        cross_entropy: float = 1.0,
        mutual: float = 1.0,
        peers: int = 2,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(job, {"cross_entropy": cross_entropy, "mutual": mutual})
        above(1, peers=peers)
        above(0, temperature=temperature)
        self.temperature, self.others = temperature, self.copies(peers - 1)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        peers = [self.student.ask(network, batch.inputs) for network in (self.model, *self.others)]
        return self.weigh(
            {
                "cross_entropy": lambda: total(self.labels(peer, batch) for peer in peers),
                "mutual": lambda: mutual([peer.logits for peer in peers], self.temperature),
            }
        )


def mutual(logits: list[Tensor], temperature: float) -> Tensor:
    """KL divergence of each network's predictions from those of the others, which are detached; logits [n, classes]."""
    pairs = ordered_pairs(len(logits))
    return total(softened(logits[m], logits[n].detach(), temperature) for m, n in pairs) / (len(logits) - 1)
