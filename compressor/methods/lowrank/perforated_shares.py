"""Perforation rates of the layers of a network, selected by their measured effect on the loss.

Each layer keeps a fraction (share) of the positions of its output, those with the largest impact (perforated_conv.py). Shares
are lowered greedily where the loss increases least per cost saved, or equally for all layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from compressor.data import Batch
from compressor.methods.lowrank.perforated_conv import Grid, Kept, impact, perforate, plane, strongest
from compressor.network.copying import clone_network
from compressor.network.replacements import Pair, replaced
from compressor.recovery.recalibrate import recalibrate
from compressor.tasks import Task

Kind = Literal["grid", "rows", "places"]
Shares = Mapping[str, float]  # layer -> fraction of its positions to keep
GRIDS = ((2, 1), (2, 2), (3, 2), (3, 3), (4, 3), (4, 4))  # rows and columns, in descending order of the fraction kept
RATES = (1 / 1.5, *(1 / n for n in range(2, 21)))  # fractions that a layer can keep, as in the code of Figurnov et al.


class Trial:
    """A copy of `model` in which the layers of `chains` can be perforated.

    `chains` maps the name of a layer to its replacement (or the layer itself) and the size (height, width) of its input. Batch
    norm statistics are re-estimated on `batches`, and the impact of positions is measured on them, except for grids.
    """

    def __init__(
        self,
        model: nn.Module,
        chains: Mapping[str, tuple[nn.Sequential, Pair]],
        kind: Kind,
        batches: Sequence[Batch],
        task: Task,
    ) -> None:
        self.network = replaced(clone_network(model), {name: clone_network(chain) for name, (chain, _) in chains.items()})
        self.chains, self.kind, self.batches, self.task = chains, kind, batches, task
        recalibrate(self.network, batches)
        if kind == "grid":
            self.impacts = {name: torch.zeros(plane(chain, size)) for name, (chain, size) in chains.items()}
        else:
            self.impacts = impact(self.network, list(chains), batches, task)

    def kept(self, name: str, share: float) -> Kept | None:
        """The mask of a layer that keeps at most `share` of its positions; None: all."""
        return sparse(self.impacts[name], self.kind, share) if share < 1 else None

    def loss(self, shares: Shares) -> float:
        """Mean loss over all images when layers keep these shares."""
        for name, (chain, size) in self.chains.items():
            kept = self.kept(name, shares.get(name, 1.0))
            replaced(self.network, {name: chain if kept is None else perforate(chain, size, kept)})
        self.network.eval()
        with torch.inference_mode():
            terms = [self.task.loss(self.task.call(self.network, batch.inputs), batch) for batch in self.batches]
        losses = torch.stack([torch.stack(list(of_batch.values())).sum() for of_batch in terms])
        images = losses.new_tensor([batch.size for batch in self.batches])
        return float((losses * images).sum() / images.sum())


def sparse(impact: Tensor, kind: Kind, share: float) -> Kept:
    """The mask that keeps at most the fraction `share` of a plane, by `impact` [height, width].

    For grids: the densest of `GRIDS` within `share`, or else the sparsest.
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
    """Lower the shares of the layers greedily along `RATES`, from 1, until they are `enough`.

    Each step lowers the share of the layer with the smallest

        (loss after the step - loss with all positions) / (cost with all positions - cost after the step)

    (Figurnov et al.). `cost` is that of one layer at a share, `loss` that of the network at given shares. Rates at which a
    layer is not cheaper are skipped; the search ends when no layer has a step left. The layer of the last step comes last.
    Unlike the paper: the loss of a step is measured again only if the step would be next by its last measurement.
    """
    shares, saved = dict.fromkeys(layers, 1.0), 0.0
    first = now = loss(shares)
    added: dict[str, float] = {}  # last measured increase of the loss by the next step of a layer

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
    """The next lower rate at which the layer is cheaper."""
    return next((rate for rate in RATES if rate < share and cost(rate) < cost(share)), None)
