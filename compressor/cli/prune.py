"""`compress prune MODEL --rate 0.5`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from compressor.cli import options
from compressor.errors import UsageError

CUT = "What to cut"


@options.command(options.DATA, options.RECIPE, options.TAUGHT, options.SEED, options.READING, options.RUN)
def prune(
    context: typer.Context,
    model: options.Model,
    rate: Annotated[
        float | None, typer.Option(help="Share of the MACs to remove, for example 0.5.", rich_help_panel=CUT)
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Instead: macs=50%, params<=5M, size<=10MB, filters=40%.", rich_help_panel=CUT)
    ] = None,
    method: Annotated[str, typer.Option(help="See `compress methods`.", rich_help_panel=CUT)] = "magnitude",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A setting of the method. Repeatable.", rich_help_panel=CUT),
    ] = None,
    keep: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Layers to leave whole, as in 'head.*'.", rich_help_panel=CUT)
    ] = None,
    round_to: Annotated[
        int | None,
        typer.Option(help="Widths are multiples of this; by default of 8 where they can be.", min=1, rich_help_panel=CUT),
    ] = None,
    most: Annotated[float, typer.Option(help="At most this share of one group goes.", rich_help_panel=CUT)] = 0.95,
    residual: Annotated[
        Literal["coupled", "scatter"],
        typer.Option(help="Cut a stream's channels together, or keep it wide.", rich_help_panel=CUT),
    ] = "coupled",
    heads: Annotated[
        Literal["width", "whole"],
        typer.Option(help="Make the heads of attention narrower, or cut whole ones.", rich_help_panel=CUT),
    ] = "width",
    sensitivity: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Cut groups that lose little first: sensitivity.csv of `compress sensitivity`.",
            rich_help_panel=CUT,
        ),
    ] = None,
    repair: Annotated[
        bool, typer.Option(help="Refit what reads cut channels, where held-out images say that it helps.", rich_help_panel=CUT)
    ] = True,
) -> None:
    """Remove channels, fine-tune, and write a verified compact ONNX model with a report."""
    from compressor.methods import catalogue
    from compressor.training.goal import parse_rate, parse_target

    if (rate is None) == (target is None):
        raise UsageError("Say how much is to go: give either --rate 0.5 (share of the MACs) or --target, see --help.")
    goal = parse_rate(rate) if rate is not None else parse_target(str(target))
    entry = catalogue.find(method, "prune")
    settings = catalogue.parse_settings(entry, set_ or [])

    from compressor.runs.prune import Pruning, Wish
    from compressor.training.recipe import Recipe

    asked = options.Asked(context)
    recipe = asked.recipe(lambda side: Recipe.paper(side, entry.cutout))
    wish = Wish(goal, method, settings, residual, heads, tuple(keep or ()), round_to, most, sensitivity, repair)
    asked.show(Pruning(asked.order(asked.source(model), recipe, method), wish))
