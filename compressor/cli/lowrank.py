"""`compress lowrank MODEL --rate 0.5`."""

from __future__ import annotations

from typing import Annotated

import typer

from compressor.cli import options

FACTOR = "What to factor"


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
def lowrank(
    context: typer.Context,
    model: options.Model,
    rate: Annotated[
        float | None, typer.Option(help="Fraction of the MACs to remove, for example 0.5.", rich_help_panel=FACTOR)
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Instead: macs=50%, params<=5M, size<=10MB.", rich_help_panel=FACTOR)
    ] = None,
    energy: Annotated[
        float | None,
        typer.Option(help="Instead: the fraction of its energy that each layer keeps.", rich_help_panel=FACTOR),
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help="Instead: the rank of each layer, where that saves MACs.", rich_help_panel=FACTOR)
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="Low-rank method; `compress methods` lists them.",
            autocompletion=options.methods_of("lowrank"),
            rich_help_panel=FACTOR,
        ),
    ] = "svd",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Setting of the method. Repeatable.", rich_help_panel=FACTOR),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Layers not to factor, for example 'head.*'.", rich_help_panel=FACTOR),
    ] = None,
    round_to: Annotated[
        int | None,
        typer.Option(help="Round ranks to multiples of this; 8 by default where possible.", min=1, rich_help_panel=FACTOR),
    ] = None,
    repair: Annotated[
        bool,
        typer.Option(help="Re-estimate the last layer of each chain by least squares, if that helps.", rich_help_panel=FACTOR),
    ] = True,
) -> None:
    """Factor layers into low-rank ones, fine-tune, and export a verified ONNX model with a report."""
    from compressor.methods import catalogue

    entry = catalogue.find(method, "lowrank")
    settings = catalogue.parse_settings(entry, set_ or [])

    from compressor.runs.lowrank import Factoring, Wish, parse_goal
    from compressor.training.recipe import Recipe

    goal = parse_goal(rate, target, energy, rank)
    asked = options.Asked(context)
    recipe = asked.recipe(lambda side: Recipe.paper(side, entry.cutout))
    wish = Wish(goal, method, settings, tuple(keep or ()), round_to, repair)
    asked.show(Factoring(asked.order(asked.source(model), recipe, entry.label), wish))
