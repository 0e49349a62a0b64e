"""Deep mutual learning: networks of one build learn from the labels and from each other's answers.

Zhang, Xiang, Hospedales, Lu: "Deep Mutual Learning", CVPR 2018, arXiv 1706.00384. Read were only the abstract and a version of
it in the code of MCL-OKD, for CIFAR-100. With M peers, p_m = softmax(z_m / T):

    L = sum over m of [ w_ce CE(z_m, y) + w_mutual / (M - 1) sum over n != m of T^2 KL(p_n || p_m) ]

The other's answer p_n is a target here, through which no gradient goes. Interpretation: M = 2 and T = 1, where T^2 is nothing,
as in the paper (from memory: 200 epochs, SGD with Nesterov momentum, rate 0.1, batches of 64). Others take T = 2 with the
factor.

Interpretation: peers are whole networks. They begin with weights of their own, for those that begin alike have nothing to tell
each other; the first is the network that was given, and is kept.

Unlike the paper: all peers take their step at once (from memory: there one steps, the other answers anew, then that one
steps).
"""

from torch import Tensor

from compressor.data import Batch
from compressor.methods.distill.teaching import Distillation, above, ordered_pairs, total
from compressor.tasks.classify import softened
from compressor.training.method import Job


class DML(Distillation):
    """Networks of one build learn together, each from the labels and from the answers of all others.

    cross_entropy: weight of the labels
    mutual: weight of the other networks' answers
    peers: how many networks learn together, M
    temperature: what logits are divided by, T
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
        peers = [self.student.ask(network, batch.images) for network in (self.model, *self.others)]
        return self.weigh(
            {
                "cross_entropy": lambda: total(self.labels(peer, batch) for peer in peers),
                "mutual": lambda: mutual([peer.logits for peer in peers], self.temperature),
            }
        )


def mutual(logits: list[Tensor], temperature: float) -> Tensor:
    """How far each network's answer [n, classes] is from the others', which stand still."""
    pairs = ordered_pairs(len(logits))
    return total(softened(logits[m], logits[n].detach(), temperature) for m, n in pairs) / (len(logits) - 1)
