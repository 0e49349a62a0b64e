"""What low-rank papers share: which layers can be factored, what each rank costs and loses, and the proof of the result.

    sites     the layers, and the shapes of what they read
    ladders   for each site, the ranks that save both MACs and parameters, with their cost and their error
    choice    one rank a site, so that the goal is met (ranks.py)
    chains    of plain layers in place of the chosen sites (decompositions.py)

A paper says which sites it takes, which ways to split them it allows, and how the chains are trained.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import partial
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compressor.errors import Infeasible, UsageError, VerificationFailed, did_you_mean
from compressor.methods import ranks, widths
from compressor.methods.lowrank.decompositions import Layer, Seen, Split, watch
from compressor.methods.ranks import RULES, Choice, Ladder
from compressor.network.inputs import AnyInputs, Inputs
from compressor.network.meta import evaluating, meta_copy, separate_attention
from compressor.network.outputs import logits_of, tensors_in
from compressor.network.parts import Chains, Part, describe, replaced
from compressor.network.unpack import unpacked
from compressor.report.schema import Frozen
from compressor.training import processes
from compressor.training.method import Batch, Job, Made, Method

IMAGES = 512  # training images on which layers are watched
PROBED = 256  # of them, those on which the network is asked what a layer's error does to its answers
RUNGS = 96  # ranks on a ladder, at most
BYTES = 4  # of a parameter in a file
TIMED, BUDGETS = 5, 64  # ranks at which a layer is timed, and times of all layers that are tried
COSTS = ("macs", "latency")
TOLERANCE = 1e-5  # as of a cut: largest difference over largest output

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Site:
    """A layer that can be factored, and the shape of what it reads, once for each call with one image."""

    name: str
    layer: Layer
    shapes: tuple[Shape, ...]
    split: Split
    ladder: Ladder


@dataclass(frozen=True)
class Cost:
    """Multiply-adds for one image, and parameters."""

    macs: int
    params: int

    def of(self, quantity: str) -> int:
        return self.macs if quantity == "macs" else self.params


def cost(chain: nn.Module, shapes: Iterable[Shape]) -> Cost:
    """What a chain costs that reads tensors of these shapes, each with a batch of one."""
    macs = 0
    twin = meta_copy(chain)
    for shape in shapes:
        x = torch.empty(shape, device="meta")
        for part in twin if isinstance(twin, nn.Sequential) else [twin]:
            x = part(x)
            if isinstance(part, nn.Conv2d | nn.Linear):
                made = part.out_channels if isinstance(part, nn.Conv2d) else part.out_features
                macs += x.numel() // made * part.weight.numel()
    return Cost(macs, sum(parameter.numel() for parameter in chain.parameters()))


def layers(
    model: nn.Module, inputs: AnyInputs, keep: Sequence[str] = ()
) -> tuple[dict[str, tuple[Shape, ...]], dict[str, str]]:
    """The layers that a chain could stand for, with the shapes of what they read; and those that none could, with the reason.

    `keep` are patterns of layers to leave whole. Raises UsageError for one that matches none.
    """
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.modules.conv._ConvNd)}
    widths.check_keep(keep, linear)
    read = _shapes_read(model, inputs, list(linear))
    names = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    owners = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    fine: dict[str, tuple[Shape, ...]] = {}
    left: dict[str, str] = {}
    for name, module in linear.items():
        kept = next((pattern for pattern in keep if fnmatch(name, pattern)), None)
        if kept is not None:
            left[name] = f"kept as asked (--keep {kept})"
        elif type(module).forward not in (nn.Linear.forward, nn.Conv2d.forward):
            left[name] = f"no way to factor a {type(module).__name__}"
        elif names[id(module)] > 1 or "weight" not in module._parameters or owners[id(module.weight)] > 1:
            left[name] = "its weights are shared, or computed from others"
        elif module._forward_hooks or module._forward_pre_hooks:
            left[name] = "a hook changes what it gives"
        elif name not in read:
            left[name] = "it is not called: another module reads its weights, or nobody"
        else:
            fine[name] = tuple(read[name])
    for name in _irreplaceable(model, inputs, list(fine)):
        left[name] = "the model's code reads its weights"
        del fine[name]
    return fine, left


def _irreplaceable(model: nn.Module, inputs: AnyInputs, names: Sequence[str]) -> Sequence[str]:
    """Layers in whose place nothing else can stand, for the network then fails."""

    def works(some: Sequence[str]) -> bool:
        network = copy.deepcopy(model).eval()
        replaced(network, {name: nn.Sequential(network.get_submodule(name)) for name in some})
        try:
            with torch.no_grad():
                Inputs.of(inputs).call(network, Inputs.of(inputs).random(1, like=network))
        except Exception:  # whatever the model's own code may raise
            return False
        return True

    return () if works(names) else [name for name in names if not works([name])]


def _shapes_read(model: nn.Module, inputs: AnyInputs, names: Iterable[str]) -> dict[str, list[Shape]]:
    """For each of the modules that is called: the shapes of its input, call by call, for one image."""
    read: dict[str, list[Shape]] = {}
    inputs = Inputs.of(inputs)
    try:
        network = meta_copy(model).eval()
        _listen(network, inputs, names, read)
    except Exception:  # a network that branches on values cannot run without data
        read.clear()
        _listen(copy.deepcopy(model).eval(), inputs, names, read)
    return read


def _listen(network: nn.Module, inputs: Inputs, names: Iterable[str], read: dict[str, list[Shape]]) -> None:
    def hear(name: str) -> None:
        def heard(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
            read.setdefault(name, []).append(tuple(next(iter((*args, *kwargs.values()))).shape))

        network.get_submodule(name).register_forward_pre_hook(heard, with_kwargs=True)

    for name in names:
        hear(name)
    with torch.no_grad(), separate_attention():
        inputs.call(network, inputs.random(1, like=network))


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
            raise UsageError("cost=latency needs a clock: give the job one, such as compressor.timing.Clock().")
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
        self.use(sites, processes.agreed(self.choose(sites)), seen)

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
            sites = [Site(name, layer, shapes, way, self._ladder(name, way, seen.get(name))) for way in self._ways(name)]
            if ways := [site for site in sites if len(site.ladder.ranks)]:
                found.append(ways)
            else:
                self.left[name] = "no rank would save both MACs and parameters"
        if self.job.images is None or self.rule not in ("knapsack", "greedy"):
            return [min(ways, key=_half_error) for ways in found]
        return self._probed(found, seen)

    def choose(self, sites: Sequence[Site]) -> Choice:
        """A rank for each site. Raises Infeasible when the goal cannot be met."""
        goal, ladders = self.job.goal, [site.ladder for site in sites]
        if goal.quantity == "energy":
            choice = ranks.energy(ladders, 1 - goal.asked(1))
            lost = [ladder.errors[i] for ladder, i in zip(ladders, choice, strict=True) if i is not None]
            self.asked, self.reached = goal.asked(1), float(np.mean(lost)) if lost else 0.0
            return choice
        if goal.quantity == "rank":
            assert goal.limit is not None
            full = [site.split.most(site.layer) for site in sites]
            choice = [_at_most(ladder, goal.limit) for ladder in ladders]
            kept = [n if i is None else int(ladder.ranks[i]) for n, ladder, i in zip(full, ladders, choice, strict=True)]
            self.asked = 1 - sum(min(n, goal.limit) for n in full) / sum(full)
            self.reached = 1 - sum(kept) / sum(full)
            return choice
        total, (asked, allowed) = self._total(goal.quantity), self.allowed()
        fixed = total - sum(ladder.full for ladder in ladders)
        least = fixed + sum(ladder.costs[0] for ladder in ladders)
        if least > allowed:
            raise Infeasible(
                f"{goal.text} asks for {asked:.1%} fewer {widths.UNIT[goal.quantity]}, but layers that can be factored hold "
                f"{1 - fixed / total:.1%} of them, and at their lowest ranks {1 - least / total:.1%} are saved.\n"
                f"Ask for less, or of another quantity. {self._reasons()}"
            )
        return self._soonest(sites, allowed - fixed) if self.in_time else ranks.meet(ladders, RULES[self.rule], allowed - fixed)

    @property
    def granularity(self) -> str:
        """Why what is reached may differ from what was asked."""
        return f"ranks are multiples of {self.job.round_to or 'up to 8'}"

    def allowed(self) -> tuple[float, float]:
        """The share of the MACs or parameters that is to go, and how many are left to the whole network then."""
        goal, aside = self.job.goal, self._aside()
        whole = self._total(goal.quantity) + aside
        asked = goal.asked(whole * (BYTES if goal.quantity == "size" else 1))
        return asked, whole * (1 - asked) - aside

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

    def _ladder(self, name: str, split: Split, seen: Seen | None) -> Ladder:
        """Ranks that save both MACs and parameters, in multiples of what suits processors."""
        layer, shapes, quantity = self._layer(name), self.shapes[name], self.job.goal.quantity
        full, most = cost(layer, shapes), split.most(layer)
        unit = min(most, self.job.round_to or int(widths.units(np.array([most // 2]))[0]))
        bias = True if seen is not None and split.whitens else None
        steps = np.linspace(1, most // unit, RUNGS).astype(int) * unit
        if (limit := self.job.goal.limit) and self.job.goal.quantity == "rank":  # what was asked for, though it be odd
            multiple = self.job.round_to or 1
            steps = np.append(steps, np.clip(int(limit) // multiple * multiple, multiple, most))
        costs = {int(rank): cost(split.chain(layer, int(rank), bias), shapes) for rank in np.unique(steps)}
        worth = {rank: c for rank, c in costs.items() if c.macs < full.macs and c.params < full.params}
        return Ladder(
            np.array(list(worth), np.int64),
            split.errors(layer, list(worth), seen) if worth else np.zeros(0),
            np.array([c.of(quantity) for c in worth.values()], np.float64),
            float(full.of(quantity)),
            split.singular(layer, seen).cpu().numpy(),
            split.shape(layer),
        )

    def _probed(self, found: Sequence[Sequence[Site]], seen: Mapping[str, Seen]) -> list[Site]:
        """For each layer the way to split it that changes the network's answers least at half the layer's cost, and how much.

        Each way is tried alone, on the images that are looked at. What it does to the answers, as KL divergence, over its error
        is taken as the weight of all errors of that layer.
        """
        images = [batch.images for batch in self.samples(PROBED)]
        original = self._answers(self.model, images)
        chosen = []
        for ways in found:
            tried = []
            for site in ways:
                middle = int(np.argmin(np.abs(site.ladder.costs - site.ladder.full / 2)))
                chain = site.split.factor(site.layer, int(site.ladder.ranks[middle]), seen.get(site.name))
                replaced(self.model, {site.name: chain})
                answers = self._answers(self.model, images)
                replaced(self.model, {site.name: site.layer})
                harm = max(float(F.kl_div(answers, original, log_target=True, reduction="batchmean")), 1e-9)
                weight = harm / max(float(site.ladder.errors[middle]), 1e-9)
                tried.append((harm, replace(site, ladder=replace(site.ladder, weight=weight))))
            chosen.append(min(tried, key=lambda entry: entry[0])[1])
        return chosen

    def _soonest(self, sites: Sequence[Site], allowed: float) -> Choice:
        """The ranks that lose the least error in a time in which they also cost no more than `allowed`.

        That time is looked for from the share that is allowed down. Where none will do, for what takes no time costs, too, the
        costs themselves decide.
        """
        ladders, rule = [site.ladder for site in sites], RULES[self.rule]
        timed = [site.ladder.at(self._times(site), self.ms(site.name, site.layer)) for site in sites]
        share = allowed / sum(ladder.full for ladder in ladders)
        least, most = ranks.cost(timed, [0] * len(timed)), share * sum(ladder.full for ladder in timed)
        for time in np.linspace(most, least, BUDGETS) if least < most else ():
            choice = ranks.meet(timed, rule, float(time))
            if ranks.cost(ladders, choice) <= allowed:
                return choice
        return ranks.meet(ladders, rule, allowed)

    def _times(self, site: Site) -> dict[int, float]:
        """Milliseconds at some of a layer's ranks, from the lowest to the highest."""
        few = np.unique(np.linspace(0, len(site.ladder.ranks) - 1, TIMED).astype(int))
        return {rank: self.ms(site.name, site.split.chain(site.layer, rank)) for rank in site.ladder.ranks[few].tolist()}

    def _answers(self, model: nn.Module, images: Sequence[Tensor]) -> Tensor:
        """Log-probabilities [n, classes] in eval mode."""
        with evaluating(model), torch.inference_mode():
            return torch.cat([logits_of(model(batch)).float().log_softmax(-1) for batch in images])

    def _total(self, quantity: str) -> float:
        """MACs, or parameters, of the whole network."""
        if quantity == "macs":
            return self.job.macs
        return float(sum(parameter.numel() for parameter in self.model.parameters()))

    def _aside(self) -> float:
        """Parameters that the other bytes of the ONNX file amount to, for a goal of size."""
        return self.job.overhead / BYTES if self.job.goal.quantity == "size" else 0.0

    def _planned(self) -> dict[str, float]:
        """MACs and parameters of the network with chains."""
        before = [cost(self._layer(name), self.read[name]) for name in self.chains]
        after = [cost(chain, self.read[name]) for name, chain in self.chains.items()]
        return {
            "macs": self._total("macs") + sum(c.macs for c in after) - sum(c.macs for c in before),
            "params": self._total("params") + sum(c.params for c in after) - sum(c.params for c in before),
        }

    def _reasons(self) -> str:
        """Why layers were left, the commonest reason first."""
        counts = Counter(self.left.values()).most_common(3)
        return "Left whole: " + ", ".join(f"{n} x {reason}" for reason, n in counts) + "." if counts else ""


def difference(
    model: nn.Module,
    chains: Mapping[str, nn.Sequential],
    dense: Mapping[str, Tensor],
    shapes: Mapping[str, Sequence[Shape]],
    inputs: AnyInputs,
    copies: Mapping[str, Tensor] | None = None,
) -> float:
    """Largest difference between `model` with `chains` and with the `dense` weights they stand for, over the largest output.

    `copies` tells of layers that are not computed everywhere: for each place of the output plane, line by line, the number of
    that which it copies [height * width].
    On two random samples, in float64 where the model's own code allows it; and of each chain alone, with the `shapes` that it
    reads: a network may hide what a layer gives, as untrained ones do.
    """
    multiplied = copy.deepcopy(model).double()
    for name, weight in dense.items():
        layer, last = multiplied.get_submodule(name), [part for part in chains[name] if isinstance(part, Layer)][-1]
        assert isinstance(layer, Layer)
        layer.weight = nn.Parameter(weight.double())
        layer.bias = None if last.bias is None else nn.Parameter(last.bias.detach().double())
        if copies and name in copies:
            layer.register_forward_hook(partial(_copied, copies[name]))
    apart = [gap_between(chains[name], multiplied.get_submodule(name), shape[1:]) for name in dense for shape in shapes[name]]
    return max(gap_between(multiplied, replaced(copy.deepcopy(model), copy.deepcopy(dict(chains))), inputs), *apart)


def _copied(places: Tensor, layer: nn.Module, args: object, out: Tensor) -> Tensor:
    return out.flatten(2)[:, :, places].reshape(out.shape)


def gap_between(model: nn.Module, other: nn.Module, inputs: AnyInputs) -> float:
    """Largest difference between what two networks answer to two random samples, over the largest output.

    In float64 where the networks' own code allows it. They are copied.
    """
    model, other, inputs = copy.deepcopy(model).eval(), copy.deepcopy(other).eval(), Inputs.of(inputs)
    try:
        return _gap(model.double(), other.double(), inputs)
    except RuntimeError as error:
        if "type" not in str(error):
            raise
        return _gap(model.float(), other.float(), inputs)  # they make float32 values of their own


def _gap(model: nn.Module, other: nn.Module, inputs: Inputs) -> float:
    samples = inputs.random(2, like=model)
    with torch.no_grad():
        answers = [tensors_in(inputs.call(network, samples)) for network in (model, other)]
    pairs = [(a, b) for a, b in zip(*answers, strict=True) if a.is_floating_point() and a.numel()]
    return max((float((a - b).abs().max() / a.abs().max().clamp(min=1e-30)) for a, b in pairs), default=0.0)


def _half_error(site: Site) -> float:
    """The error at half the layer's cost, or as near as its ranks come."""
    return float(site.ladder.errors[np.argmin(np.abs(site.ladder.costs - site.ladder.full / 2))])


def _at_most(ladder: Ladder, rank: float) -> int:
    """The index of the highest rank that is at most `rank`, or of the lowest one, where all are higher."""
    return max(0, int(np.searchsorted(ladder.ranks, rank, side="right")) - 1)
