"""`compress eval MODEL --data SPEC`."""

from __future__ import annotations

import json as json_
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from compressor.cli import options
from compressor.errors import NotExported

if TYPE_CHECKING:
    from compressor.runs.evaluate import Evaluation

if TYPE_CHECKING:
    from compressor.report import Score


@options.command(options.DATA, options.READING, options.ONNX, options.LATENCY)
def evaluate(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="Checkpoint, run directory, .onnx file, torchvision:NAME or timm:NAME."),
    ],
    device: options.Device = "auto",
    json: options.Json = False,
) -> None:
    """Measure scores, MACs, size and latency with PyTorch and ONNX Runtime."""
    from compressor.runs.evaluate import evaluate as measured

    asked = options.Asked(context)
    result = measured(
        asked.source(model), asked.images, asked.inputs, device, as_onnx=asked.options["onnx"], timing=asked.timing
    )
    if json:
        told = asdict(result) | {"torch": _by_name(result.torch), "onnx": _by_name(result.onnx)}
        options.print_json(json_.dumps(told, indent=2))
    else:
        _show(result, asked.images.spec)
    if result.onnx_failure is not None:
        raise NotExported(f"Size and latency were not measured: {result.onnx_failure}\n--no-onnx measures with PyTorch alone.")


def _show(result: Evaluation, data: str | None) -> None:
    """The measurements in a table, and the notes."""
    from compressor.report import formatting

    table = Table(box=None, show_header=False, pad_edge=False)
    rows = {
        "Input": formatting.inputs(result.inputs),
        "MACs, one image": None if result.macs is None else formatting.count(result.macs),
        "Parameters": None if result.params is None else formatting.count(result.params),
        "ONNX file": None if result.size_bytes is None else formatting.size(result.size_bytes),
    }
    for engine, found in (("PyTorch", result.torch), ("ONNX Runtime", result.onnx)):
        for score in found:
            name = f"{score.label[:1].upper()}{score.label[1:]}, {engine}"
            rows[name] = f"{formatting.score(score)} {formatting.interval(score)} of {score.n} test images"
    for row in result.latency:
        rows[f"Latency, batch {row.batch}"] = (
            f"{formatting.milliseconds(row.median_ms)} ({formatting.timing(row)}, {row.clock})"
            + ("" if row.reliable else f": {formatting.unreliable(row)}")
        )
    for name, text in rows.items():
        if text is not None:
            table.add_row(name, text)
    Console().print(table)
    for note in result.notes:
        print(f"note: {note}")
    if data is None:
        print("no scores were measured (no data): give --data")


def _by_name(scores: Sequence[Score]) -> dict[str, float | int | None] | None:
    """Name -> value, with the interval of the headline and the number of images; None if nothing was measured."""
    if not scores:
        return None
    first = scores[0]
    return {score.name: score.value for score in scores} | {"low": first.low, "high": first.high, "n": first.n}
