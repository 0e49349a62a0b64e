"""L-MCL: layer-wise mutual contrastive learning of two networks, with meta-learned weights for the pairs of layers.

Yang, An, Zhou, Zhuang, Xu, Zhang: "Online Knowledge Distillation via Mutual Contrastive Learning for Visual Recognition",
TPAMI 2023, arXiv 2207.11518. Of the paper only the abstract was available; the formulas follow the authors' code for CIFAR.

Each of two networks n has an auxiliary branch at the end of each stage but the last: a copy of the layers after it, with new
weights. So it has L outputs: logits z_nl with embeddings g_nl, the inputs of their heads; the L-th is that of the network
itself.

    ensemble  z^_n = sum over l of a_l z_nl,   a = softmax(W_2 relu(W_1 [g_n1 .. g_nL]))              per image
    labels    sum over n of [ sum over l of CE(z_nl, y) + CE(z^_n, y) ]
    logits    kd sum over n, m of T^2 KL(softmax(z^_m / T) || softmax(z_nL / T)), m = n included, z^_m detached
    layers    sum over n != m, over k, l, of the four losses of MCL on the embeddings (e_nk, e_ml), weighted per image by w
    weight    w = sigmoid(cos(V_nk g_nk, V_ml g_ml))

MCL's losses of two embeddings a and b are C(S_aa) + C(S_bb), C(S_ab) + C(S_ba) and so on, see `mcl`. As in the authors' code,
the sum contains each pair of layers twice.

The matrices V form the weight network. In ordinary steps w is detached. After every `meta_every`-th step, counted from the
first of each epoch, a meta-step follows on the same batch:

    1. unrolled on copies: two steps of SGD on the layers' loss and one on CE(z_nl, y), momentum 0.9, weight decay 5e-4
    2. the gradient of CE(z_nl, y) after these steps with respect to V, through all three steps
    3. a step of SGD on V (Nesterov momentum 0.9, weight decay 5e-4); the networks are unchanged

As in the authors' code, w also depends on the networks in these steps, and their learning rate and that of V follow a cosine.
Unlike the authors' code, autograd differentiates the three steps as a whole, which gives the same gradient as their reverse
accumulation and keeps all three steps in memory. The meta-step uses float32, whatever the precision of training.

Interpretation: the second network starts from different weights; the first is the given network, and is kept.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from compressor.data import Batch
from compressor.methods.distill.branches import Branch
from compressor.methods.distill.contrastive import TERMS, Matcher, Named, Projector, contrasts, mlp, unrolled
from compressor.methods.distill.taps import Answer
from compressor.methods.distill.teaching import Distillation, above, total
from compressor.tasks.likeness import softened
from compressor.training.method import Job, Progress

NETWORKS = 2
TRIED = 2  # unrolled steps on the layers' loss
MOMENTUM = 0.9
DECAY = 5e-4


class LMCL(Distillation):
    """Trains two networks with ensemble logits and contrastive losses over all pairs of layers, with meta-learned weights.

    cross_entropy: weight of the cross-entropy with the labels, for all branches and ensembles
    kd: weight of the distillation from the networks' ensemble logits
    vcl: weight of the contrastive loss within a layer (vanilla contrastive learning, VCL)
    soft_vcl: weight of the KL divergence between VCL similarity distributions of two layers
    icl: weight of the contrastive loss between layers of the two networks (interactive contrastive learning, ICL)
    soft_icl: weight of the KL divergence between ICL similarity distributions of two layers
    tau: temperature of the similarities in all four contrastive losses
    temperature: additional temperature of softened similarities, and that of logits, T
    meta_every: number of steps between two meta-steps of the weight network
    meta_lr: initial learning rate of the weight network and of the unrolled steps
    """

    paper = "Yang et al., TPAMI 2023 (arXiv 2207.11518)"
    teacher_is = "none"
    trains = True
    alone = True  # the meta-step uses the whole batch
    by_class = 2
    speed: Tensor

    def __init__(
        self,
        job: Job,
        *,
        cross_entropy: float = 1.0,
        kd: float = 1.0,
        vcl: float = 0.1,
        soft_vcl: float = 1.0,
        icl: float = 0.1,
        soft_icl: float = 1.0,
        tau: float = 0.1,
        temperature: float = 3.0,
        meta_every: int = 50,
        meta_lr: float = 0.1,
    ) -> None:
        terms = {"vcl": vcl, "soft_vcl": soft_vcl, "icl": icl, "soft_icl": soft_icl}
        super().__init__(job, {"cross_entropy": cross_entropy, "kd": kd, **terms})
        above(0, tau=tau, temperature=temperature, meta_every=meta_every, meta_lr=meta_lr)
        self.tau, self.temperature, self.meta_every, self.meta_lr = tau, temperature, meta_every, meta_lr
        self.step, self.rate = 0, meta_lr
        self.others = self.copies(NETWORKS - 1)
        taps, width, count = self.student.taps[:-1], self.student.width, max(1, len(self.student.taps))
        self.refined = nn.ModuleList(
            nn.ModuleList(Branch(self.model, self.student, tap, trained=job.trained) for tap in taps) for _ in range(NETWORKS)
        )
        self.mixers = nn.ModuleList(mlp(count * width, width, count) for _ in range(NETWORKS))
        self.projectors = nn.ModuleList(Projector(width) for _ in range(NETWORKS * count))
        self.omega = Matcher(NETWORKS * count, width)
        self.register_buffer("speed", torch.zeros_like(parameters_to_vector(self.omega.parameters())))
        layers = range(NETWORKS * count)  # those of the first network, then those of the second
        self.facing = [(a, b) for a in layers for b in layers if a // count != b // count]

    def begin_epoch(self, progress: Progress) -> None:
        self.step, self.rate = 0, self.meta_lr * (1 + math.cos(math.pi * progress.share)) / 2

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        peers = self.answers(batch)
        mixed = [self.mixed(n, peer) for n, peer in enumerate(peers)]
        with torch.no_grad():
            shares = self.shares(peers)
        return self.weigh(
            {
                "cross_entropy": lambda: total(self.labels(answer, batch) for peer in (*peers, mixed) for answer in peer),
                "kd": lambda: total(
                    softened(peer[-1].logits, other.logits.detach(), self.temperature) for peer in peers for other in mixed
                ),
            }
        ) | self.layers(peers, shares, batch)

    def answers(self, batch: Batch) -> list[list[Answer]]:
        """The outputs of each network, layer by layer: those of its branches, then its own."""
        found = []
        for network, branches in zip((self.model, *self.others), self.refined, strict=True):
            whole = self.student.ask(network, batch.inputs)
            refined = (branch(x) for branch, x in zip(branches.children(), whole.features[:-1], strict=True))
            found.append([*refined, whole])
        return found

    def mixed(self, network: int, peer: list[Answer]) -> Answer:
        """The ensemble of a network: the logits of its layers, weighted per image."""
        shares = self.mixers[network](torch.cat([answer.embedding for answer in peer], 1)).float().softmax(1)  # [n, L]
        logits = (torch.stack([answer.logits for answer in peer], 2) @ shares[:, :, None]).squeeze(2)
        return peer[-1]._replace(output=logits, logits=logits)

    def shares(self, peers: list[list[Answer]]) -> Tensor:
        """The weights w of all pairs of layers, [pairs, n]."""
        a, b = torch.tensor(self.facing).T
        shares: Tensor = self.omega([answer.embedding for peer in peers for answer in peer])
        return shares[a, b]

    def layers(self, peers: list[list[Answer]], shares: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The four losses over all pairs of layers.

        Each has anchors from a and from b, which is twice the sum over ordered pairs with anchors from a.
        """
        features = [answer.embedding for peer in peers for answer in peer]
        embeddings = [project(x) for project, x in zip(self.projectors, features, strict=True)]
        rows = contrasts(embeddings, batch.targets, self.facing, self.tau, self.temperature)

        def term(name: str) -> Tensor:
            return 2 * (shares * rows[name]()).mean(1).sum()

        return self.weigh({name: partial(term, name) for name in TERMS})

    # The weight network -----------------------------------------------------------------------------------------------

    def end_step(self, batch: Batch) -> None:
        if self.step % self.meta_every == 0 and any(self.weights[name] for name in TERMS):
            self.learn_shares(self.hypergradient(batch))
        self.step += 1

    def hypergradient(self, batch: Batch) -> Tensor:
        """The gradient of `judged` after the unrolled steps with respect to the weight network, as one vector."""
        names = [name for name, p in self.named_parameters() if p.requires_grad and not name.startswith("omega.")]
        weights = {name: self.get_parameter(name).detach().requires_grad_() for name in names}
        buffers = {name: buffer.clone() for name, buffer in self.named_buffers()}  # batch norms write into theirs

        def at(loss: Callable[[Batch], Tensor], weights: Named) -> Tensor:
            return functional_call(self, {**weights, **buffers}, (loss, batch))  # type: ignore[no-any-return]

        compare, judge = (partial(at, loss) for loss in (self.compared, self.judged))
        with sdpa_kernel(SDPBackend.MATH):  # the only attention kernel with second derivatives
            tried = unrolled(weights, [*[compare] * TRIED, judge], self.rate, MOMENTUM, DECAY)
            return parameters_to_vector(torch.autograd.grad(judge(tried), list(self.omega.parameters())))

    def forward(self, loss: Callable[[Batch], Tensor], batch: Batch) -> Tensor:
        """One of the two losses below. `functional_call` replaces the weights during this call."""
        return loss(batch)

    def compared(self, batch: Batch) -> Tensor:
        """The sum of the layers' losses, with gradients through the weight network."""
        peers = self.answers(batch)
        return total(self.layers(peers, self.shares(peers), batch).values())

    def judged(self, batch: Batch) -> Tensor:
        """The cross-entropy of the logits of all layers."""
        return total(self.labels(answer, batch) for peer in self.answers(batch) for answer in peer)

    @torch.no_grad()
    def learn_shares(self, gradient: Tensor) -> None:
        """A step of SGD on the weight network, with Nesterov momentum and weight decay."""
        values = parameters_to_vector(self.omega.parameters())
        gradient = gradient + DECAY * values
        self.speed.mul_(MOMENTUM).add_(gradient)
        vector_to_parameters(values - self.rate * (gradient + MOMENTUM * self.speed), self.omega.parameters())
