"""`compress lowrank MODEL --rate 0.5`."""

from __future__ import annotations

from typing import Annotated

import typer

from compressor.cli import options

FACTOR = "What to factor"


@options.command(options.DATA, options.RECIPE, options.TAUGHT, options.SEED, options.READING, options.RUN)
def lowrank(
    context: typer.Context,
    model: options.Model,
    rate: Annotated[
        float | None, typer.Option(help="Share of the MACs to remove, for example 0.5.", rich_help_panel=FACTOR)
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Instead: macs=50%, params<=5M, size<=10MB.", rich_help_panel=FACTOR)
    ] = None,
    energy: Annotated[
        float | None,
        typer.Option(help="Instead: the share of its energy that each layer keeps, for example 0.9.", rich_help_panel=FACTOR),
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help="Instead: the rank of each layer, where that saves something.", rich_help_panel=FACTOR)
    ] = None,
    method: Annotated[str, typer.Option(help="See `compress methods`.", rich_help_panel=FACTOR)] = "svd",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A setting of the method. Repeatable.", rich_help_panel=FACTOR),
    ] = None,
    keep: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Layers to leave whole, as in 'head.*'.", rich_help_panel=FACTOR)
    ] = None,
    round_to: Annotated[
        int | None,
        typer.Option(help="Ranks are multiples of this; by default of 8 where they can be.", min=1, rich_help_panel=FACTOR),
    ] = None,
    repair: Annotated[
        bool,
        typer.Option(help="Refit the last layer of each chain, where held-out images favour it.", rich_help_panel=FACTOR),
    ] = True,
) -> None:
    """Factor layers into smaller ones, fine-tune, and write a verified compact ONNX model with a report."""
    from compressor.methods import catalogue

    entry = catalogue.find(method, "lowrank")
    settings = catalogue.parse_settings(entry, set_ or [])

    from compressor.runs.lowrank import Factoring, Wish, parse_goal
    from compressor.training.recipe import Recipe

    goal = parse_goal(rate, target, energy, rank)
    asked = options.Asked(context)
    recipe = asked.recipe(lambda side: Recipe.paper(side, entry.cutout))
    wish = Wish(goal, method, settings, tuple(keep or ()), round_to, repair)
    asked.show(Factoring(asked.order(asked.source(model), recipe, method), wish))
