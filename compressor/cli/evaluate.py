"""`compress eval MODEL --data SPEC`."""

from __future__ import annotations

import json as json_
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from compressor.cli import options


@options.answers
def evaluate(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A checkpoint, a run directory, an .onnx file, torchvision:NAME or timm:NAME."),
    ],
    data: options.DataSpec = None,
    size: options.Size = None,
    mean: options.Mean = None,
    std: options.Std = None,
    workers: options.Workers = 0,
    arch: options.Arch = None,
    arch_arg: options.ArchArg = None,
    input_: options.Input = None,
    key: options.Key = None,
    ema: options.Ema = False,
    trust_pickle: options.Trust = False,
    device: options.Device = "auto",
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Measure accuracy, cost, size and latency, through PyTorch and ONNX Runtime."""
    inputs = options.inputs(input_)
    from compressor.evaluate import evaluate as measured
    from compressor.report import figures

    result = measured(
        options.source(model, arch, arch_arg, key, ema, trust_pickle),
        options.images(data, size, mean, std, workers),
        inputs,
        device,
    )
    if json:
        print(json_.dumps(asdict(result), indent=2))
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    rows = {
        "Input": figures.inputs(result.inputs),
        "MACs, one image": None if result.macs is None else figures.count(result.macs),
        "Parameters": None if result.params is None else figures.count(result.params),
        "ONNX file": figures.size(result.size_bytes),
    }
    for engine, found in (("PyTorch", result.torch), ("ONNX Runtime", result.onnx)):
        if found is not None:
            rows[f"Top-1, {engine}"] = f"{figures.percent(found.top1)} {figures.interval(found)} of {found.n} test images"
    for row in result.latency:
        rows[f"Latency, batch {row.batch}"] = f"{figures.milliseconds(row.median_ms)} ({figures.timing(row)})"
    for name, text in rows.items():
        if text is not None:
            table.add_row(name, text)
    Console().print(table)
    for note in result.notes:
        print(f"note: {note}")
    if data is None:
        print("accuracy not measured (no data): give --data")
