"""`compress prune MODEL --rate 0.5`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from compressor.cli import options
from compressor.errors import UsageError

CUT = "What to cut"


@options.command(
    options.DATA,
    options.RECIPE,
    options.TAUGHT,
    options.SEED,
    options.READING,
    options.ONNX,
    options.FORM,
    options.LATENCY,
    options.RUN,
)
def prune(
    context: typer.Context,
    model: options.Model,
    rate: Annotated[
        float | None, typer.Option(help="Fraction of the MACs to remove, for example 0.5.", rich_help_panel=CUT)
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Instead: macs=50%, params<=5M, size<=10MB, filters=40%.", rich_help_panel=CUT)
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="Pruning method; `compress methods` lists them.",
            autocompletion=options.methods_of("prune"),
            rich_help_panel=CUT,
        ),
    ] = "magnitude",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Setting of the method. Repeatable.", rich_help_panel=CUT),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Layers not to prune, for example 'head.*'.", rich_help_panel=CUT),
    ] = None,
    round_to: Annotated[
        int | None,
        typer.Option(help="Round widths to multiples of this; 8 by default where possible.", min=1, rich_help_panel=CUT),
    ] = None,
    most: Annotated[
        float, typer.Option("--max-rate", "--most", help="Prune at most this fraction of any group.", rich_help_panel=CUT)
    ] = 0.95,
    residual: Annotated[
        Literal["coupled", "scatter"],
        typer.Option(help="Prune the channels of a residual stream together, or keep its width.", rich_help_panel=CUT),
    ] = "coupled",
    heads: Annotated[
        Literal["width", "whole"],
        typer.Option(help="Narrow attention heads, or remove whole heads.", rich_help_panel=CUT),
    ] = "width",
    sensitivity: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Prune insensitive groups first: the sensitivity.csv of `compress sensitivity`.",
            rich_help_panel=CUT,
        ),
    ] = None,
    repair: Annotated[
        bool,
        typer.Option(help="Re-estimate the consumers of pruned channels by least squares, if that helps.", rich_help_panel=CUT),
    ] = True,
) -> None:
    """Prune channels, fine-tune, and export a verified ONNX model with a report."""
    from compressor.methods import catalogue
    from compressor.training.goal import parse_rate, parse_target

    if (rate is None) == (target is None):
        raise UsageError("Say how much to prune: give either --rate 0.5 (fraction of the MACs) or --target, see --help.")
    goal = parse_rate(rate) if rate is not None else parse_target(str(target))
    entry = catalogue.find(method, "prune")
    settings = catalogue.parse_settings(entry, set_ or [])

    from compressor.runs.prune import Pruning, Wish
    from compressor.training.recipe import Recipe

    asked = options.Asked(context)
    recipe = asked.recipe(lambda side: Recipe.paper(side, entry.cutout))
    wish = Wish(goal, method, settings, residual, heads, tuple(keep or ()), round_to, most, sensitivity, repair)
    asked.show(Pruning(asked.order(asked.source(model), recipe, entry.label), wish))
