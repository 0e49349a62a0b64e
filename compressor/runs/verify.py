"""Verification of a finished run, for `compress verify`: everything that its report says and that can be measured again.

    hashes      of the network's files
    costs       MACs and parameters of the network that plan.json and model.safetensors build
    ONNX        model.onnx against that network
    scores      of model.onnx, or without it of the network, on the test images, if they are still there

Latencies are not measured again: they depend on the machine.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from compressor.errors import CompressError, DataError, UsageError, VerificationFailed, first_line
from compressor.files import read_text
from compressor.network.cost import count_macs, count_params
from compressor.network.outputs import torch_predict
from compressor.onnx.export import check_onnx
from compressor.onnx.runtime import onnx_predict
from compressor.report import Report, Score, formatting, read_report
from compressor.runs.evaluation_batch import batch_for
from compressor.runs.reporting import hashes
from compressor.runs.sources import Images, Opened, Source, device_errors, open_both, pick_device, task_of

CONFIG = "config.toml"
IMAGES_OFF = 2  # images of a share whose prediction may differ on another processor
RELATIVE = 1e-3  # difference of another score there


@dataclass(frozen=True)
class Check:
    """One check: what was compared, and the result in a line; `passed` is None if it could not be made."""

    name: str
    passed: bool | None
    text: str


def verify(run: Path, source: Source, images: Images, device_name: str = "auto") -> list[Check]:
    """Measure the run in the directory `run` again. `images` without a spec: those of the run.

    Raises UsageError if it is not the directory of a finished run. What fails is a check that did not pass.
    """
    report = read_report(run)
    if not run.is_dir():
        raise UsageError(f"{run} is not a directory: give that of a finished run.")
    device = pick_device(device_name)
    given = images.spec is not None
    return [*_hashes(run, report), *_measured(run, report, source, images if given else images_of(run), given, device)]


def images_of(run: Path) -> Images:
    """The images of a run, from its settings. Raises UsageError if these cannot be read."""
    try:
        settings: dict[str, Any] = tomllib.loads(read_text(run / CONFIG))
    except FileNotFoundError:
        return Images()
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{run / CONFIG} cannot be read ({first_line(error)}): give --data.") from None
    names = ("mean", "std", "color", "max_value", "crop", "pad_to", "tile", "fit", "group", "task")
    fields: dict[str, Any] = {name: _tuple(settings[name]) for name in names if name in settings}
    try:
        return Images(settings.get("data"), _tuple(settings.get("size")), **fields)
    except TypeError as error:
        raise UsageError(f"{run / CONFIG} is not that of a run ({first_line(error)}): give --data.") from None


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _hashes(run: Path, report: Report) -> Iterator[Check]:
    now = hashes(run)
    if not report.files:
        yield Check("files", None, "the report is of an older release and has no hashes")
    for name, told in report.files.items():
        if name not in now:
            yield Check(name, False, "is missing")
        else:
            yield Check(
                name, now[name] == told, "SHA-256 as reported" if now[name] == told else "is not the file of the report"
            )


def _measured(run: Path, report: Report, source: Source, images: Images, given: bool, device: torch.device) -> Iterator[Check]:
    try:
        opened = _opened(source, images, given, report)
    except CompressError as error:
        yield Check("network", False, f"cannot be opened: {_line(error)}")
        return
    model, inputs, file = opened.loaded.model, opened.inputs, run / "model.onnx"
    for name, count, told in (("MACs", count_macs, report.compressed.macs), ("parameters", None, report.compressed.params)):
        found = count_params(model) if count is None else count(model, inputs)
        yield Check(name, found == told, f"{found:,}" + ("" if found == told else f" instead of {told:,}"))
    if file.exists():
        yield _onnx(opened, file, report)
    yield from _scores(opened, images, file if file.exists() else None, report, device)


def _opened(source: Source, images: Images, given: bool, report: Report) -> Opened:
    """With its images, or without them if they are no longer there. Raises a CompressError."""
    try:
        return open_both(source, images, None, report.seed)
    except DataError:
        if given:
            raise
        return open_both(source, Images(), None, report.seed)


def _onnx(opened: Opened, file: Path, report: Report) -> Check:
    """With the tolerance of the report; the outputs of a quantized file must only be finite."""
    quantized = any(stage.name in ("INT8", "FP16") for stage in report.stages)
    tolerance = torch.finfo(torch.float32).max if quantized else max(report.verification.onnx_tolerance, 1e-4)
    try:
        found = check_onnx(opened.loaded.model, file, opened.inputs, tolerance=tolerance)
    except (VerificationFailed, UsageError) as error:
        return Check("ONNX", False, _line(error))
    worst = max(found.values())
    return Check("ONNX", True, f"ONNX Runtime against PyTorch: largest difference {worst:.1e} of the largest output")


def _scores(opened: Opened, images: Images, file: Path | None, report: Report, device: torch.device) -> Iterator[Check]:
    told = {score.name: score for score in report.compressed.scores}
    if not told:
        return
    if opened.data is None:
        yield Check("scores", None, "the data are not there: give --data")
        return
    with device_errors():
        task = task_of(opened, images, device)
        if not task.labels:
            yield Check("scores", None, "the data have no labels, and the original network is not part of the run")
            return
        predict = torch_predict(opened.loaded.model, device) if file is None else onnx_predict(file)
        size = batch_for(opened.loaded.model, opened.inputs)
        found = task.measure(predict, opened.data.batches("test", batch_size=size, device=device)).compute()
    for score in found:
        if score.name in told:
            yield _compared(score, told[score.name])


def _compared(score: Score, told: Score) -> Check:
    allowed = IMAGES_OFF / max(told.n, 1) if told.unit == "%" else RELATIVE * abs(told.value)
    same = score.n == told.n and abs(score.value - told.value) <= allowed + 1e-12
    text = f"{formatting.score(score)} of {score.n:,} test images"
    return Check(score.label, same, text if same else f"{text} instead of {formatting.score(told)} of {told.n:,}")


def _line(error: CompressError) -> str:
    return " ".join(str(error).split())
