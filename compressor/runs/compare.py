"""Several methods at several rates on one model: the same images, epochs and seeds for all, and one table of what came out.

    OUT/METHOD-RATE-seedN/     a run as `prune` makes it, for each method, rate and seed
    OUT/dense-seedN/           the uncut network, trained alike
    OUT/comparison.*           the table and the plot, written anew after every run

A run that is finished is not made again, one that was interrupted is taken up, and one that fails is a row that says why.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from compressor.channels import Residual
from compressor.errors import CompressError, UsageError, did_you_mean, first_line
from compressor.files import write_text
from compressor.methods import catalogue
from compressor.methods.catalogue import Value
from compressor.network.inputs import AnyInputs, Inputs
from compressor.report import Comparison, Gap, Profile, Report, Target, collect, write_comparison
from compressor.runs.journal import Journal
from compressor.runs.prune import Pruning, Wish
from compressor.runs.run import Order, Run
from compressor.runs.run_directory import RunDirectory
from compressor.runs.settings import Setting, to_toml
from compressor.runs.sources import Images, Opened, Source, open_both
from compressor.training.goal import Goal, parse_rate
from compressor.training.method import Job, Method
from compressor.training.recipe import Recipe
from compressor.training.train import classify, seed_all

LOG, MODEL = "log.jsonl", "model.sha256"
FAULT = 5  # the exit status of what nobody raised on purpose


DENSE = "dense"  # what the uncut network is called where methods are


@dataclass(frozen=True)
class Trial:
    """One run of the comparison. `rate` 0: nothing is cut."""

    method: str
    rate: float
    seed: int
    job: Pruning | FineTuning

    @property
    def name(self) -> str:
        return self.job.out.name

    @property
    def place(self) -> RunDirectory:
        return RunDirectory(self.job.out, to_toml(self.job.settings))

    @property
    def state(self) -> Literal["finished", "interrupted", "to do"]:
        place = self.place
        return "interrupted" if place.can_resume else "finished" if place.is_finished else "to do"

    def gap(self, error: Exception | None = None) -> Gap:
        """Why there is no result: an error, or that its turn has not come."""
        gap = Gap(self.method, self.rate, self.seed, self.name)
        if error is None:
            return gap
        if isinstance(error, CompressError):
            return replace(gap, reason=" ".join(str(error).split()), status=error.exit_code)
        return replace(gap, reason=f"a fault of ours: {first_line(error)}", status=FAULT)


class Series:
    """One comparison. What can be checked without opening the model is checked here; `run()` goes through all runs once."""

    def __init__(
        self,
        order: Order,
        *,
        methods: Sequence[str],
        rates: Sequence[float],
        seeds: Sequence[int] = (0,),
        settings: Mapping[str, Mapping[str, Value]] | None = None,
        residual: Residual = "coupled",
        dense: bool | None = None,
    ) -> None:
        """`settings`: those of each method, by its name. `dense`: with the uncut reference; None: where there is training."""
        self.order, self.out, self.force = order, order.out, order.force
        self.settings, self.residual = settings or {}, residual
        for name, values in {"--methods": methods, "--rates": rates, "--seeds": seeds}.items():
            if not values:
                raise UsageError(f"{name} is empty: name at least one.")
        for name in self.settings:
            if name not in methods:
                raise UsageError(f"--set {name}....: {name} is none of --methods{did_you_mean(name, methods) or '.'}")
        self.trials = list(self._trials(methods, rates, seeds, order.recipe.epochs > 0 if dense is None else dense))

    def _trials(self, methods: Sequence[str], rates: Sequence[float], seeds: Sequence[int], dense: bool) -> Iterator[Trial]:
        """All runs; seed by seed, so that soon there is a table without gaps."""
        for seed in dict.fromkeys(seeds):
            if dense:
                yield Trial(DENSE, 0.0, seed, self._fine_tuning(seed))
            for rate in dict.fromkeys(rates):
                for method in dict.fromkeys(methods):
                    yield Trial(method, rate, seed, self._pruning(method, rate, seed))

    def _pruning(self, method: str, rate: float, seed: int) -> Pruning:
        wish = Wish(parse_rate(rate), method, self.settings.get(method, {}), residual=self.residual)
        return Pruning(self._one(f"{catalogue.find(method, 'prune').label}-{rate:g}-seed{seed}", seed), wish)

    def _fine_tuning(self, seed: int) -> FineTuning:
        return FineTuning(self._one(f"{DENSE}-seed{seed}", seed))

    def _one(self, name: str, seed: int) -> Order:
        """The order of the run `name`."""
        return replace(self.order, recipe=replace(self.order.recipe, seed=seed), out=self.out / name, resume=not self.force)

    def run(self) -> Comparison:
        """Make the runs that are missing. Raises a CompressError for what would stop them all; what fails alone is a gap."""
        self._check()
        journal = Journal(self.order.console, self.out / LOG)
        reports: dict[str, Report] = {}
        gaps = {trial.name: trial.gap() for trial in self.trials}
        left = [trial for trial in self.trials if self.force or trial.state != "finished"]
        for trial in self.trials:
            if trial not in left:
                reports[trial.name] = trial.job.run()  # which reads its report
        compared = self._write(reports, gaps)
        journal.say(f"{len(self.trials)} runs, {len(reports)} finished; after an interruption the same command goes on")
        for number, trial in enumerate(left, 1):
            journal.say(f"\n{number}/{len(left)}: {trial.name}")
            try:
                seed_all(0)  # a model that is named alone has random weights: the same ones in every run
                reports[trial.name] = trial.job.run()
            except Exception as error:
                gaps[trial.name] = trial.gap(error)
                journal.say(f"failed: {gaps[trial.name].reason}")
                journal.event("failed", run=trial.name, traceback=traceback.format_exc())
            compared = self._write(reports, gaps)
        return compared

    def _check(self) -> None:
        """Raise a CompressError when a finished run is of other settings, or when model and images cannot be had."""
        for trial in self.trials:
            try:
                trial.place.check(force=self.force, resume=not self.force)
            except UsageError as error:
                raise type(error)(str(error).removeprefix("--resume: ")) from None  # nobody has asked for that by name
        seed_all(0)
        opened = open_both(self.order.source, self.order.images, self.order.inputs, self.order.recipe.seed)
        record, now = self.out / MODEL, f"{opened.loaded.sha256}\n"
        if not self.force and record.exists() and record.read_bytes() != now.encode():
            raise UsageError(
                f"{self.out} was begun with another file than the {self.order.source.model} of now, and one table is of one "
                "model: --force starts anew, --out DIR goes elsewhere."
            )
        write_text(record, now)

    def _write(self, reports: Mapping[str, Report], gaps: Mapping[str, Gap]) -> Comparison:
        names = [trial.name for trial in self.trials]
        done = {name: reports[name] for name in names if name in reports}
        compared = collect(done, (gaps[name] for name in names if name not in done))
        write_comparison(compared, self.out)
        return compared


class FineTuning(Run):
    """A run that cuts nothing: the uncut network, trained as the pruned ones are. The mark that pruning is held against."""

    method = DENSE

    def _check(self) -> None:
        if not self.recipe.epochs or self.images.spec is None:
            raise UsageError("--dense trains the uncut network: give --data and at least one of --epochs, or --no-dense.")

    @property
    def wishes(self) -> dict[str, Setting]:
        return {"method": DENSE}

    def _prepared(self, opened: Opened, place: RunDirectory, journal: Journal, device: torch.device) -> Method:
        """A method that changes nothing."""
        model, nothing = opened.loaded.model, Goal("macs", DENSE, share=0.0)
        seed_all(self.recipe.seed)
        return Method(Job(model, opened.inputs, None, nothing, classify(self.recipe, model, device))).to(device)

    def _target(self, method: Method, small: nn.Module, baseline: Profile, compressed: Profile) -> Target:
        return Target("macs", 0.0, 0.0, DENSE)


def compare(
    model: str,
    *,
    methods: Sequence[str],
    rates: Sequence[float],
    seeds: Sequence[int] = (0,),
    data: str | None = None,
    out: str | Path,
    arch: str | None = None,
    arch_args: Mapping[str, object] | None = None,
    settings: Mapping[str, Mapping[str, Value]] | None = None,
    residual: Residual = "coupled",
    recipe: Recipe | None = None,
    dense: bool | None = None,
    inputs: AnyInputs | None = None,
    device: str = "auto",
    force: bool = False,
) -> Comparison:
    """Prune `model` (as on the command line) with each method at each rate and seed into `out`, and compare what comes out.

    `settings` are those of each method, by its name; `dense` says whether the whole network is trained alike beside them, by
    default where there are epochs. The seed of `recipe` is replaced. A run that fails is in `failures` of what is returned;
    what would stop them all is raised, a CompressError.
    """
    order = Order(
        Source(model, arch, arch_args or {}),
        Images(data),
        recipe or Recipe(),
        Path(out),
        device,
        None if inputs is None else Inputs.of(inputs),
        force=force,
        command="compressor.compare(...)",
    )
    return Series(
        order,
        methods=methods,
        rates=rates,
        seeds=seeds,
        settings=settings,
        residual=residual,
        dense=dense,
    ).run()
