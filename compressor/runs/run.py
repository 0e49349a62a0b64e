"""A whole run, from a model on disk to a verified network with a report.

    original ─method─> cut ─> recalibrated ─> repaired ─> fine-tuned ─export─> ONNX ─check─> published

Nothing is published before every check has passed: results are written to `state/new/` and moved into place together at the
end. What a command does to the model is its method; everything else is the same for all commands.
"""

from __future__ import annotations

import shlex
import sys
import tempfile
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from compressor.channels.verify import TOLERANCE
from compressor.checkpoint import Loaded
from compressor.checkpoint.plan import Plan, save_model
from compressor.errors import CompressError, DataError, OutputError, UsageError, first_line
from compressor.methods.catalogue import Entry, blaming, catalogue
from compressor.network.cost import count_macs, count_params, peak_activation_bytes
from compressor.network.inputs import Inputs
from compressor.onnx.export import Differences, Exported, export_verified
from compressor.onnx.form import WishedForm
from compressor.onnx.latency import Timing, compare_latency
from compressor.report import (
    Epoch,
    Fidelity,
    Latency,
    Profile,
    Report,
    Score,
    Target,
    Teaching,
    Verification,
    compare,
    formatting,
    read_report,
    verdict,
    write_reports,
)
from compressor.report.write import EXAMPLES
from compressor.runs import reporting
from compressor.runs.journal import Journal
from compressor.runs.recover_accuracy import recover
from compressor.runs.run_directory import RunDirectory
from compressor.runs.settings import Setting, to_toml
from compressor.runs.sources import Images, Opened, Source, device_errors, open_both, pick_device, task_of
from compressor.runs.stages import EVALUATION, Stages
from compressor.tasks import Task
from compressor.training import distributed
from compressor.training.method import Method
from compressor.training.recipe import Recipe
from compressor.training.train import Precision, Training

READING, EXPORT, RECOVERY = "reading", "export and its checks", "recovery"  # parts of a run, as its times name them
ONNX_TOLERANCE = 1e-4  # largest difference over largest output, ONNX Runtime against torch, both in float32


@dataclass(frozen=True)
class Order:
    """What every run is given: the model, its images, how to train, and where and how to run."""

    source: Source
    images: Images
    recipe: Recipe
    out: Path
    device: str = "auto"
    inputs: Inputs | None = None
    console: Console | None = None
    force: bool = False  # replace an existing run
    resume: bool = False  # continue an interrupted run
    command: str | None = None  # the command line for the report; None: that of this process
    onnx: bool = True  # whether to write model.onnx
    form: WishedForm = field(default_factory=WishedForm)  # of the ONNX files
    timing: Timing = field(default_factory=Timing)  # of latency


@dataclass(frozen=True)
class Foreseen:
    """The predicted result of a run, in MACs for one image and parameters."""

    macs: int
    macs_after: int
    params: int
    params_after: int

    def __str__(self) -> str:
        macs, params = ((self.macs, self.macs_after), (self.params, self.params_after))
        parts = [
            f"{formatting.count(before)} -> {formatting.count(after)} {what} ({formatting.change(after / before)})"
            for what, (before, after) in (("MACs", macs), ("parameters", params))
        ]
        return ", ".join(parts)


class Run(ABC):
    """Abstract. One run of one command; call `run()` once."""

    does: str | None = None  # the command, as a step of a pipeline names it
    method: str  # its name
    entry: Entry | None = None  # its entry in the catalogue, if it has one
    task: Task  # what the network is for; known once it is open
    repair: bool = False  # whether the consumers of pruned channels are re-estimated by least squares, if that helps
    rewrites: bool = False  # whether the ONNX file has another precision than the network

    def __init__(self, order: Order) -> None:
        self.order = order
        self.source, self.images, self.recipe, self.inputs = order.source, order.images, order.recipe.checked(), order.inputs
        self.out, self.device_name, self.console = order.out, order.device, order.console
        self.force, self.resume = order.force, order.resume
        self.command = order.command or shlex.join(["compress", *sys.argv[1:]])
        self.exported: dict[str, Exported] = {}  # ONNX file -> its form
        self.lost: dict[str, str] = {}  # ONNX file that could not be written -> why
        self.remarks: list[str] = []  # on the training, for the report
        self.harmed = False  # whether training lowered the score beyond its confidence interval
        self._check()
        if self.counts_bytes and not order.onnx:
            raise UsageError("A target for size is the size of the ONNX file: omit --no-onnx, or give a target for params.")

    # What commands override -------------------------------------------------------------------------------------------

    @abstractmethod
    def _check(self) -> None:
        """Raise UsageError for options that do not fit together, before anything is opened."""

    @property
    @abstractmethod
    def wishes(self) -> dict[str, Setting]:
        """The settings of this command, under the names of its options."""

    @abstractmethod
    def _prepared(self, opened: Opened, place: RunDirectory, journal: Journal, device: torch.device) -> Method:
        """The method, ready for training. It has pruned the model already if it prunes before training.

        `place.original` has been written.
        """

    def _trainer(self, method: Method, opened: Opened, stages: Stages, place: RunDirectory, journal: Journal) -> Method:
        """What trains the network that `method` made: usually `method` itself."""
        return method

    def _plan(self, opened: Opened) -> Plan:
        """How the network to compress is built, and what was done to it before."""
        return with_range(opened.loaded, opened.inputs)

    def _identity(self, opened: Opened) -> str | None:
        """The hash that identifies the networks of this run; None if they come from no file."""
        return opened.loaded.sha256

    def _teaching(self, history: list[Epoch]) -> Teaching | None:
        """The share of the training time that a teacher took."""
        return None

    @abstractmethod
    def _target(self, method: Method, small: nn.Module, baseline: Profile, compressed: Profile) -> Target:
        """The target, and what was reached."""

    def _write(
        self, small: nn.Module, method: Method, opened: Opened, stages: Stages, before: Path, after: Path
    ) -> tuple[Differences, Fidelity | None]:
        """Write the ONNX file `after` of the compressed network, check and measure it; `before` is the original's.

        Returns the differences of `check_onnx`, and the agreement with the original. Raises Infeasible or VerificationFailed.
        """
        exported = export_verified(small, opened.inputs, after, self._form, tolerance=ONNX_TOLERANCE)
        self.exported[after.name] = exported
        return exported.differences, stages.written(small, opened.loaded.model, after, self.recipe.seed)

    @property
    def counts_bytes(self) -> bool:
        """Whether the target is a size of the ONNX file, so that the original's file is needed."""
        return False

    def _stand_in(self) -> Run:
        """A run that gives a network of the same cost from the weights alone, without images or training."""
        return self

    # The run, step by step --------------------------------------------------------------------------------------------

    @property
    def settings(self) -> dict[str, Setting]:
        """All settings, under the names of the command line's options."""
        return {
            "do": self.does,
            **self.source.settings,
            **self.wishes,
            **self.images.settings,
            "input": None if self.inputs is None else [str(entry) for entry in self.inputs.each],
            "onnx": None if self.order.onnx else False,
            "dynamic": str(self.order.form) or None,
            "onnx_batch": self.order.form.batch,
            **self.order.timing.settings,
            **{name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self.recipe).items()},
            "select": None if self.recipe.select == "last" else self.recipe.select,  # as in runs before it was an option
        }

    def run(self) -> Report:
        """Run everything. Raises a CompressError; earlier published results are then unchanged.

        Of several processes the first does all this; the others train with it, and return its report.
        """
        with distributed.ending_together(), device_errors(), blaming(self.entry):
            return distributed.agreed(self._lead()) if distributed.is_first() else self._follow()

    def _lead(self) -> Report:
        place = RunDirectory(self.out, to_toml(self.settings))
        place.check(force=self.force, resume=self.resume)
        if self.resume and place.is_finished and not place.can_resume:
            return read_report(self.out)
        with place.claimed(force=self.force, resume=self.resume):
            if not place.is_unpublished:
                with Journal(self.console, place.log, place.check_held) as journal:
                    self._make(place, journal)
            place.publish()
        return read_report(self.out)

    def _follow(self) -> Report:
        """Make the same network as the first process, and train it together with it."""
        word: Any = distributed.agreed(None)  # the weights to begin with
        if isinstance(word, Report):  # there was nothing left to do
            return word
        device, silent = pick_device(distributed.local(self.device_name)), Journal()
        opened = self._begin(silent)
        opened.loaded.model.load_state_dict(word)
        self.task = self._task(opened, device)
        with self._scratch(opened) as place:
            method = self._prepared(opened, place, silent, device)
            stages = Stages(opened.inputs, opened.data, self.task, device, silent, place.stages, None)
            self._train(self._trainer(method, opened, stages, place, silent), stages, place, silent)
        return distributed.agreed(word)  # type: ignore[no-any-return]  # it is the report now

    def foresee(self, into: Path | None = None) -> Foreseen:
        """The predicted result, from the weights alone: nothing is trained or published.

        With `into`, the predicted network is written there, in the format of `load_model`. Raises a CompressError.
        """
        run, silent = self._stand_in(), Journal()
        opened = replace(run._open(silent), data=None)
        model, inputs = opened.loaded.model, opened.inputs
        device = torch.device("cpu")
        run.task = run._task(opened, device)
        with run._scratch(opened) as place:
            method = run._prepared(opened, place, silent, device)
            small = method.finish()
        if into is not None:
            save_model(into, small, run._plan(opened).then(method.made().step))
        (macs, params), (macs_after, params_after) = _cost(model, inputs), _cost(small, inputs)
        return Foreseen(macs, macs_after, params, params_after)

    @contextmanager
    def _scratch(self, opened: Opened) -> Iterator[RunDirectory]:
        """A temporary run directory."""
        with tempfile.TemporaryDirectory() as folder:
            place = RunDirectory(Path(folder), "")
            place.new.mkdir(parents=True)
            if self.counts_bytes:
                export_original(opened, place, self._form)
            yield place

    def _make(self, place: RunDirectory, journal: Journal) -> None:
        """Write all results into `place.new`, the report last."""
        began = time.perf_counter()
        device = pick_device(distributed.local(self.device_name))
        Precision(self.recipe.amp, device)  # fails now, not after minutes, if the device does not support it
        with journal.part(READING):
            opened = self._begin(journal)
            model, inputs = opened.loaded.model, opened.inputs
            self.task = self._task(opened, device)
        with self._losing("original.onnx", journal), journal.part(EXPORT):
            if self.order.onnx:
                exported = export_original(opened, place, self._form, checked=self.rewrites)
                self.exported[place.original.name] = exported
        distributed.agreed(model.state_dict())  # random weights differ between processes
        with journal.part("choosing and removing"):
            method = self._prepared(opened, place, journal, device)
        stages = Stages(inputs, opened.data, self.task, device, journal, place.stages, self._identity(opened))
        with journal.part(EVALUATION):
            stages.original(model)
        small, history = self._compress(method, opened, stages, place, journal)
        report = self._prove(opened, small, method, stages, history, place.new, journal)
        how = report.preprocessing
        plan = self._plan(opened).then(method.made().step)
        save_model(place.new, small, replace(plan, preprocessing=None if how is None else asdict(how)))
        journal.event("done", verdict=report.verdict)
        if stages.strips is not None:
            stages.strips.write(place.new / EXAMPLES)
        files = reporting.hashes(place.new)
        seconds = time.perf_counter() - began
        times = journal.times | {"rest": seconds - sum(journal.times.values())}
        write_reports(replace(report, files=files, seconds=seconds, times=times), place.new)

    def _compress(
        self, method: Method, opened: Opened, stages: Stages, place: RunDirectory, journal: Journal
    ) -> tuple[nn.Module, list[Epoch]]:
        """The compressed network, on the CPU, and its epochs of training. Methods prune before they train, or after."""
        changed_first = method.made().difference is not None
        if changed_first:
            with journal.part(RECOVERY):
                recover(method, stages, journal, self.recipe.seed, trained=False, repair=self.repair)
        trainer = self._trainer(method, opened, stages, place, journal)
        history = self._train(trainer, stages, place, journal, cut=changed_first)
        if history:
            stages.add("fine-tuned" if changed_first else "trained", trainer.model)
        small = trainer.finish()
        if not changed_first and method.made().difference is not None:
            with journal.part(RECOVERY):
                recover(method, stages, journal, self.recipe.seed, trained=True, repair=False)
        return small.cpu().float().eval().to(memory_format=torch.contiguous_format), history

    def _train(
        self, method: Method, stages: Stages, place: RunDirectory, journal: Journal, *, cut: bool = False
    ) -> list[Epoch]:
        """`cut`: the network that is trained is pruned or factored already, so that training should raise its score."""
        if not self.recipe.epochs or stages.data is None:
            return []
        if distributed.count() > 1:
            journal.say(f"{distributed.count()} processes train together, each on its part of every batch")
        training = Training(method, stages.data, self.recipe, stages.device, place.training)
        if self.resume and training.resume():
            journal.say(f"resumed after epoch {len(training.history)} of {self.recipe.epochs}")
            journal.event("resumed", epoch=len(training.history))
        with journal.part("training"):
            history = training.run(journal)
        if training.chosen < len(history):
            self.remarks.append(f"the weights after epoch {training.chosen} of {len(history)} were kept (--select best)")
        if len(history) < self.recipe.epochs:
            self.remarks.append(f"training ended after epoch {len(history)} of {self.recipe.epochs} (--patience)")
        if cut and training.start is not None and training.chosen and (last := history[training.chosen - 1].held_out):
            self._judge(training.start, last)
        for remark in self.remarks:
            journal.say(remark)
        return history

    def _judge(self, before: Score, after: Score) -> None:
        """Say so if training lowered the score on the held-out images."""
        if before.sign * (after.value - before.value) >= 0:
            return
        change = f"{before.label} {formatting.score(before)} -> {formatting.score(after)} of {before.n:,} held-out images"
        self.remarks.append(f"training made the network worse: {change} (lower --lr, or use --select best or --epochs 0)")
        if not (before.low is not None and before.high is not None and before.low <= after.value <= before.high):
            self.harmed = True

    @contextmanager
    def _losing(self, file: str, journal: Journal) -> Iterator[None]:
        """Remember why an ONNX file could not be written, instead of raising: the network itself was verified without it.

        Still raised is what has nothing to do with the network, and everything where the ONNX file is the result.
        """
        try:
            yield
        except (OutputError, DataError):
            raise
        except Exception as error:
            if self.counts_bytes or self.rewrites:
                raise
            expected = isinstance(error, CompressError)
            self.lost[file] = " ".join(str(error).split()) if expected else f"internal error: {first_line(error)}"
            journal.event("no ONNX file", file=file, reason=self.lost[file], traceback=traceback.format_exc())
            journal.say(f"{file} was not written: {self.lost[file]}")

    def _prove(
        self,
        opened: Opened,
        small: nn.Module,
        method: Method,
        stages: Stages,
        history: list[Epoch],
        new: Path,
        journal: Journal,
    ) -> Report:
        """Export the compressed network to ONNX, check it, measure it, and report. Raises VerificationFailed."""
        inputs, model = opened.inputs, opened.loaded.model
        before, after, measured = new / "original.onnx", new / "model.onnx", len(stages.rows)
        as_costly = _cost(small, inputs) == _cost(model, inputs)
        same = method.made().difference is None and as_costly and not self.rewrites  # the same operators take the same time
        times: dict[Path, list[Latency]] = {}
        untimed: list[str] = []
        differences, fidelity = Differences({}, ONNX_TOLERANCE), None
        with self._losing(after.name, journal):
            if self.order.onnx:
                with journal.part(EXPORT):
                    differences, fidelity = self._write(small, method, opened, stages, before, after)
                    reporting.described(opened, after)
                if not same:
                    files = [file for file in (before, after) if file.exists()]
                    image_bytes = peak_activation_bytes(model, inputs)
                    with journal.part("latency"):
                        found = compare_latency(files, inputs, self.order.timing, image_bytes=image_bytes)
                    times = dict(zip(files, found, strict=True))
                    untimed = self.order.timing.left_out(found[0], image_bytes)
        if not self.order.onnx or after.name in self.lost:
            after.unlink(missing_ok=True)
            del stages.rows[measured:]
            differences, times, untimed = Differences({}, ONNX_TOLERANCE), {}, []
            fidelity = stages.written(small, model, None, self.recipe.seed, "PyTorch")
        made, how = method.made(), reporting.preprocessing(opened.data, opened.loaded.plan)
        baseline = reporting.profile(model, inputs, before, stages.rows[0].scores, times.get(before, []))
        compressed = reporting.profile(small, inputs, after, stages.rows[-1].scores, times.get(after, []))
        reporting.check_cost(compressed, made.planned)
        verification = Verification(made.difference, TOLERANCE, dict(differences), differences.tolerance)
        target = self._target(method, small, baseline, compressed)
        change = compare(baseline, compressed, stages.differences)
        return Report(
            name=self.out.resolve().name,
            verdict=verdict(baseline, compressed, verification, change.scores) + ", training lowered the score" * self.harmed,
            model=self.source.model,
            arch=opened.loaded.arch,
            data=self.images.spec,
            input_shape=list(inputs.each[0].shape),
            method=self.method,
            settings={name: _in_one(value) for name, value in self.settings.items()},
            seed=self.recipe.seed,
            target=target,
            baseline=baseline,
            compressed=compressed,
            change=change,
            stages=stages.rows,
            epochs=history,
            layers=reporting.layers(method.job.model, small, inputs, made),
            frozen=reporting.frozen(made),
            fidelity=fidelity,
            verification=verification,
            warnings=[
                *opened.notes,
                *_told(self.lost),
                *self._narrower,
                *self.remarks,
                *untimed,
                *reporting.noisy(baseline, compressed),
                *reporting.warnings(made, target, change),
            ],
            versions=reporting.versions(),
            device=reporting.device_name(stages.device),
            command=self.command,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=0.0,
            inputs=inputs.shapes,
            teaching=self._teaching(history),
            preprocessing=how,
            task=self.task.name,
            output=self.exported[after.name].form.output if after.name in self.exported else self.task.output,
            onnx_failure=self.lost.get(after.name),
        )

    @property
    def _narrower(self) -> list[str]:
        """What the ONNX file does not allow."""
        return self.exported["model.onnx"].notes if "model.onnx" in self.exported else []

    def _begin(self, journal: Journal) -> Opened:
        """The model and its images, checked to fit."""
        opened = self._open(journal)
        model = opened.loaded.model
        count_macs(model, opened.inputs)  # a one-line error if the model does not run on such images
        model.requires_grad_(True)
        return opened

    @property
    def _form(self) -> WishedForm:
        """What is asked of the form of ONNX files."""
        return replace(self.order.form, output=self.task.output)

    def _task(self, opened: Opened, device: torch.device) -> Task:
        """What the network is for. Raises UsageError or DataError when it, the data, the task and the method do not fit."""
        task = task_of(opened, self.images, device)
        check_fits(self.entry, task)
        chooses = self.recipe.select == "best" or self.recipe.patience is not None
        if chooses and self.entry is not None and self.entry.trains and self.entry.family != "distill":
            raise UsageError(
                f"--method {self.entry.name} prunes while it trains, so that only its last epoch has the asked size: "
                "omit --select best and --patience."
            )
        return task.trained_with(self.recipe.label_smoothing)

    def _open(self, journal: Journal) -> Opened:
        opened = open_both(self.source, self.images, self.inputs, self.recipe.seed)
        shapes = opened.inputs.shapes
        journal.event("opened", arch=opened.loaded.arch, inputs=shapes, notes=opened.notes)
        journal.say(f"{self.source.model}: {opened.loaded.arch}, {formatting.inputs(shapes)}")
        if opened.data is not None:
            parts = ", ".join(f"{n:,} {part.replace('_', '-')}" for part, n in opened.data.counts.items())
            journal.say(f"{opened.data.spec}: {parts} images")
        for note in opened.notes:
            journal.say(f"  {note}")
        return opened


def with_range(loaded: Loaded, inputs: Inputs) -> Plan:
    """The plan of a network, with the range of the values of its inputs."""
    plan = loaded.plan or Plan(loaded.arch, loaded.arch_args, inputs)
    own = inputs if plan.inputs is None else Inputs.of(plan.inputs)
    return replace(plan, inputs=replace(own, range=inputs.range, images=None))


def check_needs(entry: Entry, epochs: int, spec: str | None, instead: str | None = None) -> None:
    """Raise UsageError when a method lacks the images or epochs that it needs. `instead` names a method that needs none."""
    if entry.trains and (epochs == 0 or spec is None):
        other = f", or use --method {instead}, which needs neither" if instead else ""
        raise UsageError(f"--method {entry.name} needs training: give --data and --epochs of at least 1{other}.")
    if entry.looks and spec is None:
        other = f", or use --method {instead}, which needs none" if instead else ""
        raise UsageError(f"--method {entry.name} needs training images: give --data{other}.")
    if entry.alone and epochs and (found := distributed.count()) > 1:
        raise UsageError(f"--method {entry.name} supports only one process, but {found} were started: run it without torchrun.")
    if epochs and spec is None:
        raise UsageError(f"--epochs {epochs} needs images to train on: give --data, or --epochs 0.")


def check_fits(entry: Entry | None, task: Task) -> None:
    """Raise UsageError when the method is not for the task."""
    if entry is None:
        return
    if entry.tasks and task.name not in entry.tasks:
        family = [one for one in catalogue().values() if one.family == entry.family]
        others = [one.name for one in family if not one.tasks or task.name in one.tasks]
        raise UsageError(
            f"--method {entry.name} is for the task {' or '.join(entry.tasks)}, not for {task.name}: use {' or '.join(others)}."
        )
    if entry.labelled and not task.labels:
        raise UsageError(
            f"--method {entry.name} needs targets, and the task {task.name} has none: use another --method, or labelled data."
        )


def export_original(opened: Opened, place: RunDirectory, wish: WishedForm, *, checked: bool = False) -> Exported:
    """Write `place.original`, with the metadata of the compressed network's file, so that their sizes are comparable."""
    model, inputs = opened.loaded.model, opened.inputs
    exported = export_verified(model, inputs, place.original, wish, checked=checked, tolerance=ONNX_TOLERANCE)
    reporting.described(opened, place.original)
    return exported


def _told(lost: Mapping[str, str]) -> list[str]:
    """Warnings on the ONNX files that could not be written."""
    meaning = {"original.onnx": "the original's size and latency were not measured", "model.onnx": "there is no ONNX file"}
    return [f"{meaning[file]}: {reason}" for file, reason in lost.items()]


def _cost(model: nn.Module, inputs: Inputs) -> tuple[int, int]:
    return count_macs(model, inputs), count_params(model)


def _in_one(setting: Setting) -> str | float | int | bool | None:
    """A setting as in a report: a list becomes one string."""
    return ", ".join(map(str, setting)) if isinstance(setting, list) else setting
