"""Export of a model to a checked ONNX file, for `compress export`."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from compressor.files import write_whole
from compressor.network.cost import count_macs
from compressor.network.inputs import Inputs
from compressor.onnx import export
from compressor.onnx.form import WishedForm
from compressor.report import read_report
from compressor.runs.sources import Images, Source, open_both


@dataclass(frozen=True)
class Exported:
    """A network that was exported to ONNX. `differences`, by batch size, are from PyTorch; empty for a copied file."""

    arch: str
    inputs: dict[str, list[int]]  # name -> shape of one sample
    notes: list[str]
    differences: dict[str, float]
    form: str = ""  # which sizes it takes


def export_checked(source: Source, asked: Inputs | None, out: Path, wish: WishedForm | None = None) -> Exported:
    """Export a model to ONNX and check it; of a run, copy the file that was checked already, if it has one.

    Raises a CompressError.
    """
    run = Path(source.model)
    if (
        (run / "report.json").is_file()
        and (run / "model.onnx").is_file()
        and source.arch is None
        and asked is None
        and wish in (None, WishedForm())
    ):
        report = read_report(run)
        write_whole(out, lambda path: shutil.copyfile(run / "model.onnx", path))
        return Exported(report.arch, report.inputs, [f"a copy of {run / 'model.onnx'}, checked when it was made"], {})
    opened = open_both(source, Images(), asked)
    model, inputs = opened.loaded.model, opened.inputs
    count_macs(model, inputs)  # a one-line error if the model does not run on such images
    made: list[export.Exported] = []
    write_whole(out, lambda path: made.append(export.export_verified(model, inputs, path, wish)))
    (written,) = made
    notes = [*opened.notes, *written.notes]
    return Exported(opened.loaded.arch, inputs.shapes, notes, written.differences, str(written.form))
