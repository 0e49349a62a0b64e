"""Export of a model to a checked ONNX file, for `compress export`."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from compressor.files import write_whole
from compressor.network.cost import count_macs
from compressor.network.inputs import Inputs
from compressor.onnx.export import check_onnx, export_onnx
from compressor.report import read_report
from compressor.runs.sources import Images, Source, open_both


@dataclass(frozen=True)
class Exported:
    """A network that was exported to ONNX. `differences`, by batch size, are from PyTorch; empty for a copied file."""

    arch: str
    inputs: dict[str, list[int]]  # name -> shape of one sample
    notes: list[str]
    differences: dict[str, float]


def export_checked(source: Source, asked: Inputs | None, out: Path) -> Exported:
    """Export a model to ONNX and check it; of a run, copy the file that was checked already, if it has one.

    Raises a CompressError.
    """
    run = Path(source.model)
    if (run / "report.json").is_file() and (run / "model.onnx").is_file() and source.arch is None and asked is None:
        report = read_report(run)
        write_whole(out, lambda path: shutil.copyfile(run / "model.onnx", path))
        return Exported(report.arch, report.inputs, [f"a copy of {run / 'model.onnx'}, checked when it was made"], {})
    opened = open_both(source, Images(), asked)
    model, inputs = opened.loaded.model, opened.inputs
    count_macs(model, inputs)  # a one-line error if the model does not run on such images
    differences: dict[str, float] = {}

    def write(path: Path) -> None:
        export_onnx(model, inputs, path)
        differences.update(check_onnx(model, path, inputs))

    write_whole(out, write)
    return Exported(opened.loaded.arch, inputs.shapes, opened.notes, differences)
