"""A run of `compress lowrank`: how much to remove, and which method factors the layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from compressor.errors import UsageError
from compressor.methods import catalogue
from compressor.methods.catalogue import Entry, Value
from compressor.methods.lowrank.factor import LowRank
from compressor.network.cost import count_macs
from compressor.network.inputs import AnyInputs, Inputs
from compressor.onnx.layer_latency import Clock
from compressor.report import Profile, Report, Target
from compressor.runs import reporting
from compressor.runs.journal import Journal
from compressor.runs.run import Order, Run, check_needs
from compressor.runs.run_directory import RunDirectory
from compressor.runs.settings import Setting
from compressor.runs.sources import Images, Opened, Source
from compressor.training import distributed
from compressor.training.goal import Goal, parse_energy, parse_rank, parse_rate, parse_target
from compressor.training.method import Job, Method
from compressor.training.recipe import Recipe
from compressor.training.train import guide, seed_all

WITHOUT_IMAGES = "svd"  # the method that needs only the weights


@dataclass(frozen=True)
class Wish:
    """How much to remove, and with which method."""

    goal: Goal
    method: str = "svd"
    settings: Mapping[str, Value] = field(default_factory=dict)
    keep: tuple[str, ...] = ()
    round_to: int | None = None
    repair: bool = True  # re-estimate the last layer of each chain by least squares, if that helps

    def __post_init__(self) -> None:
        if self.goal.quantity in ("filters", "weights"):
            raise UsageError(f"--target {self.goal.text} is for `compress prune`: use macs, params or size.")
        if self.round_to is not None and self.round_to < 1:
            raise UsageError(f"--round-to must be 1 or more; found {self.round_to}.")


class Factoring(Run):
    """One low-rank run."""

    does = "lowrank"
    entry: Entry

    def __init__(self, order: Order, wish: Wish) -> None:
        self.wish, self.method, self.repair = wish, wish.method, wish.repair
        self.entry = catalogue.find(wish.method, "lowrank")
        recipe = order.recipe.with_sgd(self.entry.lr, self.entry.weight_decay)  # those of the method's paper
        super().__init__(replace(order, recipe=recipe))

    def _check(self) -> None:
        check_needs(self.entry, self.recipe.epochs, self.images.spec, instead=WITHOUT_IMAGES)

    @property
    def wishes(self) -> dict[str, Setting]:
        wish = self.wish
        option, _, _ = wish.goal.text.partition(" ")
        return {
            "rate": wish.goal.share if option == "--rate" else None,
            "energy": 1 - wish.goal.asked(1) if option == "--energy" else None,
            "rank": int(wish.goal.limit or 0) if option == "--rank" else None,
            "target": None if option.startswith("--") else wish.goal.text,
            "method": wish.method,
            "method_sha256": self.entry.sha256,
            "set": catalogue.written(self.entry, wish.settings),
            "keep": list(wish.keep) or None,
            "round_to": wish.round_to,
            "repair": wish.repair,
        }

    @property
    def counts_bytes(self) -> bool:
        return self.wish.goal.quantity == "size"

    def _stand_in(self) -> Run:
        order = replace(self.order, recipe=replace(self.recipe, epochs=0))
        blind = not (self.entry.trains or self.entry.looks)
        return Factoring(order, self.wish if blind else replace(self.wish, method=WITHOUT_IMAGES, settings={}))

    def _prepared(self, opened: Opened, place: RunDirectory, journal: Journal, device: torch.device) -> Method:
        """Raises Infeasible when the target cannot be met."""
        wish, model, clock = self.wish, opened.loaded.model, Clock(place.times)
        job = Job(
            model,
            opened.inputs,
            None,
            wish.goal,
            self.task,
            keep=wish.keep,
            macs=count_macs(model, opened.inputs),
            round_to=wish.round_to,
            overhead=reporting.overhead(wish.goal, model, place.original),
            guide=guide(self.recipe, self.task, model, device),
            images=opened.data,
            clock=lambda module, shape: distributed.agreed(clock(module, shape) if distributed.is_first() else 0.0),
        )
        reporting.check_not_met(wish.goal, model, opened.inputs, place.original)
        seed_all(self.recipe.seed)
        method = catalogue.create(self.entry, job, wish.settings).to(device)
        method.prepare()
        return method

    def _target(self, method: Method, small: nn.Module, baseline: Profile, compressed: Profile) -> Target:
        assert isinstance(method, LowRank)
        goal = self.wish.goal
        if method.asked is not None and method.reached is not None:
            return Target(goal.quantity, method.asked, method.reached, goal.text)
        return reporting.target(goal, baseline, compressed, method.granularity)


def lowrank(
    model: str,
    *,
    rate: float | None = None,
    target: str | None = None,
    energy: float | None = None,
    rank: int | None = None,
    method: str = "svd",
    data: str | None = None,
    out: str | Path,
    arch: str | None = None,
    arch_args: Mapping[str, object] | None = None,
    settings: Mapping[str, Value] | None = None,
    keep: tuple[str, ...] = (),
    round_to: int | None = None,
    repair: bool = True,
    recipe: Recipe | None = None,
    inputs: AnyInputs | None = None,
    device: str = "auto",
    onnx: bool = True,
    force: bool = False,
    resume: bool = False,
) -> Report:
    """Factor the layers of `model` (a checkpoint, `torchvision:NAME`, ... as on the command line) into the directory `out`.

    Give one of `rate` (fraction of the MACs to remove), `target` (such as "params<=5M"), `energy` (fraction of its energy that
    each layer keeps) and `rank`. `inputs` is as --input. Returns the report; raises a CompressError.
    """
    order = Order(
        Source(model, arch, arch_args or {}),
        Images(data),
        recipe or Recipe(),
        Path(out),
        device,
        None if inputs is None else Inputs.of(inputs),
        force=force,
        resume=resume,
        command="compressor.lowrank(...)",
        onnx=onnx,
    )
    return Factoring(order, Wish(parse_goal(rate, target, energy, rank), method, settings or {}, keep, round_to, repair)).run()


def parse_goal(rate: float | None, target: str | None, energy: float | None, rank: int | None) -> Goal:
    """The goal that is given by one of the options. Raises UsageError unless it is exactly one."""
    if sum(option is not None for option in (rate, target, energy, rank)) != 1:
        raise UsageError(
            "Give exactly one of --rate 0.5 (fraction of the MACs to remove), --target params=80%, "
            "--energy 0.9 (fraction of its energy that each layer keeps) and --rank 64."
        )
    if rate is not None:
        return parse_rate(rate)
    if target is not None:
        return parse_target(target)
    return parse_energy(energy) if energy is not None else parse_rank(rank or 0)
