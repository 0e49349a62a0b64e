"""Shared by mutual contrastive learning methods: projectors, contrastive losses, and unrolled steps of SGD.

project = Projector(width)                              [n, width] -> L2-normalised embeddings [n, 128]
compared = contrasts(embeddings, targets, pairs, ...)   the four losses of MCL, per anchor
weights = unrolled(weights, [loss, loss], rate)         the weights after steps of SGD, as a differentiable function
"""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 128  # of an embedding
TERMS = ("vcl", "soft_vcl", "icl", "soft_icl")

Named = Mapping[str, Tensor]


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Two fully-connected layers: [n, inputs] -> [n, outputs]."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


class Projector(nn.Module):
    """An MLP: the input of the head [n, width] -> an L2-normalised embedding [n, 128]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = mlp(width, WIDTH, WIDTH)

    def forward(self, features: Tensor) -> Tensor:
        return F.normalize(_precise(self.layers(features)), dim=1)


class Matcher(nn.Module):
    """A weight for each pair of k layers, per image: sigmoid(cos(V_a x_a, V_b x_b)), [k, k, n].

    Each layer has its own linear map V of its features x [n, width].
    """

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, WIDTH) for _ in range(layers))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        mapped = [F.normalize(_precise(layer(x)), dim=1) for layer, x in zip(self.layers, features, strict=True)]
        return _inner("and,bnd->abn", torch.stack(mapped)).sigmoid()


def _precise(values: Tensor) -> Tensor:
    """At least float32: half precision is too coarse for values that are divided by a temperature of 0.1."""
    return values if values.dtype == torch.float64 else values.float()


def _inner(products: str, vectors: Tensor) -> Tensor:
    with torch.autocast(vectors.device.type, enabled=False):
        return torch.einsum(products, vectors, vectors)


# The four losses ------------------------------------------------------------------------------------------------------


def contrasts(
    embeddings: Sequence[Tensor], targets: Tensor, pairs: Sequence[tuple[int, int]], tau: float, temperature: float
) -> dict[str, Callable[[], Tensor]]:
    """The losses for pairs (a, b) of the embeddings, each [n, d], by name; each returns [pairs, n], one value per anchor.

        S_ab = e_a e_b^T / tau                               [n, n]: anchors from a (rows), keys from b
        vcl       contrast(S_aa)                             within a network
        icl       contrast(S_ab)                             between two networks
        soft_vcl  T^2 KL(softmax(S_bb / T) || softmax(S_aa / T))
        soft_icl  T^2 KL(softmax(S_ba / T) || softmax(S_ab / T))

    The first argument of a KL, the target, is detached. In vcl and icl, the keys of an anchor exclude the image itself.
    """
    a, b = torch.tensor(pairs, device=targets.device).T
    alike = _inner("and,bmd->abnm", torch.stack(list(embeddings))) / tau  # [k, k, n, n]
    return {
        "vcl": lambda: contrast(alike[a, a], targets),
        "soft_vcl": lambda: matched(alike[a, a], alike[b, b].detach(), temperature),
        "icl": lambda: contrast(alike[a, b], targets),
        "soft_icl": lambda: matched(alike[a, b], alike[b, a].detach(), temperature),
    }


def matched(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) of the softened rows of similarities [..., n, n], per row: [..., n]."""
    student, teacher = (F.log_softmax(rows / temperature, dim=-1) for rows in (student, teacher))
    return temperature**2 * F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)


# Unrolled steps -------------------------------------------------------------------------------------------------------


def unrolled(
    weights: Named, losses: Sequence[Callable[[Named], Tensor]], rate: float, momentum: float = 0.9, decay: float = 5e-4
) -> dict[str, Tensor]:
    """`weights`, which require gradients, after one step of SGD per loss: differentiable in all that the losses depend on.

    The steps are those of torch.optim.SGD without Nesterov, starting from zero momentum. All are kept for the backward pass.
    """
    now = dict(weights)
    speed: dict[str, Tensor | float] = dict.fromkeys(now, 0.0)
    for loss in losses:
        values = list(now.values())
        gradients = torch.autograd.grad(loss(now), values, create_graph=True, allow_unused=True, materialize_grads=True)
        for (name, value), gradient in zip(list(now.items()), gradients, strict=True):
            speed[name] = momentum * speed[name] + gradient + decay * value
            now[name] = value - rate * speed[name]
    return now


def contrast(similarities: Tensor, targets: Tensor) -> Tensor:
    """Supervised contrastive loss per anchor, from similarities / tau [..., n, n] (a row per anchor): [..., n].

    The mean of -log softmax over the positives, the other images of the anchor's class. The anchor itself is excluded from
    positives and denominator. 0 for an anchor without positives. Khosla et al., NeurIPS 2020, arXiv 2004.11362, equation 2.
    """
    itself = torch.eye(len(targets), dtype=torch.bool, device=targets.device)
    positive = (targets[:, None] == targets[None]) & ~itself  # [n, n]
    log_shares = similarities.float().masked_fill(itself, -torch.inf).log_softmax(-1).masked_fill(itself, 0.0)
    return -(log_shares * positive).sum(-1) / positive.sum(-1).clamp(min=1)
