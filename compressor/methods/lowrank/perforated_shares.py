"""How much of each layer of a network is computed: what a layer loses by it is asked of the network itself.

A layer keeps a share of the places of its output, those that matter most (perforated_conv.py). Shares are lowered one by one
where the loss rises least for what is saved, or alike for all layers.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from compressor.data import Batch
from compressor.methods.lowrank.perforated_conv import Grid, Kept, impact, perforate, plane, strongest
from compressor.network.replacements import Pair, replaced
from compressor.recovery.recalibrate import recalibrate
from compressor.tasks.classify import Classify

Kind = Literal["grid", "rows", "places"]
Shares = Mapping[str, float]  # layer -> the share of its places that it keeps
GRIDS = ((2, 1), (2, 2), (3, 2), (3, 3), (4, 3), (4, 4))  # rows and columns; each keeps less than the one before
RATES = (1 / 1.5, *(1 / n for n in range(2, 21)))  # shares that a layer may keep, as in the code of Figurnov et al.


class Trial:
    """A copy of `model` in which some layers, and the chains that stand for some, can be computed at some places alone.

    `chains` are those, each with the size (height, width) of what it reads. Batch norms get statistics of `batches`, and what
    places matter is measured on them, unless it makes no difference, as for grids.
    """

    def __init__(
        self,
        model: nn.Module,
        chains: Mapping[str, tuple[nn.Sequential, Pair]],
        kind: Kind,
        batches: Sequence[Batch],
        task: Classify,
    ) -> None:
        self.network = replaced(copy.deepcopy(model), {name: copy.deepcopy(chain) for name, (chain, _) in chains.items()})
        self.chains, self.kind, self.batches, self.task = chains, kind, batches, task
        recalibrate(self.network, batches)
        if kind == "grid":
            self.impacts = {name: torch.zeros(plane(chain, size)) for name, (chain, size) in chains.items()}
        else:
            self.impacts = impact(self.network, list(chains), batches, task)

    def kept(self, name: str, share: float) -> Kept | None:
        """What a layer keeps when that is to be at most `share` of its places; None: all."""
        return sparse(self.impacts[name], self.kind, share) if share < 1 else None

    def loss(self, shares: Shares) -> float:
        """Of all images, on average, when layers keep such shares."""
        for name, (chain, size) in self.chains.items():
            kept = self.kept(name, shares.get(name, 1.0))
            replaced(self.network, {name: chain if kept is None else perforate(chain, size, kept)})
        self.network.eval()
        with torch.inference_mode():
            terms = [self.task.loss(self.network(batch.images), batch) for batch in self.batches]
        losses = torch.stack([torch.stack(list(of_batch.values())).sum() for of_batch in terms])
        images = losses.new_tensor([len(batch.images) for batch in self.batches])
        return float((losses * images).sum() / images.sum())


def sparse(impact: Tensor, kind: Kind, share: float) -> Kept:
    """What is kept of a plane whose places matter as `impact` [height, width] says, when it is to be at most that share of it.

    Of a grid, nothing but its steps can be chosen: the closest of `GRIDS` that is sparse enough, or else the sparsest.
    """
    if kind != "grid":
        return strongest(impact, kind, share)
    height, width = impact.shape
    grids = [Grid(*steps) for steps in GRIDS]
    return next((grid for grid in grids if grid.share((height, width)) <= share), grids[-1])


def greedily(
    layers: Sequence[str],
    cost: Callable[[str, float], float],
    loss: Callable[[Shares], float],
    enough: Callable[[Shares], bool],
) -> dict[str, float]:
    """The share of its places that each layer keeps: from all of them step by step down `RATES`, until it is `enough`.

    Each step lowers the layer for which

        (loss after the step - loss with all places) / (cost with all places - cost after the step)

    is least (Figurnov et al.). `cost` is that of one layer at a share, `loss` that of the network when layers keep such shares.
    Rates at which a layer is no cheaper are passed over; where no layer has another step, they stay as they are then. The layer
    of the last step comes last.
    Unlike the paper: the loss of a step is measured again only when it would be the next by what was measured last.
    """
    shares, saved = dict.fromkeys(layers, 1.0), 0.0
    first = now = loss(shares)
    added: dict[str, float] = {}  # what the next step of a layer adds to the loss, as last measured

    def price(name: str) -> float:
        gain = cost(name, shares[name]) - cost(name, steps[name])
        return (now + added[name] - first) / (saved + gain) if name in added else -math.inf

    while not enough(shares):
        steps = {name: step for name in layers if (step := _step(shares[name], partial(cost, name)))}
        if not steps:
            break
        measured = set()
        while (best := min(steps, key=price)) not in measured:
            added[best] = loss({**shares, best: steps[best]}) - now
            measured.add(best)
        saved += cost(best, shares[best]) - cost(best, steps[best])
        now += added.pop(best)
        del shares[best]
        shares[best] = steps[best]
    return shares


def _step(share: float, cost: Callable[[float], float]) -> float | None:
    """The next lower rate that is cheaper."""
    return next((rate for rate in RATES if rate < share and cost(rate) < cost(share)), None)
