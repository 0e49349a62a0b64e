"""A whole run, from a model as it lies on the disk to a verified small network with a report.

    original ──analyse──> channels ──method──> cut ──> recalibrated ──> fine-tuned ──export──> ONNX ──check──> published

Nothing is published before every check has passed: results are made in `state/new/` and put in place together at the end.
"""

from __future__ import annotations

import copy
import json
import platform
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from compressor import __version__, budget, catalogue, measure
from compressor.budget import Goal
from compressor.catalogue import Value
from compressor.channels import Channels, Mask, Residual, Verified, analyse
from compressor.channels.verify import TOLERANCE
from compressor.checkpoint.plan import Plan, save_model
from compressor.data import check_classes
from compressor.errors import OutputError, UsageError, VerificationFailed
from compressor.export import check_onnx, export_onnx
from compressor.files import write_text
from compressor.filters import FilterPruning
from compressor.journal import Journal
from compressor.method import Batch, Job
from compressor.recalibrate import recalibrate
from compressor.report import (
    Accuracy,
    Fidelity,
    Layer,
    Profile,
    Report,
    Stage,
    Target,
    Verification,
    compare,
    read_report,
    verdict,
    write_reports,
)
from compressor.report.summary import FASTER
from compressor.sources import Images, Source, pick_device, settle_input
from compressor.task import Classify, logits_of
from compressor.train import Recipe, Training, seed_all

ONNX_TOLERANCE = 1e-4  # largest difference over largest output, ONNX Runtime against torch, both in float32
RECALIBRATION_IMAGES = 2048
EVALUATION_BATCH = 250
RESULTS = ("model.onnx", "model.safetensors", "plan.json", "report.json", "report.md", "report.html")


@dataclass(frozen=True)
class Wish:
    """What to cut, and with which method."""

    goal: Goal
    method: str = "magnitude"
    settings: Mapping[str, Value] = field(default_factory=dict)
    residual: Residual = "coupled"
    keep: tuple[str, ...] = ()
    round_to: int | None = None
    most: float = 0.95


def claim(out: Path, config: str, *, force: bool, resume: bool) -> Path:
    """The directory of a run, checked and prepared; its working directory is `state/`. Raises OutputError or UsageError."""
    state, record = out / "state", out / "config.toml"
    try:
        if out.exists() and not out.is_dir():
            raise OutputError(f"--out {out} is a file: give a directory.")
        finished = (out / "report.json").exists()
        begun = record.exists()
        if resume:
            if begun and record.read_text(encoding="utf-8") != config:
                raise UsageError(f"--resume: {out} was begun with other settings:\n{_first_change(record, config)}")
        elif not force and out.is_dir() and any(out.iterdir()):
            what = "a finished run" if finished else "an unfinished run" if begun else "other files"
            advice = "--resume goes on with it, --force starts it anew" if begun and not finished else "--force replaces it"
            raise OutputError(f"{out} exists and holds {what}: {advice}, --out DIR goes elsewhere.")
        if not resume and (state / "training.pt").exists():
            (state / "training.pt").unlink()
        state.mkdir(parents=True, exist_ok=True)
        if not resume:
            (out / "log.jsonl").write_text("", encoding="utf-8")
        write_text(record, config)
    except OSError as error:
        raise OutputError(f"{out} cannot be used: {error.strerror}. Give another directory with --out.") from error
    return state


def _first_change(record: Path, config: str) -> str:
    before, now = record.read_text(encoding="utf-8").splitlines(), config.splitlines()
    changed = next((pair for pair in zip(before, now, strict=False) if pair[0] != pair[1]), ("", ""))
    return f"then {changed[0]!r}, now {changed[1]!r}. Use the same settings, or --force to start anew."


def _toml(settings: Mapping[str, object]) -> str:
    """One `key = value` line a setting."""
    lines = []
    for key, value in settings.items():
        if value is None:
            continue
        value = dict(value) if isinstance(value, Mapping) else value
        if isinstance(value, dict):
            inside = ", ".join(f"{name} = {json.dumps(item)}" for name, item in value.items())
            lines.append(f"{key} = {{ {inside} }}")
        else:
            lines.append(f"{key} = {json.dumps(list(value) if isinstance(value, tuple) else value)}")
    return "\n".join(lines) + "\n"


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
        input_shape: tuple[int, int, int] | None = None,
        console: Console | None = None,
        force: bool = False,
        resume: bool = False,
        command: str | None = None,
    ) -> None:
        self.source, self.wish, self.images, self.recipe = source, wish, images, recipe.checked()
        self.out, self.force, self.resume, self.console = out, force, resume, console
        self.device_name, self.asked_shape = device, input_shape
        self.command = command or shlex.join(["compress", *sys.argv[1:]])
        self.entry = catalogue.find(wish.method, "prune")
        self.stages: list[Stage] = []
        self.warnings: list[str] = []
        self.settings: dict[str, Any] = {
            "model": source.model,
            "arch": source.arch,
            "arch_args": dict(source.arch_args) or None,
            "key": source.key,
            "method": wish.method,
            "set": dict(wish.settings) or None,
            "goal": wish.goal.text,
            "residual": wish.residual,
            "keep": list(wish.keep) or None,
            "round_to": wish.round_to,
            "most": wish.most,
            "data": images.spec,
            "size": images.size,
            "mean": images.mean,
            "std": images.std,
            "input": input_shape,
            **asdict(recipe),
        }

    def run(self) -> Report:
        """Do it all. Raises a CompressError; what was published before stays as it was."""
        if self.entry.trains and (self.recipe.epochs == 0 or self.images.spec is None):
            raise UsageError(
                f"--method {self.wish.method} prunes while it trains: give it --data and at least one of --epochs, "
                "or take --method magnitude, which needs neither."
            )
        if self.recipe.epochs and self.images.spec is None:
            raise UsageError(f"--epochs {self.recipe.epochs} needs images to train on: give --data, or --epochs 0.")
        if self.resume and (self.out / "report.json").exists():
            return read_report(self.out)
        state = claim(self.out, _toml(self.settings), force=self.force, resume=self.resume)
        with Journal(self.console, self.out / "log.jsonl") as self.journal:
            return self._run(state)

    # The run, step by step --------------------------------------------------------------------------------------------

    def _run(self, state: Path) -> Report:
        self.began = self.marked = time.perf_counter()
        self.device = pick_device(self.device_name)
        self.loaded = self.source.load()
        self.data = self.images.open(self.recipe.seed)
        self.shape, origin = settle_input(self.loaded, self.data, self.asked_shape)
        self.journal.event("loaded", arch=self.loaded.arch, notes=self.loaded.notes, input_shape=self.shape)
        self.journal.say(f"{self.source.model}: {self.loaded.arch}, images {'x'.join(map(str, self.shape))} ({origin})")
        for note in [*self.loaded.notes, *(self.data.notes if self.data else [])]:
            self.journal.say(f"  {note}")
        model = self.loaded.model
        channels = budget.hold(analyse(model, self.shape, self.wish.residual), list(self.wish.keep))
        self._warn_unknown(channels)
        if self.data is not None:
            with torch.no_grad():
                outputs = logits_of(copy.deepcopy(model)(torch.zeros(1, *self.shape))).shape[-1]
            check_classes(self.data, outputs)
        new = state / "new"
        new.mkdir(exist_ok=True)
        original_onnx = new / "original.onnx"
        export_onnx(model, self.shape, original_onnx)
        model.to(self.device)
        self._stage("original", model)

        job = Job(
            model,
            self.shape,
            channels,
            self.wish.goal,
            Classify(self.recipe.label_smoothing),
            self.wish.round_to,
            self.wish.most,
            original_onnx.stat().st_size - measure.weight_bytes(model),
        )
        seed_all(self.recipe.seed)
        method = catalogue.create(self.entry, job, self.wish.settings)
        assert isinstance(method, FilterPruning)
        method.to(self.device)
        method.prepare()
        training = None
        if self.recipe.epochs and self.data is not None:
            method.model.requires_grad_(True)
            training = Training(method, self.data, self.recipe, self.device, state / "training.pt")
        resumed = training is not None and self.resume and training.resume()
        if method.removed is not None and not resumed:
            self._stage("cut", method.model)
            self._recalibrate(method.model)
        if training is not None:
            if resumed:
                self.journal.say(f"resumed after epoch {len(training.history)} of {self.recipe.epochs}")
            training.run(self.journal)
            self._stage("fine-tuned" if method.removed is not None else "trained", method.model)
        cut_before = method.removed is not None
        small = method.finish()
        removed = method.removed
        assert removed is not None
        if not cut_before:
            self._stage("cut", small)
            self._recalibrate(small)
        return self._publish(small, removed, original_onnx, new, training)

    def _publish(
        self, small: nn.Module, removed: Verified, original_onnx: Path, new: Path, training: Training | None
    ) -> Report:
        small_onnx = new / "model.onnx"
        small = small.eval().float().to(memory_format=torch.contiguous_format)
        export_onnx(small, self.shape, small_onnx)
        small.cpu()
        differences = check_onnx(small, small_onnx, self.shape, images=self._test_images(), tolerance=ONNX_TOLERANCE)
        ask_original, ask_small = measure.onnx_predict(original_onnx), measure.onnx_predict(small_onnx)
        accuracy = measure.accuracy(ask_small, self._test()) if self.data is not None else None
        self._stage("ONNX", small, accuracy)
        fidelity = self._fidelity(ask_original, ask_small)
        self.journal.say("measuring latency in ONNX Runtime")
        times = measure.compare_latency([original_onnx, small_onnx], self.shape, seconds=2.0)
        channels, mask = removed.channels, removed.mask
        baseline = self._profile(self.loaded.model.cpu(), original_onnx, self.stages[0].accuracy, times[0])
        compressed = self._profile(small, small_onnx, accuracy, times[1])
        self._check_cost(compressed, channels, mask)
        verification = Verification(removed.difference, TOLERANCE, differences, ONNX_TOLERANCE)
        target = self._target(channels, mask, baseline, compressed)
        plan = self.loaded.plan or Plan(self.loaded.arch, self.loaded.arch_args, self.shape)
        change = compare(baseline, compressed)
        for batch, ratio in change.latency.items():
            if ratio < FASTER:
                self.warnings.append(f"no faster at batch {batch}: {change.macs - 1:+.0%} MACs, {1 / ratio - 1:+.0%} time")
        report = Report(
            name=self.out.name,
            verdict=verdict(baseline, compressed, verification),
            model=self.source.model,
            arch=self.loaded.arch,
            data=self.images.spec,
            input_shape=list(self.shape),
            method=self.wish.method,
            settings={
                key: value if isinstance(value, str | int | float) else str(value) for key, value in self._decided().items()
            },
            seed=self.recipe.seed,
            target=target,
            baseline=baseline,
            compressed=compressed,
            change=change,
            stages=self.stages,
            epochs=training.history if training else [],
            layers=self._layers(channels, mask, small),
            frozen=channels.frozen(),
            fidelity=fidelity,
            verification=verification,
            warnings=self.warnings,
            versions=_versions(),
            device=_device_name(self.device),
            command=self.command,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=time.perf_counter() - self.began,
        )
        save_model(new, small, plan.then(removed.cut))
        write_reports(report, new)
        try:
            for name in RESULTS:  # the report last: a directory with a report is a finished run
                (new / name).replace(self.out / name)
            original_onnx.unlink()
            new.rmdir()
        except OSError as error:
            raise OutputError(f"the results cannot be put into {self.out}: {error.strerror}. They lie in {new}.") from error
        self.journal.event("published", verdict=report.verdict)
        return report

    # Parts ------------------------------------------------------------------------------------------------------------

    def _decided(self) -> dict[str, Any]:
        return {key: value for key, value in self.settings.items() if value is not None}

    def _warn_unknown(self, channels: Channels) -> None:
        for operator, count in channels.unknown_operators().items():
            self.warnings.append(f"operator {operator} has no rule ({count} times): what it touches was left whole")

    def _test(self) -> Any:
        assert self.data is not None
        return self.data.batches("test", batch_size=EVALUATION_BATCH, device=self.device)

    def _test_images(self) -> Tensor | None:
        if self.data is None:
            return None
        batches = self.data.batches("test", batch_size=16, device=self.device, limit=16)
        return next(iter(batches)).images.cpu()

    def _stage(self, name: str, model: nn.Module, accuracy: Accuracy | None = None, note: str = "") -> None:
        if accuracy is None and self.data is not None:
            accuracy = measure.accuracy(measure.torch_predict(model, self.device), self._test())
        macs, params = measure.count_macs(model, self.shape), measure.count_params(model)
        now = time.perf_counter()
        self.stages.append(Stage(name, macs, params, accuracy, now - self.marked, note))
        self.marked = now
        top1 = "" if accuracy is None else f", top-1 {accuracy.top1:.2%} of {accuracy.n} test images"
        self.journal.say(f"{name}: {macs / 1e6:,.1f} M MACs, {params / 1e6:,.3f} M parameters{top1}")
        self.journal.event("stage", **asdict(self.stages[-1]))

    def _recalibrate(self, model: nn.Module) -> None:
        if self.data is None:
            return
        batches = self.data.batches(
            "train", batch_size=128, device=self.device, seed=self.recipe.seed, augment=False, limit=RECALIBRATION_IMAGES
        )
        if images := recalibrate(model, batches):
            self._stage("recalibrated", model, note=f"batch-norm statistics of {images} training images")

    def _fidelity(self, original: measure.Predict, small: measure.Predict) -> Fidelity:
        if self.data is not None:
            return measure.fidelity(original, small, self._test(), "test images")
        generator = torch.Generator().manual_seed(self.recipe.seed)
        images = torch.randn(8, 8, *self.shape, generator=generator)
        nothing = torch.zeros(8, dtype=torch.int64)
        return measure.fidelity(original, small, [Batch(part, nothing, nothing) for part in images], "random inputs")

    def _profile(self, model: nn.Module, path: Path, accuracy: Accuracy | None, times: Sequence[Any]) -> Profile:
        return Profile(
            macs=measure.count_macs(model, self.shape),
            params=measure.count_params(model),
            weight_bytes=measure.weight_bytes(model),
            size_bytes=path.stat().st_size,
            peak_activation_bytes=measure.peak_activation_bytes(model, self.shape),
            accuracy=accuracy,
            latency=list(times),
        )

    def _check_cost(self, compressed: Profile, channels: Channels, mask: Mask) -> None:
        """The table that the budget was met with must agree with the network that came out."""
        for name, counted, table in (
            ("MACs", compressed.macs, channels.macs),
            ("parameters", compressed.params, channels.params),
        ):
            if abs(table.total(mask) - counted) > max(1.0, 1e-6 * counted):
                raise VerificationFailed(
                    f"the small network has {counted} {name}, but {table.total(mask):.0f} were planned.\nNothing was written."
                )

    def _target(self, channels: Channels, mask: Mask, baseline: Profile, compressed: Profile) -> Target:
        goal = self.wish.goal
        full = {"macs": baseline.macs, "params": baseline.params, "size": baseline.size_bytes, "filters": 1}[goal.quantity]
        assert full is not None
        asked = goal.asked(full)
        gone = {
            "macs": 1 - compressed.macs / baseline.macs,
            "params": 1 - compressed.params / baseline.params,
            "size": 1 - (compressed.size_bytes or 0) / (baseline.size_bytes or 1),
        }
        reached = gone[goal.quantity] if goal.quantity in gone else budget.reached(channels, mask, goal)
        note = ""
        if goal.limit is not None and asked == 0:
            note = "the original already meets it"
        elif abs(reached - asked) > budget.WITHIN and (goal.share is not None or reached < asked):
            why = f"widths are multiples of {self.wish.round_to or 'up to 8'}" if self.wish.round_to != 1 else "whole channels only"
            if goal.quantity == "filters":
                why = "each layer gives a whole number of filters"
            elif channels.held:
                why = f"{len(channels.held)} groups had to stay whole"
            note = why
            self.warnings.append(f"asked for {asked:.1%} fewer {goal.quantity}, reached {reached:.1%}: {why}")
        return Target(goal.quantity, asked, reached, goal.text, note)

    def _layers(self, channels: Channels, mask: Mask, small: nn.Module) -> list[Layer]:
        whole = channels.all_kept()
        macs, macs_after = channels.macs.by_layer(whole), channels.macs.by_layer(mask)
        params, params_after = channels.params.by_layer(whole), channels.params.by_layer(mask)
        group_of = {layer: group.name for group in channels.groups for layer in group.layers}
        why = {row.name: row.reason for row in channels.frozen()}
        after = dict(small.named_modules())
        rows = []
        for name, module in self.loaded.model.named_modules():
            weight = getattr(module, "weight", None)
            if name not in macs or not isinstance(weight, Tensor):
                continue
            rows.append(
                Layer(
                    name,
                    type(module).__name__,
                    list(weight.shape),
                    list(after[name].weight.shape),
                    round(macs[name]),
                    round(macs_after[name]),
                    round(params.get(name, 0)),
                    round(params_after.get(name, 0)),
                    group_of.get(name) or why.get(name, ""),
                )
            )
        return rows


def _versions() -> dict[str, str]:
    import onnx
    import onnxruntime
    import torchvision

    return {
        "compressor": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
    }


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.processor() or platform.machine()}, {torch.get_num_threads()} threads)"


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
    recipe: Recipe | None = None,
    force: bool = False,
) -> Report:
    """Prune `model` (a checkpoint, `torchvision:NAME`, ... as on the command line) into the directory `out`.

    One of `rate` (share of MACs to remove) and `target` (such as "params<=5M") says how much. Returns the report; raises a
    CompressError.
    """
    if (rate is None) == (target is None):
        raise UsageError("give either rate or target.")
    goal = budget.parse_rate(rate) if rate is not None else budget.parse_target(str(target))
    return Pruning(
        Source(model, arch, arch_args or {}),
        Wish(goal, method, settings or {}, residual),
        Images(data),
        recipe or Recipe(),
        out=Path(out),
        force=force,
        command="compressor.prune(...)",
    ).run()
