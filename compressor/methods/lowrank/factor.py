"""Base class of the low-rank methods: replaces layers by chains of smaller layers until the goal is met, and verifies them.

    sites     the layers, with the cost and error of each rank (factorable.py)
    choice    one rank per site, so that the goal is met (rank_allocation.py)
    chains    sequences of Conv2d and Linear layers that replace the chosen sites (decompositions.py), verified (verify.py)

A paper defines which layers are factored, by which decompositions, and how the factors are trained.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from typing import Literal

import torch
from torch import Tensor, nn

from compressor.channels import Frozen
from compressor.data import Batch
from compressor.errors import Infeasible, UsageError, VerificationFailed, did_you_mean
from compressor.methods.lowrank.decompositions import Layer, Seen, Split, watch
from compressor.methods.lowrank.factorable import Shape, Site, cost, half_error, ladder_of, layers, probed
from compressor.methods.lowrank.rank_allocation import Allocation
from compressor.methods.lowrank.rank_rules import RULES, Choice
from compressor.methods.lowrank.verify import TOLERANCE, difference, gap_between
from compressor.network.copying import clone_network
from compressor.network.replacements import Chains, Part, describe, replaced
from compressor.network.unpack_attention import unpacked
from compressor.training import distributed
from compressor.training.method import Job, Made, Method

IMAGES = 512  # training images for activation statistics
PROBED = 256  # training images on which the effect of a layer's error on the output is measured
COSTS = ("macs", "latency")


class LowRank(Method, ABC):
    """Abstract. A method whose result is the network with some layers replaced by chains of smaller layers.

    ranks: rank selection rule: knapsack, greedy, energy, minmax, uniform or evbmf
    whiten: minimise the error of layer outputs on training images (if there are any) instead of the error of the weights
    cost: what the ranks reduce: macs (or parameters, if the target is in parameters), or latency measured per layer
    """

    def __init__(self, job: Job, *, ranks: str = "knapsack", whiten: bool = True, cost: str = "macs") -> None:
        super().__init__(job)
        if cost not in COSTS:
            raise UsageError(f"--set cost={cost} is unknown: use {', '.join(COSTS)}{did_you_mean(cost, COSTS) or '.'}")
        if cost == "latency" and job.clock is None:
            raise UsageError("cost=latency needs Job.clock: set it, for example, to compressor.onnx.layer_latency.Clock().")
        self.in_time = cost == "latency"
        if ranks not in RULES:
            raise UsageError(f"--set ranks={ranks} is unknown: use {', '.join(RULES)}{did_you_mean(ranks, RULES) or '.'}")
        self.rule, self.whiten = ranks, whiten
        self.left: dict[str, str] = {}  # layers that cannot be factored -> reason
        self.remarks: dict[str, str] = {}
        self.ranks: dict[str, int] = {}
        self.chains: dict[str, nn.Sequential] = {}
        self.packed: dict[str, nn.Module] = {}  # attention modules with packed projections,
        self.opened: dict[str, list[Part]] = {}  # and their unpacked replacements
        self.read: dict[str, tuple[Shape, ...]] = {}  # input shapes of all layers that can be factored,
        self.shapes: dict[str, tuple[Shape, ...]] = {}  # and of those that this method factors
        self.difference: float | None = None
        self.planned: dict[str, float] = {}
        self.times: dict[str, tuple[float, float]] = {}  # measured layers: milliseconds before and after
        self.asked: float | None = None  # for a goal in energy or rank: requested and achieved reduction
        self.reached: float | None = None

    # What papers override ---------------------------------------------------------------------------------------------

    @abstractmethod
    def splits(self, name: str, layer: Layer) -> Sequence[Split]:
        """The candidate decompositions of a layer, of which the least harmful is used; empty: the layer is not factored."""

    def prepare(self) -> None:
        self.factor()

    # Operations -------------------------------------------------------------------------------------------------------

    def factor(self) -> None:
        """Replace layers by chains until the goal is met, and verify the network. Raises Infeasible."""
        seen = self.watched()
        sites = self.sites(seen)
        if not sites:
            raise Infeasible(f"{self.job.goal.text}: no layer can be factored. {self._reasons()}")
        self.use(sites, distributed.agreed(self.choose(sites)), seen)

    def unpack(self) -> None:
        """Unpack attention modules that store queries, keys and values in one weight, if the output does not change."""
        apart = unpacked(self.model, self.job.inputs)
        apart = {name: module for name, module in apart.items() if not any(fnmatch(name, keep) for keep in self.job.keep)}
        try:
            gap = gap_between(self.model, replaced(clone_network(self.model), copy.deepcopy(apart)), self.job.inputs)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # the model's code accesses attributes of the packed module
            return
        if gap <= TOLERANCE:
            self.opened = {name: describe(module) for name, module in apart.items()}
            self.packed = {name: self.model.get_submodule(name) for name in apart}
            replaced(self.model, apart)

    def watched(self) -> Mapping[str, Seen]:
        """Activation statistics of each layer on training images; empty without images or with `whiten=false`."""
        self.unpack()
        self.read, self.left = layers(self.model, self.job.inputs, self.job.keep)
        self.shapes = {name: shapes for name, shapes in self.read.items() if self._ways(name)}
        if not self.whiten or self.job.images is None:
            return {}
        return watch(self.model, self.shapes, self.samples(IMAGES))

    def sites(self, seen: Mapping[str, Seen]) -> list[Site]:
        """All layers with their candidate ranks, each with the decomposition that changes the output of the network least."""
        found = []
        for name, shapes in self.shapes.items():
            layer = self._layer(name)
            sites = [self._site(name, layer, shapes, way, seen.get(name)) for way in self._ways(name)]
            if ways := [site for site in sites if len(site.ladder.ranks)]:
                found.append(ways)
            else:
                self.left[name] = "no rank saves both MACs and parameters"
        if self.job.images is None or self.rule not in ("knapsack", "greedy"):
            return [min(ways, key=half_error) for ways in found]
        return probed(self.model, found, seen, list(self.samples(PROBED)), self.job.task)

    def choose(self, sites: Sequence[Site]) -> Choice:
        """A rank for each site. Raises Infeasible if the goal cannot be met."""
        choice = self.allocation.choose(sites, self._reasons())
        if told := self.allocation.reached(sites, choice):
            self.asked, self.reached = told
        return choice

    @property
    def allocation(self) -> Allocation:
        """The rank allocation for the goal of the job."""
        job, ms = self.job, self.ms if self.in_time else None
        return Allocation(job.goal, self.rule, job.macs, self._params, job.overhead, ms)

    @property
    def granularity(self) -> str:
        """Why the achieved reduction can differ from the target."""
        return f"ranks are multiples of {self.job.round_to or 'up to 8'}"

    def use(self, sites: Sequence[Site], choice: Choice, seen: Mapping[str, Seen]) -> None:
        """Build the chains, replace the layers and verify the network. Raises VerificationFailed."""
        dense = self.make(sites, choice, seen)
        if not self.chains:
            raise Infeasible(f"{self.job.goal.text}: no layer would be factored. Request a larger reduction. {self._reasons()}")
        self.put(dense)

    def make(self, sites: Sequence[Site], choice: Choice, seen: Mapping[str, Seen]) -> dict[str, Tensor]:
        """Build the chains, and return the product of the factors of each."""
        dense = {}
        for site, index in zip(sites, choice, strict=True):
            if index is None:
                self.remarks[site.name] = "not factored: other layers save more at less error"
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
        """The latency of the replacement of a layer, for one image."""
        assert self.job.clock is not None
        return sum(self.job.clock(chain, shape) for shape in self.read[name])

    def put(self, dense: Mapping[str, Tensor], copies: Mapping[str, Tensor] | None = None) -> None:
        """Replace layers by chains, and verify the network against its dense equivalent. Raises VerificationFailed.

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
        """Batches of `images` images without augmentation, on the method's device. Raises UsageError if there is no data."""
        if self.job.images is None:
            raise UsageError("this method needs training images: give --data, or use --method svd.")
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
        """Restore packed attention modules without a factored part, and merge the remarks on the parts of the others."""
        for name, whole in self.packed.items():
            inside = {part: remark for part, remark in self.remarks.items() if part.startswith(f"{name}.")}
            if any(part in self.chains for part in inside):
                told = (f"{part.removeprefix(f'{name}.')}: {remark}" for part, remark in inside.items())
                self.remarks[name] = "; ".join(told)
            else:
                replaced(self.model, {name: whole})
                del self.opened[name]
                self.remarks[name] = "not factored: other layers save more at less error"

    def _layer(self, name: str) -> Layer:
        layer = self.model.get_submodule(name)
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        return layer

    def _ways(self, name: str) -> list[Split]:
        """The decompositions that apply to a layer; if there are none, the reason is recorded in `left`."""
        layer = self._layer(name)
        allowed = self.splits(name, layer)
        reasons = {split.name: split.why_not(layer) for split in allowed}
        fitting = [split for split in allowed if not reasons[split.name]]
        if not fitting:
            self.left[name] = "; ".join(dict.fromkeys(reasons.values())) or "the method does not factor this type of layer"
        return fitting

    def _site(self, name: str, layer: Layer, shapes: tuple[Shape, ...], split: Split, seen: Seen | None) -> Site:
        ladder = ladder_of(layer, shapes, split, seen, self.job.goal, self.job.round_to)
        return Site(name, layer, shapes, split, ladder)

    @property
    def _params(self) -> float:
        """Parameters of the whole network."""
        return float(sum(parameter.numel() for parameter in self.model.parameters()))

    def _planned(self) -> dict[str, float]:
        """Planned MACs and parameters of the factored network."""
        before = [cost(self._layer(name), self.read[name]) for name in self.chains]
        after = [cost(chain, self.read[name]) for name, chain in self.chains.items()]
        return {
            "macs": self.job.macs + sum(c.macs for c in after) - sum(c.macs for c in before),
            "params": self._params + sum(c.params for c in after) - sum(c.params for c in before),
        }

    def _reasons(self) -> str:
        """The reasons why layers cannot be factored, the most frequent first."""
        counts = Counter(self.left.values()).most_common(3)
        return "Not factored: " + ", ".join(f"{n} x {reason}" for reason, n in counts) + "." if counts else ""
