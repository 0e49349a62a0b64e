"""A run of `compress quantize`: post-training quantization of the ONNX file; the network itself is unchanged.

    original ─export─> ONNX ─quantize─> INT8 or FP16 ─check─> published

It is a run like any other, with a directory and a report. Its files for PyTorch, model.safetensors and plan.json, hold the
unchanged network in float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatch
from pathlib import Path

import torch
from onnx import NodeProto
from torch import nn

from compressor.channels import Frozen
from compressor.data import Batches, Data
from compressor.errors import Infeasible, UsageError, VerificationFailed
from compressor.methods.widths import check_keep
from compressor.network.inputs import AnyInputs, Inputs
from compressor.onnx import quantizer
from compressor.onnx.export import Differences, check_onnx
from compressor.onnx.quantizer import Precision, Ranges
from compressor.report import Epoch, Fidelity, Profile, Report, Target, formatting
from compressor.report.schema import headline
from compressor.report.summary import FASTER
from compressor.runs import reporting
from compressor.runs.journal import Journal
from compressor.runs.run import Order, Run
from compressor.runs.run_directory import RunDirectory
from compressor.runs.settings import Setting
from compressor.runs.sources import Images, Opened, Source
from compressor.runs.stages import Stages
from compressor.training.goal import Goal
from compressor.training.method import Job, Made, Method
from compressor.training.recipe import Recipe

BITS = {"int8": 8, "fp16": 16}  # per weight, in place of 32
TOLERANCE = {
    "int8": torch.finfo(torch.float32).max,  # any finite output: scores and agreement measure the quality
    "fp16": 0.02,  # largest difference over largest output; one rounding is 0.0005, and those of all layers add up
}
LOOKED_AT = 8  # batch size of calibration: a larger one would only take more memory
MUCH = 0.01  # loss of a share, or relative loss of another score, that is warned about


@dataclass(frozen=True)
class Wish:
    """What to write, and how."""

    to: Precision = "int8"
    keep: tuple[str, ...] = ()  # patterns of layers to leave in float32
    calibrate: int = 512  # number of training images for calibration
    ranges: Ranges = "minmax"
    reduce_range: bool = False

    def __post_init__(self) -> None:
        if self.to not in BITS:
            raise UsageError(f"--to {self.to} is unknown: use {' or '.join(BITS)}.")
        if self.calibrate < 1:
            raise UsageError(f"--calibrate is a number of training images, 1 or more; found {self.calibrate}.")
        if self.to == "fp16" and (self.reduce_range or self.ranges != "minmax"):
            option = "--reduce-range" if self.reduce_range else f"--ranges {self.ranges}"
            raise UsageError(f"{option} is for INT8, not for --to fp16: omit it, or give --to int8.")

    @property
    def name(self) -> str:
        return self.to.upper()


class Unchanged(Method):
    """Leaves its network unchanged, and reports on the layers of the ONNX file."""

    told = Made()

    def made(self) -> Made:
        return self.told


class Quantizing(Run):
    """One quantization run."""

    does = "quantize"
    rewrites = True

    def __init__(self, order: Order, wish: Wish) -> None:
        self.wish, self.method = wish, wish.to
        super().__init__(order)

    def _check(self) -> None:
        if self.recipe.epochs:
            raise UsageError("compress quantize does not train: fine-tune before, for example with `compress prune`.")
        if self.wish.ranges != "minmax" and self.images.spec is None:
            raise UsageError(f"--ranges {self.wish.ranges} needs images for calibration: give --data.")

    @property
    def wishes(self) -> dict[str, Setting]:
        wish = self.wish
        return {
            "to": wish.to,
            "keep": list(wish.keep) or None,
            "calibrate": wish.calibrate,
            "ranges": wish.ranges,
            "reduce_range": wish.reduce_range,
        }

    @property
    def settings(self) -> dict[str, Setting]:
        """Without the training recipe."""
        training = {field.name for field in fields(Recipe)} - {"seed"}
        return {name: value for name, value in super().settings.items() if name not in training}

    def _prepared(self, opened: Opened, place: RunDirectory, journal: Journal, device: torch.device) -> Method:
        _check_keep(opened.loaded.model, self.wish.keep)
        return Unchanged(Job(opened.loaded.model, opened.inputs, None, self._goal, self.task)).to(device)

    @property
    def _goal(self) -> Goal:
        """The share of the bits that are removed."""
        return Goal("size", f"--to {self.wish.to}", share=1 - BITS[self.wish.to] / 32)

    def _target(self, method: Method, small: nn.Module, baseline: Profile, compressed: Profile) -> Target:
        why = "names, scales and the layers in float32 take up space, too"
        return reporting.target(self._goal, baseline, compressed, why)

    def _write(
        self, small: nn.Module, method: Method, opened: Opened, stages: Stages, before: Path, after: Path
    ) -> tuple[Differences, Fidelity | None]:
        """Both the float32 file and the quantized one are checked against PyTorch, each with its own tolerance."""
        assert isinstance(method, Unchanged)
        images, seed, original = opened.inputs.images, self.recipe.seed, self.exported[before.name]
        self.exported[after.name] = original
        stages.written(small, opened.loaded.model, before, seed)
        ready = after.with_name("prepared.onnx")
        quantizer.prepare(before, ready)
        layers = quantizer.layers_of(ready, small)
        kept = _kept(layers, self.wish.keep)
        method.told = self._told(layers, kept, opened.data)
        keep = [node.name for layer in kept for node in layers[layer]]
        if self.wish.to == "fp16":
            quantizer.to_fp16(ready, after, keep)
        else:
            looked_at, wish = self._looked_at(opened.data, original.form.batch), self.wish
            quantizer.to_int8(ready, after, looked_at, keep, ranges=wish.ranges, reduce_range=wish.reduce_range)
        ready.unlink()
        quantizer.check_opens(after)
        try:
            check_onnx(small, after, opened.inputs, images=images, form=original.form, tolerance=TOLERANCE[self.wish.to])
        except VerificationFailed as error:
            first, *_ = str(error).splitlines()
            raise VerificationFailed(
                f"{first}\n{self.wish.name} is too imprecise for this network: keep layers in float32 with --keep PATTERN."
            ) from error
        return original.differences, stages.written(small, opened.loaded.model, after, seed, self.wish.name)

    def _looked_at(self, data: Data | None, fixed: int | None = None) -> Batches | None:
        """Training images for calibration, without augmentation, in batches of the size that the file has, if it is fixed."""
        if data is None:
            return None
        seed, limit = self.recipe.seed, self.wish.calibrate
        return data.batches("train", batch_size=fixed or LOOKED_AT, device="cpu", augment=False, seed=seed, limit=limit)

    def _told(self, layers: Mapping[str, Sequence[NodeProto]], kept: Mapping[str, str], data: Data | None) -> Made:
        """The precision of each layer. Raises Infeasible when no layer is quantized."""
        linear_alone = self.wish.to == "int8" and data is None
        remarks = dict(kept)
        for layer, nodes in layers.items():
            left = linear_alone and all(node.op_type not in quantizer.LINEAR for node in nodes)
            remarks.setdefault(layer, "float32: no images for calibration" if left else self.wish.name)
        if self.wish.name not in remarks.values():
            remedy = "give --data" if linear_alone else "give fewer --keep"
            without = " (without images, only linear layers are)" if linear_alone else ""
            raise Infeasible(f"No layer of this network can be quantized{without}: {remedy}.")
        return Made(remarks=remarks, frozen=[Frozen(layer, reason) for layer, reason in kept.items()])

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
        report = super()._prove(opened, small, method, stages, history, new, journal)
        before, after = report.baseline, report.compressed
        files = [before, before, after]  # the float file is the original's
        rows = [
            replace(row, size_bytes=of.size_bytes, latency=of.latency) for row, of in zip(report.stages, files, strict=True)
        ]
        share = quantizer.share_of(new / "model.onnx", self.wish.to)
        return replace(report, stages=rows, warnings=[*opened.notes, *self._narrower, *self._warnings(report, share)])

    def _warnings(self, report: Report, share: float) -> list[str]:
        """Warnings for the report; `share` is the quantized share of the file."""
        name, change = self.wish.name, report.change
        found = [
            f"only model.onnx is {name} ({share:.1%} of its weights and constants); model.safetensors with plan.json is the "
            "float32 network, on which MACs, parameters, weights and peak activations are counted"
        ]
        if self.wish.to == "int8" and report.data is None:
            found.append(
                "without --data only linear layers are in INT8: with dynamic ranges, convolutions are slower than in float32"
            )
        score = headline(report.baseline.scores)
        if score is not None and score.name in change.scores:
            gain = score.sign * change.scores[score.name].value
            if gain < -MUCH * (1 if score.unit == "%" else abs(score.value)):
                worse = f"{score.label} {'fell' if score.more_is_better else 'rose'}"
                found.append(
                    f"{worse} by {formatting.difference(abs(gain), score).lstrip('+')}: leave layers in float32 (--keep "
                    "PATTERN, the first and the last one to begin with), or try --ranges entropy or percentile"
                )
        for batch, ratio in change.latency.items():
            if ratio < FASTER:
                found.append(f"no faster at batch {batch} on this machine: {1 / ratio - 1:+.0%} time")
        return found


def _check_keep(model: nn.Module, patterns: Sequence[str]) -> None:
    """Raise UsageError for a pattern that matches no layer."""
    layers = [name for name, module in model.named_modules() if any(p.dim() > 1 for p in module.parameters(recurse=False))]
    check_keep(patterns, layers)


def _kept(layers: Iterable[str], patterns: Sequence[str]) -> dict[str, str]:
    """The layers to keep in float32, and why."""
    chosen = {layer: next((pattern for pattern in patterns if fnmatch(layer, pattern)), None) for layer in layers}
    return {layer: f"excluded by --keep {pattern}" for layer, pattern in chosen.items() if pattern is not None}


def quantize(
    model: str,
    *,
    to: Precision = "int8",
    data: str | None = None,
    out: str | Path,
    arch: str | None = None,
    arch_args: Mapping[str, object] | None = None,
    keep: tuple[str, ...] = (),
    calibrate: int = 512,
    ranges: Ranges = "minmax",
    reduce_range: bool = False,
    seed: int = 0,
    inputs: AnyInputs | None = None,
    device: str = "auto",
    force: bool = False,
    resume: bool = False,
) -> Report:
    """Quantize `model` (a run directory, a checkpoint, ... as on the command line) to INT8 or FP16, in the directory `out`.

    With `data`, `calibrate` training images calibrate the activation ranges; without, only linear layers become INT8. `keep`
    are patterns of layers that stay in float32. Returns the report; raises a CompressError.
    """
    order = Order(
        Source(model, arch, arch_args or {}),
        Images(data),
        Recipe(seed=seed),
        Path(out),
        device,
        None if inputs is None else Inputs.of(inputs),
        force=force,
        resume=resume,
        command="compressor.quantize(...)",
    )
    return Quantizing(order, Wish(to, keep, calibrate, ranges, reduce_range)).run()
