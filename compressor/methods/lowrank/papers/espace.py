"""ESPACE: low-rank convolutions against channel redundancy, with spatial masks (perforation) against spatial redundancy.

Lin, Ji, Chen, Huang: "ESPACE: Accelerating Convolutional Neural Networks via Eliminating Spatial and Channel Redundancy",
AAAI 2017. The paper is in no archive, and only the abstract was available: filters are replaced by a low-rank approximation, a
mask skips the computation at non-salient spatial positions, and the network is fine-tuned with both. The masks are those of
Figurnov, Ibraimova, Vetrov, Kohli: "PerforatedCNNs: Acceleration through Elimination of Redundant Convolutions", NIPS 2016,
arXiv 1504.08362. The impact of a position (y, x) of the output u of a layer is the first-order change of the loss L without it,

    B(y, x) = mean over images of sum over channels n of |dL/du(n, y, x) u(n, y, x)|

The positions with the largest impact are computed, the same for all images and channels; every other position copies the
nearest of them. Perforation rates are selected greedily: each step lowers the number of positions of the layer with the
smallest (loss - loss with all positions) / (cost with all positions - cost). The loss is that of the task, on training
images; the cost of a layer is its latency in ONNX Runtime if measured, else its multiply-adds.

Everything else is an interpretation:

Interpretation: a convolution is decomposed into k x 1 and 1 x k, as in the authors' later work (Lin et al., TPAMI 2019); or,
with `--set split=channel`, into k x k and 1 x 1, which suits masks of scattered positions: both layers are then computed only
there, while the k x 1 convolution is needed nearly everywhere. 1 x 1 convolutions are factored into two 1 x 1 convolutions. The
first convolution, on the image, is not factored, but can have a mask. Fully-connected layers are not changed.
Interpretation: ranks jointly meet a budget, as in the other low-rank methods. To reduce M multiply-adds to G, low rank alone
goes to M^(1-a) G^a, a = 1/2, and masks from there to G; ranks are then selected again for G with these masks, to compensate for
masks that save too little or too much.
Interpretation: a mask can also be a regular grid, or whole rows, selected by B. Both run faster than scattered positions.
Impacts are measured once, on the low-rank network with re-estimated batch norm statistics.
Interpretation: a layer whose measured latency does not decrease is not changed, and the other layers meet the budget.
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import prod
from typing import cast

import numpy as np
from torch import Tensor, nn

from compressor.errors import Infeasible, UsageError, did_you_mean
from compressor.methods.lowrank import rank_rules
from compressor.methods.lowrank.decompositions import SPLITS, Layer, Seen, Split
from compressor.methods.lowrank.factor import LowRank
from compressor.methods.lowrank.factorable import Site, cost
from compressor.methods.lowrank.perforated_conv import Kept, copied, perforate, plane
from compressor.methods.lowrank.perforated_shares import Kind, Shares, Trial, greedily
from compressor.methods.lowrank.rank_rules import RULES, Ladder
from compressor.network.copying import clone_network
from compressor.network.replacements import Pair, replaced
from compressor.training.method import Job

IMAGE = 3  # maximum number of input channels of a layer on the image
EVEN = np.linspace(1, 1 / 20, 96).tolist()  # fractions of the positions to try, if not lowered greedily
KNOWN = {"split": ("separable", "channel"), "mask": ("grid", "rows", "places"), "rates": ("greedy", "global")}


class Espace(LowRank):
    """Factors convolutions into two, computes them at the most important spatial positions only, then fine-tunes.

    split: decomposition of convolutions: separable (k x 1, 1 x k) or channel (k x k, 1 x 1)
    mask: spatial mask: grid (regular rows and columns), rows (whole rows), or places (scattered positions)
    rates: perforation rates: greedy (where the loss increases least), or global (the same for all layers)
    lowrank: fraction of the logarithmic MAC reduction by low rank: 1 uses no masks, 0 no low rank
    keep: fraction of the MACs that masks keep, if the target is not in MACs
    images: number of training images for impacts and losses
    only_if_faster: change a layer only if its measured latency decreases
    ranks: rank selection rule: knapsack, greedy, energy, minmax, uniform or evbmf
    whiten: minimise the error of layer outputs on images instead of the error of the weights (with split=channel)
    """

    paper = "Lin et al., AAAI 2017; masks of Figurnov et al., NIPS 2016 (arXiv 1504.08362)"
    looks = True

    def __init__(
        self,
        job: Job,
        *,
        split: str = "separable",
        mask: str = "grid",
        rates: str = "greedy",
        lowrank: float = 0.5,
        keep: float = 0.5,
        images: int = 256,
        only_if_faster: bool = True,
        ranks: str = "knapsack",
        whiten: bool = True,
    ) -> None:
        super().__init__(job, ranks=ranks, whiten=whiten)
        for name, value in {"split": split, "mask": mask, "rates": rates}.items():
            if value not in KNOWN[name]:
                listed = ", ".join(KNOWN[name])
                raise UsageError(f"--set {name}={value} is unknown: use {listed}{did_you_mean(value, KNOWN[name]) or '.'}")
        if not (0 <= lowrank <= 1 and 0 < keep <= 1 and images >= 1):
            found = f"lowrank={lowrank:g}, keep={keep:g}, images={images}"
            raise UsageError(f"--set: lowrank must be 0 to 1, keep above 0 and at most 1, images 1 or more; found {found}.")
        if lowrank == 0 and job.goal.quantity != "macs":
            raise UsageError(f"--set lowrank=0 uses masks only and needs a target in MACs; found {job.goal.text}.")
        self.split, self.kind, self.rates = SPLITS[split], cast(Kind, mask), rates
        self.lowrank, self.keep, self.images = lowrank, keep, images
        self.watches = only_if_faster and job.clock is not None
        self.found: dict[str, Site] = {}
        self.kept: dict[str, Kept] = {}  # masks of the layers that have one
        self.sizes: dict[str, Pair] = {}  # input height and width of the layers that can have a mask
        self.slow: dict[str, tuple[float, float]] = {}  # layers that would not be faster: milliseconds before and after
        self.costs: dict[tuple[str, int | None, Kept | None], int] = {}

    # The method -------------------------------------------------------------------------------------------------------

    def splits(self, name: str, layer: Layer) -> Sequence[Split]:
        if isinstance(layer, nn.Linear) or layer.in_channels <= IMAGE:
            return []
        return [SPLITS["channel"] if min(layer.kernel_size) == 1 else self.split]

    def prepare(self) -> None:
        seen = self.watched()
        self.sizes = {name: size for name in self.read if (size := self._size(name))}
        self.found = {site.name: site for site in (self.sites(seen) if self.lowrank else [])}
        goal = self.allocation.allowed()[1] if self.job.goal.quantity == "macs" else None
        chosen = self.chosen(None if goal is None else self.job.macs ** (1 - self.lowrank) * goal**self.lowrank)
        if self.lowrank < 1:
            self.kept = self.masks(chosen, goal, seen)
            chosen = self.chosen(goal)
        self.check(chosen, goal)
        dense = self.factored(chosen, seen)
        copies = self.perforate(dense)
        self.tell(chosen)
        self.put(dense, copies)

    def chosen(self, allowed: float | None) -> dict[str, int]:
        """The ranks at which the network with its current masks has at most `allowed` MACs, or the lowest ones if infeasible.

        None: ranks for the goal. A layer that would not be faster is excluded, with its mask, and ranks are selected again.
        """
        while True:
            sites = [site for name, site in self.found.items() if name not in self.slow]
            found = self._as_asked(sites) if allowed is None else self._within(sites, allowed)
            late = [name for name in {**found, **self.kept} if not self._is_faster(name, found.get(name))]
            if not late:
                return found
            self.kept = {name: kept for name, kept in self.kept.items() if name not in late}

    def masks(self, chosen: Mapping[str, int], goal: float | None, seen: Mapping[str, Seen]) -> dict[str, Kept]:
        """The masks of layers at these ranks, for a total of `goal` MACs; None: the fraction `keep` of the MACs."""
        plain = {name: self._plain(name, chosen.get(name), seen) for name in {**chosen, **self.sizes}}
        model = replaced(clone_network(self.model), plain)
        batches, task = list(self.samples(self.images)), self.job.task
        trial = Trial(model, {name: (plain[name], size) for name, size in self.sizes.items()}, self.kind, batches, task)
        if goal is None:
            goal = self.macs(chosen, {}) - (1 - self.keep) * sum(self._macs(name, chosen.get(name)) for name in self.sizes)
        shares = self._shares(trial, chosen, goal)
        return {name: kept for name, share in shares.items() if (kept := trial.kept(name, share))}

    def check(self, chosen: Mapping[str, int], goal: float | None) -> None:
        """Raise Infeasible if the goal is not met, or no layer was changed."""
        if not chosen and not self.kept:
            raise Infeasible(f"{self.job.goal.text}: no layer would be changed. Request a larger reduction. {self._reasons()}")
        if goal is not None and (macs := self.macs(chosen, self.kept)) > goal * (1 + 1e-9):
            raise Infeasible(
                f"{self.job.goal.text} requires {1 - goal / self.job.macs:.1%} fewer MACs, but low ranks and masks can save "
                f"{1 - macs / self.job.macs:.1%} (lowrank={self.lowrank:g}).\nRequest a smaller reduction. {self._reasons()}"
            )

    def factored(self, chosen: Mapping[str, int], seen: Mapping[str, Seen]) -> dict[str, Tensor]:
        """Build the chains without masks, and return the products of their factors."""
        sites = list(self.found.values())
        places = (site.ladder.ranks.tolist().index(chosen[site.name]) if site.name in chosen else None for site in sites)
        return self.make(sites, list(places), seen)

    def perforate(self, dense: dict[str, Tensor]) -> dict[str, Tensor]:
        """Perforate the chains, and return for each position the position that it copies.

        `dense` has the products of the factors; the weights of layers with a mask that are not factored are added.
        """
        copies = {}
        for name, kept in self.kept.items():
            layer, size = self._layer(name), self.sizes[name]
            chain = self.chains.get(name, nn.Sequential(layer))
            dense.setdefault(name, layer.weight.detach())
            copies[name] = copied(kept.mask(plane(chain, size)))
            self.chains[name] = perforate(chain, size, kept)
        return copies

    def tell(self, chosen: Mapping[str, int]) -> None:
        """Write a remark on each layer: rank, mask, and the reduction of multiply-adds and latency."""
        for name in self.chains:
            told = [self.remarks[name]] if name in chosen else []
            kept = self.kept.get(name)
            if kept is not None:
                told.append(f"{kept.share(plane([self._layer(name)], self.sizes[name])):.0%} of the positions ({self.kind})")
                self.left.pop(name, None)
            told.append(f"{self._macs(name) / self._macs(name, chosen.get(name), kept):.1f} x fewer MACs")
            if self.watches:
                before, after = self.times[name] = self._ms(name), self._ms(name, chosen.get(name), kept)
                told.append(f"{before / after:.1f} x as fast alone ({before:.2f} -> {after:.2f} ms)")
            self.remarks[name] = ", ".join(told)
        for name, (before, after) in self.slow.items():
            if name not in self.chains:
                self.remarks[name] = f"not changed: it takes {before:.2f} ms, and would take {after:.2f} ms"
                self.times[name] = before, before

    @property
    def granularity(self) -> str:
        return super().granularity if self.ranks else f"masks ({self.kind}) have discrete steps"

    # Ranks and shares -------------------------------------------------------------------------------------------------

    def _as_asked(self, sites: Sequence[Site]) -> dict[str, int]:
        """Ranks for a goal that is not in MACs. Raises Infeasible."""
        if not sites:
            raise Infeasible(f"{self.job.goal.text}: no layer can be factored. {self._reasons()}")
        pairs = zip(sites, self.choose(sites), strict=True)
        return {site.name: int(site.ladder.ranks[index]) for site, index in pairs if index is not None}

    def _within(self, sites: Sequence[Site], allowed: float) -> dict[str, int]:
        """Ranks for at most `allowed` MACs of the whole network, or the lowest ranks if that is infeasible."""
        masked = {site.name: ladder for site in sites if len((ladder := self._masked(site)).ranks)}
        ladders = list(masked.values())
        left = allowed - self.macs({}, self.kept) + sum(ladder.full for ladder in ladders)
        choice: rank_rules.Choice = [0] * len(ladders)
        if rank_rules.cost(ladders, choice) <= left:
            choice = rank_rules.meet(ladders, RULES[self.rule], left)
        pairs = zip(masked, ladders, choice, strict=True)
        return {name: int(ladder.ranks[index]) for name, ladder, index in pairs if index is not None}

    def _masked(self, site: Site) -> Ladder:
        """The ladder of a layer with its mask. MACs are proportional to those without a mask."""
        kept, ladder = self.kept.get(site.name), site.ladder
        lowest = int(ladder.ranks[0])
        costs = ladder.costs * (self._macs(site.name, lowest, kept) / self._macs(site.name, lowest))
        full = self._macs(site.name, None, kept)
        cheaper = costs < full
        return replace(
            ladder, ranks=ladder.ranks[cheaper], errors=ladder.errors[cheaper], costs=costs[cheaper], full=float(full)
        )

    def _shares(self, trial: Trial, chosen: Mapping[str, int], goal: float) -> dict[str, float]:
        """The fraction of its positions that each layer keeps, for at most `goal` MACs, or as few as possible."""
        layers = list(trial.chains)

        def enough(shares: Shares) -> bool:
            return self.macs(chosen, {name: trial.kept(name, share) for name, share in shares.items()}) <= goal

        def still(name: str, share: float) -> bool:
            return enough({**shares, name: share})

        def cost(name: str, share: float) -> float:
            figure = self._ms if self.watches else self._macs
            return figure(name, chosen.get(name), trial.kept(name, share))

        def alike(share: float) -> Shares:
            return {name: share if cost(name, share) < cost(name, 1.0) else 1.0 for name in layers}

        if self.rates == "global":
            return dict(alike(_largest(EVEN, lambda share: enough(alike(share)))))
        shares = greedily(layers, cost, trial.loss, enough)
        for name, share in reversed(list(shares.items())) if enough(shares) else ():  # the last step can exceed the target
            finer = [*(even for even in EVEN if even > share), share]
            shares[name] = _largest(finer, partial(still, name))
        return shares

    # Costs of layers --------------------------------------------------------------------------------------------------

    def macs(self, chosen: Mapping[str, int], kept: Mapping[str, Kept | None]) -> float:
        """MACs of the whole network with these ranks and masks."""
        changed = {**chosen, **kept}
        return self.job.macs + sum(self._macs(n, chosen.get(n), kept.get(n)) - self._macs(n) for n in changed)

    def _macs(self, name: str, rank: int | None = None, kept: Kept | None = None) -> int:
        key = name, rank, kept
        if key not in self.costs:
            self.costs[key] = cost(self._blank(*key), self.read[name]).macs
        return self.costs[key]

    def _ms(self, name: str, rank: int | None = None, kept: Kept | None = None) -> float:
        return self.ms(name, self._blank(name, rank, kept))

    def _is_faster(self, name: str, rank: int | None) -> bool:
        """Whether a layer is faster with that rank and its mask; if not, it is recorded in `slow`."""
        if not self.watches:
            return True
        before, after = self._ms(name), self._ms(name, rank, self.kept.get(name))
        if after >= before:
            self.slow[name] = before, after
        return after < before

    def _blank(self, name: str, rank: int | None, kept: Kept | None) -> nn.Sequential:
        """The replacement of a layer with uninitialised weights, to measure its cost."""
        layer = self._layer(name)
        chain = nn.Sequential(layer) if rank is None else self.found[name].split.chain(layer, rank)
        chain = chain if rank is None else chain.to_empty(device="cpu")
        return chain if kept is None else perforate(chain, self.sizes[name], kept)

    def _plain(self, name: str, rank: int | None, seen: Mapping[str, Seen]) -> nn.Sequential:
        """The replacement of a layer without a mask."""
        layer = self._layer(name)
        return nn.Sequential(layer) if rank is None else self.found[name].split.factor(layer, rank, seen.get(name))

    def _size(self, name: str) -> Pair | None:
        """Height and width of the input of a layer, if it can have a mask."""
        layer, sizes = self._layer(name), {shape[2:] for shape in self.read[name]}
        if len(sizes) > 1 or SPLITS["channel"].why_not(layer):
            return None
        (size,) = cast(set[Pair], sizes)
        return size if prod(plane([layer], size)) > 1 else None


def _largest(shares: Sequence[float], fits: Callable[[float], bool]) -> float:
    """The first of the descending `shares` that fits; the last if none does."""
    return shares[min(bisect_left(shares, True, key=fits), len(shares) - 1)]
