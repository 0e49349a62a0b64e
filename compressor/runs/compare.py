"""Several methods at several rates on one model: the same images, epochs and seeds for all, and one table of the results.

    OUT/METHOD-RATE-seedN/     a run of `prune` for each method, rate and seed
    OUT/dense-seedN/           the unpruned network, trained with the same recipe
    OUT/comparison.*           the table and the plot, rewritten after every run

Finished runs are kept, an interrupted run is resumed, and a run that fails is a row of the table with the reason.
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
from compressor.training.train import guide, seed_all

LOG, MODEL = "log.jsonl", "model.sha256"
FAULT = 5  # the exit status of unexpected exceptions


DENSE = "dense"  # stands for the method in runs of the unpruned network


@dataclass(frozen=True)
class Trial:
    """One run of the comparison. `rate` is 0 for the unpruned network."""

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
        """Why there is no result: an error, or the run has not started yet."""
        gap = Gap(self.method, self.rate, self.seed, self.name)
        if error is None:
            return gap
        if isinstance(error, CompressError):
            return replace(gap, reason=" ".join(str(error).split()), status=error.exit_code)
        return replace(gap, reason=f"internal error: {first_line(error)}", status=FAULT)


class Series:
    """One comparison. What can be checked without opening the model is checked here; `run()` runs everything once."""

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
        """`settings`: those of each method, by its name. `dense`: with the unpruned baseline; None: if there are epochs."""
        self.order, self.out, self.force = order, order.out, order.force
        self.settings, self.residual = settings or {}, residual
        for name, values in {"--methods": methods, "--rates": rates, "--seeds": seeds}.items():
            if not values:
                raise UsageError(f"{name} is empty: name at least one.")
        for name in self.settings:
            if name not in methods:
                raise UsageError(f"--set {name}....: {name} is not in --methods{did_you_mean(name, methods) or '.'}")
        self.trials = list(self._trials(methods, rates, seeds, order.recipe.epochs > 0 if dense is None else dense))

    def _trials(self, methods: Sequence[str], rates: Sequence[float], seeds: Sequence[int], dense: bool) -> Iterator[Trial]:
        """All runs, seed by seed, so that the table soon has no gaps for the first seed."""
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
        """Run what is missing. Raises a CompressError for errors that would stop every run; a single failure is a gap."""
        self._check()
        journal = Journal(self.order.console, self.out / LOG)
        reports: dict[str, Report] = {}
        gaps = {trial.name: trial.gap() for trial in self.trials}
        left = [trial for trial in self.trials if self.force or trial.state != "finished"]
        for trial in self.trials:
            if trial not in left:
                reports[trial.name] = trial.job.run()  # it is finished: this reads its report
        compared = self._write(reports, gaps)
        journal.say(f"{len(self.trials)} runs, {len(reports)} finished; if interrupted, repeat the command to continue")
        for number, trial in enumerate(left, 1):
            journal.say(f"\n{number}/{len(left)}: {trial.name}")
            try:
                seed_all(0)  # a model given by name has random weights: the same in every run
                reports[trial.name] = trial.job.run()
            except Exception as error:
                gaps[trial.name] = trial.gap(error)
                journal.say(f"failed: {gaps[trial.name].reason}")
                journal.event("failed", run=trial.name, traceback=traceback.format_exc())
            compared = self._write(reports, gaps)
        return compared

    def _check(self) -> None:
        """Raise a CompressError when a finished run has other settings, or the model or the images cannot be opened."""
        for trial in self.trials:
            try:
                trial.place.check(force=self.force, resume=not self.force)
            except UsageError as error:
                raise type(error)(str(error).removeprefix("--resume: ")) from None  # --resume was not given
        seed_all(0)
        opened = open_both(self.order.source, self.order.images, self.order.inputs, self.order.recipe.seed)
        record, now = self.out / MODEL, f"{opened.loaded.sha256}\n"
        if not self.force and record.exists() and record.read_bytes() != now.encode():
            raise UsageError(
                f"{self.out} was started with another file than the present {self.order.source.model}, and a comparison is "
                "of one model: --force starts over, --out DIR chooses another directory."
            )
        write_text(record, now)

    def _write(self, reports: Mapping[str, Report], gaps: Mapping[str, Gap]) -> Comparison:
        names = [trial.name for trial in self.trials]
        done = {name: reports[name] for name in names if name in reports}
        compared = collect(done, (gaps[name] for name in names if name not in done))
        write_comparison(compared, self.out)
        return compared


class FineTuning(Run):
    """A run that prunes nothing: the unpruned network, trained like the pruned ones, as the baseline."""

    method = DENSE

    def _check(self) -> None:
        if not self.recipe.epochs or self.images.spec is None:
            raise UsageError("--dense trains the unpruned network: give --data and --epochs of at least 1, or --no-dense.")

    @property
    def wishes(self) -> dict[str, Setting]:
        return {"method": DENSE}

    def _prepared(self, opened: Opened, place: RunDirectory, journal: Journal, device: torch.device) -> Method:
        """A method that changes nothing."""
        model, nothing = opened.loaded.model, Goal("macs", DENSE, share=0.0)
        seed_all(self.recipe.seed)
        teacher = guide(self.recipe, self.task, model, device)
        return Method(Job(model, opened.inputs, None, nothing, self.task, guide=teacher)).to(device)

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
    onnx: bool = True,
    force: bool = False,
) -> Comparison:
    """Prune `model` (as on the command line) with each method at each rate and seed into `out`, and compare the results.

    `settings` are those of each method, by its name; `dense` also trains the unpruned network as a baseline, by default if
    there are epochs. The seed of `recipe` is replaced. A run that fails is in `failures` of the result; an error that would
    stop every run is raised, a CompressError.
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
        onnx=onnx,
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
