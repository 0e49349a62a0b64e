"""The report of a whole pipeline, from the original to the result of the last step.

Each step has a report of its own, relative to its input. Latencies of different runs cannot be compared, so here the original
and the ONNX files of all steps are measured again, interleaved.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import torch

from compressor.errors import Infeasible, VerificationFailed
from compressor.network.outputs import torch_predict
from compressor.onnx.latency import compare_latency
from compressor.onnx.runtime import onnx_predict
from compressor.report import (
    Difference,
    Epoch,
    Fidelity,
    Latency,
    Layer,
    Report,
    Stage,
    Target,
    Verification,
    compare,
    read_report,
    verdict,
    write_reports,
)
from compressor.runs import reporting
from compressor.runs.evaluation_batch import batch_for
from compressor.runs.journal import Journal
from compressor.runs.run import Run, export_original
from compressor.runs.run_directory import NETWORK, RunDirectory
from compressor.runs.sources import Opened, open_both, task_of
from compressor.runs.stages import on_random_inputs
from compressor.tasks import Task


@dataclass(frozen=True)
class Part:
    """A step that has been run."""

    command: str
    place: Path

    @cached_property
    def report(self) -> Report:
        return read_report(self.place)

    @property
    def title(self) -> str:
        return f"{self.command} {self.report.method}"

    @property
    def file(self) -> Path:
        return self.place / "model.onnx"


def put_together(parts: Sequence[Part], first: Run, config: str) -> Report:
    """Write the results of the whole pipeline into the directory of `first`, a run that knows the original and its images.

    `config` is the text of the settings file. Raises a CompressError.
    """
    place = RunDirectory(first.out, config)
    with place.claimed(force=True, resume=False):
        with Journal(first.console, place.log) as journal:
            opened = open_both(first.source, first.images, first.inputs, first.recipe.seed)
            form = replace(first.order.form, output=task_of(opened, first.images, torch.device("cpu")).output)
            with suppress(Infeasible, VerificationFailed):  # the reports of the steps tell the reason
                if any(part.file.exists() for part in parts):
                    export_original(opened, place, form)
            report = _report(parts, first, opened, place.original)
            for name in NETWORK:
                if (file := parts[-1].place / name).exists():
                    shutil.copyfile(file, place.new / name)
            write_reports(replace(report, files=reporting.hashes(place.new)), place.new)
            journal.event("done", verdict=report.verdict)
        place.publish()
    return read_report(first.out)


def _report(parts: Sequence[Part], first: Run, opened: Opened, original: Path) -> Report:
    reports = [part.report for part in parts]
    files = [original, *(part.file for part in parts)]
    there = [file for file in files if file.exists()]
    timing = replace(first.order.timing, seconds=1.0 * len(there))
    timed = dict(zip(there, compare_latency(there, opened.inputs, timing), strict=True)) if there else {}
    times = [timed.get(file, []) for file in files]
    start, end = reports[0], reports[-1]
    baseline = replace(start.baseline, latency=times[0], size_bytes=_size(original))
    compressed = replace(end.compressed, latency=times[-1])
    verification = _verification(reports)
    task = task_of(opened, first.images, torch.device("cpu"))
    fidelity, differences = _agreement(task, files[-1], opened, first.recipe.seed, start.baseline.macs)
    if len(parts) == 1 and fidelity is None:
        fidelity, differences = end.fidelity, end.change.scores
    change = compare(baseline, compressed, differences)
    return replace(
        end,
        name=first.out.resolve().name,
        verdict=verdict(baseline, compressed, verification, change.scores),
        model=start.model,
        arch=start.arch,
        settings={f"{part.place.name}.{name}": value for part in parts for name, value in part.report.settings.items()},
        method=" + ".join(part.title for part in parts),
        seed=start.seed,
        target=start.target if len(parts) == 1 else Target("macs", 1 - change.macs, 1 - change.macs, f"{len(parts)} steps"),
        baseline=baseline,
        compressed=compressed,
        change=change,
        stages=_stages(parts, reports, files, times),
        epochs=_epochs(reports),
        layers=_layers(reports),
        frozen=start.frozen,
        fidelity=fidelity,
        verification=verification,
        warnings=[
            *(f"{part.title}: {warning}" for part in parts for warning in part.report.warnings if not _is_origin(warning)),
            *reporting.noisy(baseline, compressed),
        ],
        versions=reporting.versions(),
        command=first.command,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=sum(report.seconds for report in reports),
        times=_times(reports),
        teaching=next((report.teaching for report in reversed(reports) if report.teaching), None),
    )


def _times(reports: Sequence[Report]) -> dict[str, float]:
    """Of all steps together."""
    names = dict.fromkeys(name for report in reports for name in report.times)
    return {name: sum(report.times.get(name, 0.0) for report in reports) for name in names}


def _size(file: Path) -> int | None:
    return file.stat().st_size if file.exists() else None


def _stages(
    parts: Sequence[Part], reports: Sequence[Report], files: Sequence[Path], times: Sequence[list[Latency]]
) -> list[Stage]:
    """A row for the original, and one per step."""
    sizes = list(map(_size, files))
    rows = [replace(reports[0].stages[0], size_bytes=sizes[0], latency=times[0])]
    for part, report, size, latency in zip(parts, reports, sizes[1:], times[1:], strict=True):
        after = report.compressed
        rows.append(Stage(part.title, after.macs, after.params, after.scores, report.seconds, size_bytes=size, latency=latency))
    return rows


def _epochs(reports: Sequence[Report]) -> list[Epoch]:
    """All epochs of all steps, numbered consecutively."""
    rows = [epoch for report in reports for epoch in report.epochs]
    return [replace(row, epoch=number) for number, row in enumerate(rows, 1)]


def _layers(reports: Sequence[Report]) -> list[Layer]:
    """What each layer of the original became; layers that replaced one count as that layer."""
    layers = {layer.name: layer for layer in reports[0].layers}
    for report in reports[1:]:
        heirs: dict[str, list[Layer]] = {}
        for layer in report.layers:
            owner = next((name for name in _prefixes(layer.name) if name in layers), None)
            if owner is not None:
                heirs.setdefault(owner, []).append(layer)
        for name, found in heirs.items():
            layers[name] = _after(layers[name], found)
    return list(layers.values())


def _after(layer: Layer, heirs: Sequence[Layer]) -> Layer:
    """`layer` after a later step."""
    macs, params = sum(heir.macs_after for heir in heirs), sum(heir.params_after for heir in heirs)
    layer = replace(layer, macs_after=macs, params_after=params)
    if len(heirs) > 1:
        return replace(layer, factors=[heir.shape_after for heir in heirs])
    (heir,) = heirs
    return replace(layer, shape_after=heir.shape_after, factors=heir.factors or layer.factors, rank=heir.rank or layer.rank)


def _prefixes(name: str) -> list[str]:
    """`a.b.c` -> itself, `a.b`, `a`."""
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(len(parts), 0, -1)]


def _is_origin(note: str) -> bool:
    """Whether a note says that the step started from a run: here that was the last step's."""
    return note.startswith(("a run of ", "the student: a run of "))


def _verification(reports: Sequence[Report]) -> Verification:
    """The largest difference that pruning made in any step, and the ONNX check of the last step."""
    cuts = [report.verification.masked for report in reports if report.verification.masked is not None]
    return replace(reports[-1].verification, masked=max(cuts, default=None))


def _agreement(
    task: Task, file: Path, opened: Opened, seed: int, macs: int
) -> tuple[Fidelity | None, Mapping[str, Difference]]:
    """Of the last file with the original network, and the differences of the scores of the two; None without the file."""
    if not file.exists():
        return None, {}
    before, after = torch_predict(opened.loaded.model, "cpu"), onnx_predict(file)
    if opened.data is None:
        return on_random_inputs(task, before, after, opened.inputs, seed, macs), {}
    first, last, likeness = task.meter(), task.meter(), task.likeness()
    size = batch_for(opened.loaded.model, opened.inputs)
    for batch in opened.data.batches("test", batch_size=size, device="cpu"):
        wanted, ours = task.answers(before, batch), task.answers(after, batch)
        task.score(first, wanted, batch)
        task.score(last, ours, batch)
        likeness.update(ours, wanted, batch.indices)
    return Fidelity(likeness.compute(), likeness.n, "test images"), last.differences(first)
