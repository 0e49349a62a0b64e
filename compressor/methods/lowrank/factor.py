"""What low-rank papers share: layers are replaced by chains of smaller ones until the goal is met, and the result is proved.

    sites     the layers, what each rank costs, and what it loses (factorable.py)
    choice    one rank a site, so that the goal is met (rank_allocation.py)
    chains    of plain layers in place of the chosen sites (decompositions.py), proved (verify.py)

A paper says which sites it takes, which ways to split them it allows, and how the chains are trained.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from typing import Literal

from torch import Tensor, nn

from compressor.channels import Frozen
from compressor.data import Batch
from compressor.errors import Infeasible, UsageError, VerificationFailed, did_you_mean
from compressor.methods.lowrank.decompositions import Layer, Seen, Split, watch
from compressor.methods.lowrank.factorable import Shape, Site, cost, half_error, ladder_of, layers, probed
from compressor.methods.lowrank.rank_allocation import Allocation
from compressor.methods.lowrank.rank_rules import RULES, Choice
from compressor.methods.lowrank.verify import TOLERANCE, difference, gap_between
from compressor.network.replacements import Chains, Part, describe, replaced
from compressor.network.unpack_attention import unpacked
from compressor.training import distributed
from compressor.training.method import Job, Made, Method

IMAGES = 512  # training images on which layers are watched
PROBED = 256  # of them, those on which the network is asked what a layer's error does to its answers
COSTS = ("macs", "latency")


class LowRank(Method, ABC):
    """Abstract. A method whose result is the network with some layers replaced by chains of smaller ones.

    ranks: how the ranks are chosen: knapsack, greedy, energy, minmax, uniform or evbmf
    whiten: decide what is lost by what the layers give on images (when there are any), not by their weights
    cost: what ranks are to save: macs (or parameters, if the goal is about them), or latency, as measured layer by layer
    """

    def __init__(self, job: Job, *, ranks: str = "knapsack", whiten: bool = True, cost: str = "macs") -> None:
        super().__init__(job)
        if cost not in COSTS:
            raise UsageError(f"--set cost={cost}: known are {', '.join(COSTS)}{did_you_mean(cost, COSTS) or '.'}")
        if cost == "latency" and job.clock is None:
            raise UsageError("cost=latency needs a clock: give the job one, such as compressor.onnx.layer_latency.Clock().")
        self.in_time = cost == "latency"
        if ranks not in RULES:
            raise UsageError(f"--set ranks={ranks}: known are {', '.join(RULES)}{did_you_mean(ranks, RULES) or '.'}")
        self.rule, self.whiten = ranks, whiten
        self.left: dict[str, str] = {}  # layers that no chain can stand for -> why
        self.remarks: dict[str, str] = {}
        self.ranks: dict[str, int] = {}
        self.chains: dict[str, nn.Sequential] = {}
        self.packed: dict[str, nn.Module] = {}  # what was taken apart, as it was,
        self.opened: dict[str, list[Part]] = {}  # and what took its place
        self.read: dict[str, tuple[Shape, ...]] = {}  # shapes of what layers read, of all that a chain could stand for,
        self.shapes: dict[str, tuple[Shape, ...]] = {}  # and of those that the paper factors
        self.difference: float | None = None
        self.planned: dict[str, float] = {}
        self.times: dict[str, tuple[float, float]] = {}  # layers that were measured: milliseconds before and after
        self.asked: float | None = None  # of a goal that is no cost: the share to go, and the share that went
        self.reached: float | None = None

    # What papers override ---------------------------------------------------------------------------------------------

    @abstractmethod
    def splits(self, name: str, layer: Layer) -> Sequence[Split]:
        """The ways in which a layer may be split; the one that hurts least is taken. None: the paper leaves it whole."""

    def prepare(self) -> None:
        self.factor()

    # Verbs ------------------------------------------------------------------------------------------------------------

    def factor(self) -> None:
        """Replace layers by chains until the goal is met, verified. Raises Infeasible."""
        seen = self.watched()
        sites = self.sites(seen)
        if not sites:
            raise Infeasible(f"{self.job.goal.text}: no layer can be factored. {self._reasons()}")
        self.use(sites, distributed.agreed(self.choose(sites)), seen)

    def unpack(self) -> None:
        """Take apart what holds queries, keys and values in one weight, if the network then answers as before."""
        apart = unpacked(self.model, self.job.inputs)
        apart = {name: module for name, module in apart.items() if not any(fnmatch(name, keep) for keep in self.job.keep)}
        try:
            gap = gap_between(self.model, replaced(copy.deepcopy(self.model), copy.deepcopy(apart)), self.job.inputs)
        except Exception:  # the model's code reads what such a module no longer has
            return
        if gap <= TOLERANCE:
            self.opened = {name: describe(module) for name, module in apart.items()}
            self.packed = {name: self.model.get_submodule(name) for name in apart}
            replaced(self.model, apart)

    def watched(self) -> Mapping[str, Seen]:
        """What each layer reads and gives on training images; nothing when there are none or they are not to be used."""
        self.unpack()
        self.read, self.left = layers(self.model, self.job.inputs, self.job.keep)
        self.shapes = {name: shapes for name, shapes in self.read.items() if self._ways(name)}
        if not self.whiten or self.job.images is None:
            return {}
        return watch(self.model, self.shapes, self.samples(IMAGES))

    def sites(self, seen: Mapping[str, Seen]) -> list[Site]:
        """All layers with a ladder. Of several ways to split a layer the one is taken that changes the answers least."""
        found = []
        for name, shapes in self.shapes.items():
            layer = self._layer(name)
            sites = [self._site(name, layer, shapes, way, seen.get(name)) for way in self._ways(name)]
            if ways := [site for site in sites if len(site.ladder.ranks)]:
                found.append(ways)
            else:
                self.left[name] = "no rank would save both MACs and parameters"
        if self.job.images is None or self.rule not in ("knapsack", "greedy"):
            return [min(ways, key=half_error) for ways in found]
        return probed(self.model, found, seen, [batch.images for batch in self.samples(PROBED)])

    def choose(self, sites: Sequence[Site]) -> Choice:
        """A rank for each site. Raises Infeasible when the goal cannot be met."""
        choice = self.allocation.choose(sites, self._reasons())
        if told := self.allocation.reached(sites, choice):
            self.asked, self.reached = told
        return choice

    @property
    def allocation(self) -> Allocation:
        """How ranks are shared out."""
        job, ms = self.job, self.ms if self.in_time else None
        return Allocation(job.goal, self.rule, job.macs, self._params, job.overhead, ms)

    @property
    def granularity(self) -> str:
        """Why what is reached may differ from what was asked."""
        return f"ranks are multiples of {self.job.round_to or 'up to 8'}"

    def use(self, sites: Sequence[Site], choice: Choice, seen: Mapping[str, Seen]) -> None:
        """Make the chains and put them in place, proved. Raises VerificationFailed."""
        dense = self.make(sites, choice, seen)
        if not self.chains:
            raise Infeasible(f"{self.job.goal.text}: every layer would stay whole. Ask for more. {self._reasons()}")
        self.put(dense)

    def make(self, sites: Sequence[Site], choice: Choice, seen: Mapping[str, Seen]) -> dict[str, Tensor]:
        """Make the chains, and return the weights that each of them stands for."""
        dense = {}
        for site, index in zip(sites, choice, strict=True):
            if index is None:
                self.remarks[site.name] = "left whole: others give more for less"
                continue
            rank = int(site.ladder.ranks[index])
            chain = self.chains[site.name] = site.split.factor(site.layer, rank, seen.get(site.name))
            dense[site.name] = site.split.dense(chain)
            self.ranks[site.name] = rank
            kept, most = 1 - site.ladder.errors[index], site.split.most(site.layer)
            self.remarks[site.name] = f"{site.split.name}, rank {rank} of {most}: {kept:.1%} of the energy"
            if self.in_time:
                self.times[site.name] = self.ms(site.name, site.layer), self.ms(site.name, chain)
        return dense

    def ms(self, name: str, chain: nn.Module) -> float:
        """The time of what stands in the place of a layer, for one image."""
        assert self.job.clock is not None
        return sum(self.job.clock(chain, shape) for shape in self.read[name])

    def put(self, dense: Mapping[str, Tensor], copies: Mapping[str, Tensor] | None = None) -> None:
        """Put the chains in place, and prove that the network is the one it stands for. Raises VerificationFailed.

        `dense` and `copies` are those of `difference`.
        """
        self.planned = self._planned()
        self.difference = difference(self.model, self.chains, dense, self.read, self.job.inputs, copies)
        if not self.difference <= TOLERANCE:
            raise VerificationFailed(
                f"The factored network differs from the one with the same weights multiplied out by {self.difference:.1e}.\n"
                "Nothing was written."
            )
        replaced(self.model, self.chains)
        self._pack_again()

    def samples(self, images: int, batch_size: int = 128, split: Literal["train", "held_out"] = "train") -> Iterable[Batch]:
        """Batches of so many images as they are, on the method's device. Raises UsageError when there are none."""
        if self.job.images is None:
            raise UsageError("this method looks at images: give --data, or take --method svd.")
        device = next(self.model.parameters()).device
        return self.job.images.batches(split, batch_size=batch_size, device=device, augment=False, limit=images)

    def made(self) -> Made:
        skipped = [Frozen(name, reason) for name, reason in self.left.items()]
        return Made(
            Chains({**self.opened, **{name: describe(chain) for name, chain in self.chains.items()}}),
            self.difference,
            self.planned,
            {**self.left, **self.remarks},
            self.ranks,
            skipped,
            times=self.times,
            last={f"{name}.{len(chain) - 1}": name for name, chain in self.chains.items() if isinstance(chain[-1], Layer)},
        )

    # ------------------------------------------------------------------------------------------------------------------

    def _pack_again(self) -> None:
        """Put back in one piece what was taken apart in vain, and say of the rest what became of its parts."""
        for name, whole in self.packed.items():
            inside = {part: remark for part, remark in self.remarks.items() if part.startswith(f"{name}.")}
            if any(part in self.chains for part in inside):
                told = (f"{part.removeprefix(f'{name}.')}: {remark}" for part, remark in inside.items())
                self.remarks[name] = "; ".join(told)
            else:
                replaced(self.model, {name: whole})
                del self.opened[name]
                self.remarks[name] = "left whole: others give more for less"

    def _layer(self, name: str) -> Layer:
        layer = self.model.get_submodule(name)
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        return layer

    def _ways(self, name: str) -> list[Split]:
        """The ways to split a layer that fit it; without one, the reason is noted."""
        layer = self._layer(name)
        allowed = self.splits(name, layer)
        reasons = {split.name: split.why_not(layer) for split in allowed}
        fitting = [split for split in allowed if not reasons[split.name]]
        if not fitting:
            self.left[name] = "; ".join(dict.fromkeys(reasons.values())) or "the method leaves such layers whole"
        return fitting

    def _site(self, name: str, layer: Layer, shapes: tuple[Shape, ...], split: Split, seen: Seen | None) -> Site:
        ladder = ladder_of(layer, shapes, split, seen, self.job.goal, self.job.round_to)
        return Site(name, layer, shapes, split, ladder)

    @property
    def _params(self) -> float:
        """Of the whole network."""
        return float(sum(parameter.numel() for parameter in self.model.parameters()))

    def _planned(self) -> dict[str, float]:
        """MACs and parameters of the network with chains."""
        before = [cost(self._layer(name), self.read[name]) for name in self.chains]
        after = [cost(chain, self.read[name]) for name, chain in self.chains.items()]
        return {
            "macs": self.job.macs + sum(c.macs for c in after) - sum(c.macs for c in before),
            "params": self._params + sum(c.params for c in after) - sum(c.params for c in before),
        }

    def _reasons(self) -> str:
        """Why layers were left, the commonest reason first."""
        counts = Counter(self.left.values()).most_common(3)
        return "Left whole: " + ", ".join(f"{n} x {reason}" for reason, n in counts) + "." if counts else ""
