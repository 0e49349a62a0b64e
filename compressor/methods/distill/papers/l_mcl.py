"""Layer-wise mutual contrastive learning: two networks compare all their layers, and learn which of them to compare.

Yang, An, Zhou, Zhuang, Xu, Zhang: "Online Knowledge Distillation via Mutual Contrastive Learning for Visual Recognition",
TPAMI 2023, arXiv 2207.11518. Of the paper only the abstract was at hand; the formulas are those of the authors' code for CIFAR.

Each of two networks n gets a branch at the end of each stage but the last: the network once more from there on, with new
weights. So it has L answers z_nl with the features g_nl that their heads read; the L-th is its own.

    mixed     z^_n = sum over l of a_l z_nl,   a = softmax(W_2 relu(W_1 [g_n1 .. g_nL]))              image by image
    labels    sum over n of [ sum over l of CE(z_nl, y) + CE(z^_n, y) ]
    answers   kd sum over n, m of T^2 KL(softmax(z^_m / T) || softmax(z_nL / T)), m = n included, z^_m standing still
    layers    sum over n != m, over k, l, of the four losses of MCL on the embeddings (e_nk, e_ml), image by image times w
    weight    w = sigmoid(cos(V_nk g_nk, V_ml g_ml))

MCL's losses of two embeddings a and b are C(S_aa) + C(S_bb), C(S_ab) + C(S_ba) and so on, see `mcl`. As in the authors' code,
the sum meets each pair of layers twice.

The V are the weight network. In an ordinary step w stands still. After every `meta_every`-th step, counted in each epoch from
its first, on the same batch:

    1. two steps of SGD on the layers' loss and one on CE(z_nl, y), tried on copies: momentum 0.9, weight decay 5e-4
    2. the gradient of CE(z_nl, y) there with respect to V, through all three steps
    3. a step of SGD on V (Nesterov's momentum 0.9, weight decay 5e-4); the networks stay as they were

As in the authors' code, w depends on the networks, too, in these steps, and their rate and that of V fall as a cosine.
Unlike the authors' code, autograd goes back through the three steps as a whole, which gives the same gradient as their reverse
accumulation and keeps all three steps in memory. Images stay in float32 there, whatever the precision of training.

Interpretation: the second network begins with weights of its own; the first is the one that was given, and is kept.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from compressor.data import Batch
from compressor.methods.distill.branches import Branch
from compressor.methods.distill.contrastive import TERMS, Matcher, Named, Projector, contrasts, mlp, unrolled
from compressor.methods.distill.taps import Answer
from compressor.methods.distill.teaching import Distillation, above, total
from compressor.tasks.classify import softened
from compressor.training.method import Job, Progress

NETWORKS = 2
TRIED = 2  # steps on the layers' loss
MOMENTUM = 0.9
DECAY = 5e-4


class LMCL(Distillation):
    """Two networks with branches learn from the labels, from their layers' mixed answers, and from each other's layers.

    cross_entropy: weight of the labels
    kd: weight of the networks' mixed answers
    vcl: weight of telling classes apart within a layer
    soft_vcl: weight of finding the same images alike as a layer of the other network does
    icl: weight of telling classes apart between two networks' layers
    soft_icl: weight of comparing with a layer as that one compares with this
    tau: what similarities are divided by in all four contrasts
    temperature: what they, and logits, are divided by further where they are softened, T
    meta_every: how many steps pass from one step of the weight network to the next
    meta_lr: the learning rate of that step and of the steps that are tried before it, at the beginning of training
    """

    paper = "Yang et al., TPAMI 2023 (arXiv 2207.11518)"
    teacher_is = "none"
    trains = True
    alone = True  # the weight network
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
        """What each network answers, layer by layer: at its branches, and at its end."""
        found = []
        for network, branches in zip((self.model, *self.others), self.refined, strict=True):
            whole = self.student.ask(network, batch.images)
            refined = (branch(x) for branch, x in zip(branches.children(), whole.features[:-1], strict=True))
            found.append([*refined, whole])
        return found

    def mixed(self, network: int, peer: list[Answer]) -> Answer:
        """The answer of a network, made of those of its layers."""
        shares = self.mixers[network](torch.cat([answer.embedding for answer in peer], 1)).float().softmax(1)  # [n, L]
        logits = (torch.stack([answer.logits for answer in peer], 2) @ shares[:, :, None]).squeeze(2)
        return peer[-1]._replace(output=logits, logits=logits)

    def shares(self, peers: list[list[Answer]]) -> Tensor:
        """How much the layers of every pair have to tell each other, [pairs, n]."""
        a, b = torch.tensor(self.facing).T
        shares: Tensor = self.omega([answer.embedding for peer in peers for answer in peer])
        return shares[a, b]

    def layers(self, peers: list[list[Answer]], shares: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The four losses of all pairs of layers.

        Each is at the anchors of a and at those of b: twice what ordered pairs have at the anchors of a.
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
        """The gradient of `judged`, after the steps that are tried, with respect to the weight network: one vector."""
        names = [name for name, p in self.named_parameters() if p.requires_grad and not name.startswith("omega.")]
        weights = {name: self.get_parameter(name).detach().requires_grad_() for name in names}
        buffers = {name: buffer.clone() for name, buffer in self.named_buffers()}  # batch norms write into theirs

        def at(loss: Callable[[Batch], Tensor], weights: Named) -> Tensor:
            return functional_call(self, {**weights, **buffers}, (loss, batch))  # type: ignore[no-any-return]

        compare, judge = (partial(at, loss) for loss in (self.compared, self.judged))
        tried = unrolled(weights, [*[compare] * TRIED, judge], self.rate, MOMENTUM, DECAY)
        return parameters_to_vector(torch.autograd.grad(judge(tried), list(self.omega.parameters())))

    def forward(self, loss: Callable[[Batch], Tensor], batch: Batch) -> Tensor:
        """One of the two losses that follow. `functional_call` puts other weights in place for as long as this takes."""
        return loss(batch)

    def compared(self, batch: Batch) -> Tensor:
        """What the layers' losses come to, weighed by a weight network that does not stand still."""
        peers = self.answers(batch)
        return total(self.layers(peers, self.shares(peers), batch).values())

    def judged(self, batch: Batch) -> Tensor:
        """The cross-entropy of all layers' answers."""
        return total(self.labels(answer, batch) for peer in self.answers(batch) for answer in peer)

    @torch.no_grad()
    def learn_shares(self, gradient: Tensor) -> None:
        """A step of SGD on the weight network, with Nesterov's momentum, and its weight decay."""
        values = parameters_to_vector(self.omega.parameters())
        gradient = gradient + DECAY * values
        self.speed.mul_(MOMENTUM).add_(gradient)
        vector_to_parameters(values - self.rate * (gradient + MOMENTUM * self.speed), self.omega.parameters())
