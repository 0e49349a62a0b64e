"""A run of `compress prune`: which channels to remove, and with which method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from compressor.channels import Channels, Heads, Residual, analyse
from compressor.errors import Infeasible, UsageError
from compressor.methods import catalogue
from compressor.methods.catalogue import Entry, Value
from compressor.methods.prune.filters import FilterPruning
from compressor.methods.widths import hold
from compressor.network.cost import sparsity
from compressor.network.inputs import AnyInputs, Inputs
from compressor.report import Profile, Report, Target
from compressor.runs import reporting
from compressor.runs.journal import Journal
from compressor.runs.run import Order, Run, check_needs
from compressor.runs.run_directory import RunDirectory
from compressor.runs.sensitivity_table import read_curves
from compressor.runs.settings import Setting
from compressor.runs.sources import Images, Opened, Source
from compressor.tasks import Task
from compressor.training.goal import Curve, Goal, parse_rate, parse_target
from compressor.training.method import Job, Method
from compressor.training.recipe import Recipe
from compressor.training.train import guide, seed_all

WITHOUT_IMAGES = "magnitude"  # the method that needs only the weights


@dataclass(frozen=True)
class Wish:
    """What to prune, and with which method."""

    goal: Goal
    method: str = "magnitude"
    settings: Mapping[str, Value] = field(default_factory=dict)
    residual: Residual = "coupled"
    heads: Heads = "width"
    keep: tuple[str, ...] = ()
    round_to: int | None = None
    most: float = 0.95
    sensitivity: Path | None = None
    repair: bool = True  # re-estimate the consumers of pruned channels by least squares, if that helps

    def __post_init__(self) -> None:
        if not 0 < self.most < 1:
            raise UsageError(
                f"--max-rate is the largest fraction of a group to prune, between 0 and 1, both excluded; found {self.most:g}."
            )
        if self.round_to is not None and self.round_to < 1:
            raise UsageError(f"--round-to must be 1 or more; found {self.round_to}.")
        if self.sensitivity is not None and self.residual == "scatter":
            raise UsageError("--sensitivity is measured with --residual coupled, not scatter: omit one of the two.")
        if self.sensitivity is not None and self.heads == "whole":
            raise UsageError("--sensitivity is measured with --heads width, not whole: omit one of the two.")
        if self.sensitivity is not None and self.goal.quantity == "filters":
            raise UsageError(f"--target {self.goal.text} prunes every layer alike, without --sensitivity: omit one of the two.")


class Pruning(Run):
    """One pruning run."""

    does = "prune"
    entry: Entry

    def __init__(self, order: Order, wish: Wish) -> None:
        self.wish, self.method, self.repair = wish, wish.method, wish.repair
        self.entry = catalogue.find(wish.method, "prune")
        super().__init__(order)

    def _check(self) -> None:
        if self.entry.weights and self.wish.goal.quantity != "weights":
            raise UsageError(f"--method {self.wish.method} sets single weights to zero: give --target weights=70%.")
        if self.wish.goal.quantity == "weights" and not self.entry.weights:
            raise UsageError(f"--target {self.wish.goal.text} sets single weights to zero: give --method srwp.")
        check_needs(self.entry, self.recipe.epochs, self.images.spec, instead=WITHOUT_IMAGES)

    @property
    def wishes(self) -> dict[str, Setting]:
        wish = self.wish
        is_rate = wish.goal.text.startswith("--rate")
        return {
            "rate": wish.goal.share if is_rate else None,
            "target": None if is_rate else wish.goal.text,
            "method": wish.method,
            "method_sha256": self.entry.sha256,
            "set": catalogue.written(self.entry, wish.settings),
            "residual": wish.residual,
            "heads": wish.heads,
            "keep": list(wish.keep) or None,
            "round_to": wish.round_to,
            "most": wish.most,
            "sensitivity": None if wish.sensitivity is None else str(wish.sensitivity),
            "repair": wish.repair,
        }

    @property
    def counts_bytes(self) -> bool:
        return self.wish.goal.quantity == "size"

    def _stand_in(self) -> Run:
        order = replace(self.order, recipe=replace(self.recipe, epochs=0))
        blind = not (self.entry.trains or self.entry.looks)
        return Pruning(order, self.wish if blind else replace(self.wish, method=WITHOUT_IMAGES, settings={}))

    def _prepared(self, opened: Opened, place: RunDirectory, journal: Journal, device: torch.device) -> Method:
        """Raises Infeasible when the target cannot be met."""
        original = guide(self.recipe, self.task, opened.loaded.model, device)
        return prepared(self.wish, opened, place.original, self.task, original, self.recipe.seed, journal, device)

    def _target(self, method: Method, small: nn.Module, baseline: Profile, compressed: Profile) -> Target:
        goal = self.wish.goal
        if not isinstance(method, FilterPruning):
            return reporting.target(goal, baseline, compressed, "", sparsity(small))
        removed = method.removed
        assert removed is not None, "it has finished"
        return reporting.target_of_cut(goal, removed.channels, removed.mask, baseline, compressed, self.wish.round_to)


def prepared(
    wish: Wish,
    opened: Opened,
    original: Path,
    task: Task,
    guide: nn.Module | None,
    seed: int,
    journal: Journal,
    device: torch.device,
) -> Method:
    """The method, which has pruned the model already if it prunes before training. `original` is the model's ONNX file.

    `guide` is a teacher in training: see `Job`.

    Raises Infeasible when the target cannot be met.
    """
    model = opened.loaded.model
    channels = hold(analyse(model, opened.inputs, wish.residual, wish.heads), list(wish.keep))
    _check_wish(wish.goal, channels)
    reporting.check_not_met(wish.goal, model, opened.inputs, original)
    job = Job(
        model,
        opened.inputs,
        channels,
        wish.goal,
        task,
        round_to=wish.round_to,
        most=wish.most,
        overhead=reporting.overhead(wish.goal, model, original),
        curves=_curves(wish.sensitivity, channels, journal),
        guide=guide,
        images=opened.data,
    )
    seed_all(seed)
    method = catalogue.create(catalogue.find(wish.method, "prune"), job, wish.settings).to(device)
    method.prepare()
    return method


def _curves(file: Path | None, channels: Channels, journal: Journal) -> Mapping[str, Curve] | None:
    """The measured loss of each group, if a table is given. Raises UsageError."""
    if file is None:
        return None
    curves = read_curves(file, channels)
    journal.say(f"sensitivity of {len(curves)} of {len(channels.groups)} groups from {file}")
    return curves


def _check_wish(goal: Goal, channels: Channels) -> None:
    """Raise Infeasible when no channel can be pruned."""
    if not channels.atoms and goal.quantity != "weights":
        raise Infeasible("No channel of this model can be pruned: `compress inspect` lists the frozen layers, with the reason.")


def prune(
    model: str,
    *,
    rate: float | None = None,
    target: str | None = None,
    method: str = "magnitude",
    data: str | None = None,
    out: str | Path,
    arch: str | None = None,
    arch_args: Mapping[str, object] | None = None,
    settings: Mapping[str, Value] | None = None,
    residual: Residual = "coupled",
    heads: Heads = "width",
    keep: tuple[str, ...] = (),
    round_to: int | None = None,
    sensitivity: str | Path | None = None,
    repair: bool = True,
    recipe: Recipe | None = None,
    inputs: AnyInputs | None = None,
    device: str = "auto",
    onnx: bool = True,
    force: bool = False,
    resume: bool = False,
) -> Report:
    """Prune `model` (a checkpoint, `torchvision:NAME`, ... as on the command line) into the directory `out`.

    Give one of `rate` (fraction of the MACs to remove) and `target` (such as "params<=5M"). `inputs` is as --input: the shape
    of one sample, several shapes, or name -> shape. `sensitivity` is the table of `measure_sensitivity`. Returns the report;
    raises a CompressError.
    """
    if (rate is None) == (target is None):
        raise UsageError("give either rate or target.")
    goal = parse_rate(rate) if rate is not None else parse_target(str(target))
    order = Order(
        Source(model, arch, arch_args or {}),
        Images(data),
        recipe or Recipe(),
        Path(out),
        device,
        None if inputs is None else Inputs.of(inputs),
        force=force,
        resume=resume,
        command="compressor.prune(...)",
        onnx=onnx,
    )
    curves = None if sensitivity is None else Path(sensitivity)
    wish = Wish(goal, method, settings or {}, residual, heads, keep, round_to, sensitivity=curves, repair=repair)
    return Pruning(order, wish).run()
