"""`compress quantize runs/NAME --data SPEC`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from compressor.cli import options

WRITE = "What to write"


@options.command(options.DATA, options.SEED, options.READING, options.FORM, options.LATENCY, options.RUN)
def quantize(
    context: typer.Context,
    model: options.Model,
    to: Annotated[
        Literal["int8", "fp16"],
        typer.Option(help="INT8, or FP16 for GPUs.", rich_help_panel=WRITE),
    ] = "int8",
    keep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN", help="Layers to keep in float32, for example 'head.*'. Repeatable.", rich_help_panel=WRITE
        ),
    ] = None,
    calibrate: Annotated[
        int,
        typer.Option(help="Number of training images for calibration.", rich_help_panel=WRITE),
    ] = 512,
    ranges: Annotated[
        Literal["minmax", "entropy", "percentile"],
        typer.Option(help="Calibration of activation ranges.", rich_help_panel=WRITE),
    ] = "minmax",
    reduce_range: Annotated[
        bool,
        typer.Option("--reduce-range", help="7-bit weights, for x86 processors without VNNI.", rich_help_panel=WRITE),
    ] = False,
) -> None:
    """Quantize the ONNX model to INT8 or FP16, as the last step, with a report."""
    from compressor.runs.quantize import Quantizing, Wish
    from compressor.training.recipe import Recipe

    asked = options.Asked(context)
    wish = Wish(to, tuple(keep or ()), calibrate, ranges, reduce_range)
    asked.show(Quantizing(asked.order(asked.source(model), Recipe(seed=context.params["seed"]), to), wish))
