"""`compress quantize runs/NAME --data SPEC`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from compressor.cli import options

WRITE = "What to write"


@options.command(options.DATA, options.SEED, options.READING, options.RUN)
def quantize(
    context: typer.Context,
    model: options.Model,
    to: Annotated[
        Literal["int8", "fp16"],
        typer.Option(help="Whole numbers of 8 bits, or floating point of 16, which is for GPUs.", rich_help_panel=WRITE),
    ] = "int8",
    keep: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Layers to leave in float32, as in 'head.*'. Repeatable.", rich_help_panel=WRITE),
    ] = None,
    calibrate: Annotated[
        int,
        typer.Option(help="Training images that tell which range activations have.", rich_help_panel=WRITE),
    ] = 512,
    ranges: Annotated[
        Literal["minmax", "entropy", "percentile"],
        typer.Option(help="How a range follows from what the images gave.", rich_help_panel=WRITE),
    ] = "minmax",
    reduce_range: Annotated[
        bool,
        typer.Option("--reduce-range", help="Weights of 7 bits, for x86 processors without VNNI.", rich_help_panel=WRITE),
    ] = False,
) -> None:
    """Write the ONNX model in INT8 or FP16, as the last step, with a report of what it gained and what it cost."""
    from compressor.runs.quantize import Quantizing, Wish
    from compressor.training.recipe import Recipe

    asked = options.Asked(context)
    wish = Wish(to, tuple(keep or ()), calibrate, ranges, reduce_range)
    asked.show(Quantizing(asked.order(asked.source(model), Recipe(seed=context.params["seed"]), to), wish))
