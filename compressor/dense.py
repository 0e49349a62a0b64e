"""The uncut network, trained as the pruned ones are: what the epochs alone give, and the mark that pruning is held against.

It is a run like any other, with a directory, stages and a report; only nothing is cut.
"""

from __future__ import annotations

import shlex
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from compressor import outcome
from compressor.budget import Goal
from compressor.channels import analyse
from compressor.channels.verify import TOLERANCE
from compressor.checkpoint.plan import Plan, save_model
from compressor.config import Setting, to_toml
from compressor.directory import RunDirectory
from compressor.errors import UsageError
from compressor.export import check_onnx, export_onnx
from compressor.inputs import Inputs
from compressor.journal import Journal
from compressor.method import Job, Method
from compressor.recipe import Recipe
from compressor.report import Epoch, Report, Target, Verification, compare, read_report, verdict, write_reports
from compressor.run import ONNX_TOLERANCE
from compressor.sources import Images, Opened, Source, check_answers, open_both, pick_device
from compressor.stages import Stages
from compressor.train import Training, classify, seed_all

NAME = "dense"  # what it is called where methods are


class FineTuning:
    """One such run. `run()` goes through it once."""

    def __init__(
        self,
        source: Source,
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
        self.source, self.images, self.recipe, self.inputs = source, images, recipe.checked(), inputs
        self.out, self.device_name, self.console = out, device, console
        self.command = command or shlex.join(["compress", *sys.argv[1:]])
        self.force, self.resume = force, resume
        if not recipe.epochs or images.spec is None:
            raise UsageError("--dense trains the uncut network: give --data and at least one of --epochs, or --no-dense.")

    @property
    def settings(self) -> dict[str, Setting]:
        """What its figures depend on, under the names of the command line's options."""
        return {
            **self.source.settings,
            "method": NAME,
            **self.images.settings,
            "input": None if self.inputs is None else [str(entry) for entry in self.inputs.each],
            **{name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self.recipe).items()},
        }

    def run(self) -> Report:
        """Train, export, check, measure. Raises a CompressError; what was published before stays as it was."""
        place = RunDirectory(self.out, to_toml(self.settings))
        place.check(force=self.force, resume=self.resume)
        if self.resume and place.is_finished and not place.can_resume:
            return read_report(self.out)
        with place.claimed(force=self.force, resume=self.resume):
            if not place.is_unpublished:
                with Journal(self.console, place.log) as journal:
                    self._make(place, journal)
            place.publish()
        return read_report(self.out)

    def _make(self, place: RunDirectory, journal: Journal) -> None:
        began = time.perf_counter()
        device = pick_device(self.device_name)
        opened = open_both(self.source, self.images, self.inputs, self.recipe.seed)
        assert opened.data is not None, "__init__ asks for them"
        check_answers(opened.loaded.model, opened.data)
        method = self._method(opened, device)
        stages = Stages(opened.inputs, opened.data, device, journal, place.stages, opened.loaded.sha256)
        stages.original(opened.loaded.model)
        training = Training(method, opened.data, self.recipe, device, place.training)
        if self.resume and training.resume():
            journal.say(f"resumed after epoch {len(training.history)} of {self.recipe.epochs}")
        history = training.run(journal)
        stages.add("fine-tuned", method.model)
        model = method.finish().cpu().float().eval()
        report = self._report(opened, model, stages, history, place.new, began)
        save_model(place.new, model, opened.loaded.plan or Plan(opened.loaded.arch, opened.loaded.arch_args, opened.inputs))
        write_reports(report, place.new)

    def _method(self, opened: Opened, device: torch.device) -> Method:
        """A method that changes nothing."""
        model, nothing = opened.loaded.model, Goal("macs", NAME, share=0.0)
        task = classify(self.recipe, model, device)
        seed_all(self.recipe.seed)
        method = Method(Job(model, opened.inputs, analyse(model, opened.inputs), nothing, task)).to(device)
        method.model.requires_grad_(True)
        return method

    def _report(
        self, opened: Opened, model: nn.Module, stages: Stages, history: list[Epoch], new: Path, began: float
    ) -> Report:
        """Write the network as ONNX, check and measure it. Raises VerificationFailed."""
        inputs, before, after = opened.inputs, new / "original.onnx", new / "model.onnx"
        export_onnx(opened.loaded.model.cpu(), inputs, before)
        export_onnx(model, inputs, after)
        verification = Verification(None, TOLERANCE, check_onnx(model, after, inputs), ONNX_TOLERANCE)
        fidelity = stages.written(model, before, after, self.recipe.seed)
        # Of the same operators as the original, so there is no latency to compare.
        baseline = outcome.profile(opened.loaded.model, inputs, before, stages.rows[0].accuracy, [])
        trained = outcome.profile(model, inputs, after, stages.rows[-1].accuracy, [])
        return Report(
            name=self.out.resolve().name,
            verdict=verdict(baseline, trained, verification),
            model=self.source.model,
            arch=opened.loaded.arch,
            data=self.images.spec,
            input_shape=list(inputs.each[0].shape),
            method=NAME,
            settings={name: _in_one(value) for name, value in self.settings.items()},
            seed=self.recipe.seed,
            target=Target("macs", 0.0, 0.0, NAME, "nothing was to be cut"),
            baseline=baseline,
            compressed=trained,
            change=compare(baseline, trained),
            stages=stages.rows,
            epochs=history,
            layers=[],
            frozen=[],
            fidelity=fidelity,
            verification=verification,
            warnings=opened.notes,
            versions=outcome.versions(),
            device=outcome.device_name(stages.device),
            command=self.command,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=time.perf_counter() - began,
            inputs=inputs.shapes,
        )


def _in_one(setting: Setting) -> str | float | int | bool | None:
    """A setting as a report holds it: a list becomes one text."""
    return ", ".join(map(str, setting)) if isinstance(setting, list) else setting
