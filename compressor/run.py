"""A whole run, from a model as it lies on the disk to a verified small network with a report.

    original ─analyse─> channels ─method─> cut ─> recalibrated ─> repaired ─> fine-tuned ─export─> ONNX ─check─> published

Nothing is published before every check has passed: results are made in `state/new/` and put in place together at the end.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

from compressor import budget, catalogue, measure, outcome
from compressor.budget import Curve, Goal
from compressor.catalogue import Value
from compressor.channels import Channels, Cut, Heads, Residual, Verified, analyse
from compressor.channels.verify import TOLERANCE
from compressor.checkpoint.plan import Plan, save_model
from compressor.config import Setting, to_toml
from compressor.data import Data
from compressor.directory import RunDirectory
from compressor.errors import Infeasible, UsageError
from compressor.export import check_onnx, export_onnx
from compressor.filters import FilterPruning
from compressor.inputs import AnyInputs, Inputs
from compressor.journal import Journal
from compressor.method import Job, Method
from compressor.recipe import Recipe
from compressor.recover import recover
from compressor.report import Epoch, Report, Verification, compare, figures, read_report, verdict, write_reports
from compressor.sensitivity import read_curves
from compressor.sources import Images, Opened, Source, check_answers, open_both, pick_device
from compressor.stages import Stages
from compressor.train import Precision, Training, classify, seed_all

ONNX_TOLERANCE = 1e-4  # largest difference over largest output, ONNX Runtime against torch, both in float32
CHECKED_IMAGES = 16  # test images on which the ONNX file is compared with the network, beside random ones


@dataclass(frozen=True)
class Wish:
    """What to cut, and with which method."""

    goal: Goal
    method: str = "magnitude"
    settings: Mapping[str, Value] = field(default_factory=dict)
    residual: Residual = "coupled"
    heads: Heads = "width"
    keep: tuple[str, ...] = ()
    round_to: int | None = None
    most: float = 0.95
    sensitivity: Path | None = None
    repair: bool = True  # refit what reads cut channels, where that helps

    def __post_init__(self) -> None:
        if not 0 < self.most < 1:
            raise UsageError(
                f"--most is the largest share of a group that may go, between 0 and 1, both excluded; found {self.most:g}."
            )
        if self.round_to is not None and self.round_to < 1:
            raise UsageError(f"--round-to must be 1 or more; found {self.round_to}.")
        if self.sensitivity is not None and self.residual == "scatter":
            raise UsageError("--sensitivity is measured on coupled groups, and --residual scatter cuts others: leave one away.")
        if self.sensitivity is not None and self.heads == "whole":
            raise UsageError("--sensitivity is measured with --heads width: leave one of the two away.")
        if self.sensitivity is not None and self.goal.quantity == "filters":
            raise UsageError(f"--target {self.goal.text} cuts every layer alike, whatever --sensitivity says: leave one away.")


class Pruning:
    """One pruning run. `run()` goes through it once."""

    def __init__(
        self,
        source: Source,
        wish: Wish,
        images: Images,
        recipe: Recipe,
        *,
        out: Path,
        device: str = "auto",
        inputs: Inputs | None = None,
        console: Console | None = None,
        force: bool = False,
        resume: bool = False,
        command: str | None = None,
    ) -> None:
        self.source, self.wish, self.images, self.recipe = source, wish, images, recipe.checked()
        self.out, self.force, self.resume, self.console = out, force, resume, console
        self.device_name, self.inputs = device, inputs
        self.command = command or shlex.join(["compress", *sys.argv[1:]])
        self.entry = catalogue.find(wish.method, "prune")
        self._check_goal()
        self._check_training()

    def _check_goal(self) -> None:
        if self.entry.weights and self.wish.goal.quantity != "weights":
            raise UsageError(f"--method {self.wish.method} sets single weights to zero: say how many by --target weights=70%.")
        if self.wish.goal.quantity == "weights" and not self.entry.weights:
            raise UsageError(f"--target {self.wish.goal.text} asks for zeros among the weights, which --method srwp makes.")

    def _check_training(self) -> None:
        epochs, spec = self.recipe.epochs, self.images.spec
        if self.entry.trains and (epochs == 0 or spec is None):
            raise UsageError(
                f"--method {self.wish.method} prunes while it trains: give it --data and at least one of --epochs, "
                "or take --method magnitude, which needs neither."
            )
        if self.entry.looks and spec is None:
            raise UsageError(
                f"--method {self.wish.method} scores channels on training images: give it --data, "
                "or take --method magnitude, which needs none."
            )
        if epochs and spec is None:
            raise UsageError(f"--epochs {epochs} needs images to train on: give --data, or --epochs 0.")

    @property
    def settings(self) -> dict[str, Setting]:
        """Everything that was decided, under the names of the command line's options."""
        wish = self.wish
        is_rate = wish.goal.text.startswith("--rate")
        return {
            **self.source.settings,
            "rate": wish.goal.share if is_rate else None,
            "target": None if is_rate else wish.goal.text,
            "method": wish.method,
            "set": [f"{name}={value}" for name, value in self._method_settings().items()] or None,
            "residual": wish.residual,
            "heads": wish.heads,
            "keep": list(wish.keep) or None,
            "round_to": wish.round_to,
            "most": wish.most,
            "sensitivity": None if wish.sensitivity is None else str(wish.sensitivity),
            "repair": wish.repair,
            **self.images.settings,
            "input": None if self.inputs is None else [str(entry) for entry in self.inputs.each],
            **{name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self.recipe).items()},
        }

    def _method_settings(self) -> dict[str, Value]:
        return {**{setting.name: setting.default for setting in self.entry.settings}, **self.wish.settings}

    def run(self) -> Report:
        """Do it all. Raises a CompressError; what was published before stays as it was."""
        place = RunDirectory(self.out, to_toml(self.settings))
        place.check(force=self.force, resume=self.resume)
        if self.resume and place.is_finished and not place.can_resume:
            return read_report(self.out)
        with place.claimed(force=self.force, resume=self.resume), _memory_in_plain_words():
            if not place.is_unpublished:
                with Journal(self.console, place.log) as journal:
                    self._make(place, journal)
            place.publish()
        return read_report(self.out)

    # The run, step by step --------------------------------------------------------------------------------------------

    def _make(self, place: RunDirectory, journal: Journal) -> None:
        """Write all results into `place.new`, the report last."""
        began = time.perf_counter()
        device = pick_device(self.device_name)
        Precision(self.recipe.amp, device)  # tells at once, and not after minutes, that the device cannot compute so
        opened = self._open(journal)
        model, inputs = opened.loaded.model, opened.inputs
        channels = budget.hold(analyse(model, inputs, self.wish.residual, self.wish.heads), list(self.wish.keep))
        check_answers(model, opened.data)
        export_onnx(model, inputs, place.new / "original.onnx")
        method = self._method(opened, channels, self._curves(channels, journal), place.new / "original.onnx", device)
        stages = Stages(inputs, opened.data, device, journal, place.stages, opened.loaded.sha256)
        stages.original(model)
        small, history = self._compress(method, stages, place, journal)
        removed = method.removed if isinstance(method, FilterPruning) else None
        removed = removed or Verified(small, Cut(), channels, channels.all_kept(), None)
        report = self._prove(opened, small, removed, stages, history, place.new)
        plan = opened.loaded.plan or Plan(opened.loaded.arch, opened.loaded.arch_args, inputs)
        save_model(place.new, small, plan.then(removed.cut))
        journal.event("done", verdict=report.verdict)
        write_reports(replace(report, seconds=time.perf_counter() - began), place.new)

    def _compress(self, method: Method, stages: Stages, place: RunDirectory, journal: Journal) -> tuple[nn.Module, list[Epoch]]:
        """The small network, on the CPU, and its epochs of training. Methods cut before they train, or after."""
        cuts = method if isinstance(method, FilterPruning) else None
        cut_first = cuts is not None and cuts.removed is not None
        if cuts is not None and cut_first:
            recover(cuts, stages, journal, self.recipe.seed, self.wish.repair)
        history = self._train(method, stages, place, journal)
        if history:
            stages.add("fine-tuned" if cut_first else "trained", method.model)
        small = method.finish()
        if cuts is not None and not cut_first:  # what it was trained to be is not what the original was
            recover(cuts, stages, journal, self.recipe.seed, repair=False)
        return small.cpu().float().eval().to(memory_format=torch.contiguous_format), history

    def _prove(
        self, opened: Opened, small: nn.Module, removed: Verified, stages: Stages, history: list[Epoch], new: Path
    ) -> Report:
        """Write the small network as ONNX, check it, measure it, and report. Raises VerificationFailed."""
        wish, inputs, model = self.wish, opened.inputs, opened.loaded.model
        before, after = new / "original.onnx", new / "model.onnx"
        export_onnx(small, inputs, after)
        differences = check_onnx(small, after, inputs, images=_some_images(opened.data), tolerance=ONNX_TOLERANCE)
        fidelity = stages.written(small, before, after, self.recipe.seed)
        times = measure.compare_latency([before, after], inputs, seconds=2.0)
        baseline = outcome.profile(model, inputs, before, stages.rows[0].accuracy, times[0])
        compressed = outcome.profile(small, inputs, after, stages.rows[-1].accuracy, times[1])
        outcome.check_cost(compressed, removed.channels, removed.mask)
        verification = Verification(removed.difference, TOLERANCE, differences, ONNX_TOLERANCE)
        target = outcome.target(wish.goal, removed.channels, removed.mask, small, baseline, compressed, wish.round_to)
        change = compare(baseline, compressed)
        return Report(
            name=self.out.resolve().name,
            verdict=verdict(baseline, compressed, verification),
            model=self.source.model,
            arch=opened.loaded.arch,
            data=self.images.spec,
            input_shape=list(inputs.each[0].shape),
            method=wish.method,
            settings={name: _in_one(value) for name, value in self.settings.items()},
            seed=self.recipe.seed,
            target=target,
            baseline=baseline,
            compressed=compressed,
            change=change,
            stages=stages.rows,
            epochs=history,
            layers=outcome.layers(model, small, removed.channels, removed.mask),
            frozen=removed.channels.frozen(),
            fidelity=fidelity,
            verification=verification,
            warnings=[*opened.notes, *outcome.warnings(removed.channels, target, change)],
            versions=outcome.versions(),
            device=outcome.device_name(stages.device),
            command=self.command,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=0.0,
            inputs=inputs.shapes,
        )

    def _open(self, journal: Journal) -> Opened:
        opened = open_both(self.source, self.images, self.inputs, self.recipe.seed)
        shapes = opened.inputs.shapes
        journal.event("opened", arch=opened.loaded.arch, inputs=shapes, notes=opened.notes)
        journal.say(f"{self.source.model}: {opened.loaded.arch}, {figures.inputs(shapes)}")
        if opened.data is not None:
            parts = ", ".join(f"{n:,} {part.replace('_', '-')}" for part, n in opened.data.counts.items())
            journal.say(f"{opened.data.spec}: {parts} images")
        for note in opened.notes:
            journal.say(f"  {note}")
        return opened

    def _curves(self, channels: Channels, journal: Journal) -> Mapping[str, Curve] | None:
        """What each group loses, where it was measured. Raises UsageError."""
        if self.wish.sensitivity is None:
            return None
        curves = read_curves(self.wish.sensitivity, channels)
        journal.say(f"sensitivity of {len(curves)} of {len(channels.groups)} groups from {self.wish.sensitivity}")
        return curves

    def _method(
        self, opened: Opened, channels: Channels, curves: Mapping[str, Curve] | None, onnx: Path, device: torch.device
    ) -> Method:
        """The method, prepared: one-shot methods have cut by now. Raises Infeasible when the wish cannot be met."""
        model = opened.loaded.model
        overhead = onnx.stat().st_size - measure.weight_bytes(model) if self.wish.goal.quantity == "size" else 0
        _check_wish(self.wish.goal, channels, overhead)
        task = classify(self.recipe, model, device)
        job = Job(
            model,
            opened.inputs,
            channels,
            self.wish.goal,
            task,
            self.wish.round_to,
            self.wish.most,
            overhead,
            curves,
            opened.data,
        )
        seed_all(self.recipe.seed)
        method = catalogue.create(self.entry, job, self.wish.settings).to(device)
        method.prepare()
        return method

    def _train(self, method: Method, stages: Stages, place: RunDirectory, journal: Journal) -> list[Epoch]:
        if not self.recipe.epochs or stages.data is None:
            return []
        method.model.requires_grad_(True)
        training = Training(method, stages.data, self.recipe, stages.device, place.training)
        if self.resume and training.resume():
            journal.say(f"resumed after epoch {len(training.history)} of {self.recipe.epochs}")
            journal.event("resumed", epoch=len(training.history))
        return training.run(journal)


def _check_wish(goal: Goal, channels: Channels, overhead: float) -> None:
    """Raise Infeasible when nothing can be cut, or nothing needs to be."""
    if not channels.atoms and goal.quantity != "weights":
        raise Infeasible("Nothing can be cut from this model: see `compress inspect` for what is frozen, and why.")
    if goal.limit is None:
        return
    size = budget.cost_of(channels, goal.quantity).total(channels.all_kept()) + overhead
    if size <= goal.limit:
        unit = {"macs": " MACs", "params": " parameters", "size": "B"}[goal.quantity]
        raise Infeasible(f"{goal.text} is met by the model as it is, with {figures.count(round(size))}{unit}: ask for less.")


def _some_images(data: Data | None) -> Tensor | None:
    """Test images [n, channels, height, width] on the CPU."""
    if data is None:
        return None
    return next(iter(data.batches("test", batch_size=CHECKED_IMAGES, device="cpu", limit=CHECKED_IMAGES))).images


def _in_one(setting: Setting) -> str | float | int | bool | None:
    """A setting as a report holds it: a list becomes one text."""
    return ", ".join(map(str, setting)) if isinstance(setting, list) else setting


@contextmanager
def _memory_in_plain_words() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UsageError(
            f"The GPU's memory is full ({str(error).splitlines()[0][:120]}).\n"
            "Lower --batch-size (--accumulate makes up for it), or use --device cpu."
        ) from error


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
    sensitivity: str | Path | None = None,
    repair: bool = True,
    recipe: Recipe | None = None,
    inputs: AnyInputs | None = None,
    force: bool = False,
) -> Report:
    """Prune `model` (a checkpoint, `torchvision:NAME`, ... as on the command line) into the directory `out`.

    One of `rate` (share of MACs to remove) and `target` (such as "params<=5M") says how much. `inputs` is what --input says:
    the shape of one sample, several shapes, or name -> shape. `sensitivity` is the table of `measure_sensitivity`. Returns the
    report; raises a CompressError.
    """
    if (rate is None) == (target is None):
        raise UsageError("give either rate or target.")
    goal = budget.parse_rate(rate) if rate is not None else budget.parse_target(str(target))
    return Pruning(
        Source(model, arch, arch_args or {}),
        Wish(
            goal,
            method,
            settings or {},
            residual,
            heads,
            sensitivity=None if sensitivity is None else Path(sensitivity),
            repair=repair,
        ),
        Images(data),
        recipe or Recipe(),
        out=Path(out),
        inputs=None if inputs is None else Inputs.of(inputs),
        force=force,
        command="compressor.prune(...)",
    ).run()
