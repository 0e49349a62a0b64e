"""`compress sensitivity MODEL`."""

from __future__ import annotations

import json as json_
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from compressor.cli import options
from compressor.errors import UsageError

if TYPE_CHECKING:
    from compressor.runs.sensitivity_table import Sensitivity


@options.command(options.DATA, options.READING, options.PLACE)
def sensitivity(
    context: typer.Context,
    model: options.Model,
    rates: Annotated[str, typer.Option(help="Fractions of a group's channels to prune, one after another.")] = "0.25,0.5,0.75",
    method: Annotated[
        str, typer.Option(help="Pruning method whose scores rank the channels; `compress methods` lists them.")
    ] = "magnitude",
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Setting of the method. Repeatable.")
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(help="Number of held-out images to evaluate on; 2000 by default.", min=1),
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed; the same one holds out the same images as `compress prune`.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Output directory; runs/MODEL-sensitivity by default.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing results.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume: measure the groups that are missing in the results.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Sensitivity analysis: prune each group of coupled channels alone, and measure the loss of quality."""
    from compressor.methods import catalogue

    entry = catalogue.find(method, "prune")
    settings = catalogue.parse_settings(entry, set_ or [])
    shares = _shares(rates)
    from compressor.runs.sensitivity import PLOT, Measurement
    from compressor.runs.sensitivity_table import TABLE
    from compressor.training.recipe import Recipe

    asked = options.Asked(context)
    order = asked.order(asked.source(model), Recipe(seed=seed), "sensitivity")
    run = Measurement(order, rates=shares, method=method, settings=settings, count=images)
    found = run.run()
    if json:
        options.print_json(json_.dumps([asdict(row) for row in found.rows], indent=2))
    elif (console := order.console) is not None:
        _show(found, console)
        console.print(f"\nThe table is in {run.out / TABLE}, the plot in {run.out / PLOT}", highlight=False)


def _shares(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--rates {text!r} is not a list of numbers: write fractions, as in 0.25,0.5,0.75.") from None


def _show(found: Sensitivity, console: Console) -> None:
    """The loss of the score or of agreement at each rate, in points, the most sensitive group first."""
    from compressor.report import formatting

    groups = found.groups
    rates = [row.rate for row in next(iter(groups.values()))[1:]]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("group", overflow="fold")
    for heading in ("channels", *(f"{100 * rate:.3g}% pruned" for rate in rates), f"MACs removed at {100 * rates[-1]:.3g}%"):
        table.add_column(heading, justify="right")
    for name in found.ranked:
        first, *cut = groups[name]
        lost = (formatting.points(row.quality - first.quality) for row in cut)
        table.add_row(name, str(first.channels), *lost, formatting.share(cut[-1].macs_removed))
    original = next(iter(groups.values()))[0]
    beside = f" (original: {formatting.percent(original.quality)})" if original.quality < 1 else ""
    console.print(f"\nChange of {found.measured} in points{beside}, the most sensitive group first\n", highlight=False)
    console.print(table)
