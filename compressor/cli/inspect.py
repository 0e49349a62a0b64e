"""`compress inspect MODEL`."""

from __future__ import annotations

import json as json_
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from compressor.cli import options
from compressor.cli.prune import Residual


@options.answers
def inspect(
    model: options.Model,
    arch: options.Arch = None,
    arch_arg: options.ArchArg = None,
    input_: options.Input = None,
    residual: Annotated[Residual, typer.Option(help="Cut a stream's channels together, or keep it wide.")] = Residual.coupled,
    key: options.Key = None,
    ema: options.Ema = False,
    trust_pickle: options.Trust = False,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Show what can be cut, what goes with it, what is frozen and why. Needs no data."""
    inputs = options.inputs(input_)
    from compressor.evaluate import look
    from compressor.report import figures

    view = look(options.source(model, arch, arch_arg, key, ema, trust_pickle), inputs, residual.value)
    if json:
        print(json_.dumps(view, indent=2))
        return
    console = Console()
    console.print(f"{view['model']}: {view['arch']}, {figures.inputs(view['inputs'])}", highlight=False, markup=False)
    for note in view["notes"]:
        console.print(f"  {note}", highlight=False, markup=False)
    console.print(f"{figures.count(view['macs'])} MACs, {figures.count(view['params'])} parameters\n", highlight=False)
    groups = Table("group", "channels", "MACs", "parameters", "layers cut together", box=None, pad_edge=False)
    for group in view["groups"]:
        layers = group["layers"]
        shown = ", ".join(layers[:3]) + (f" and {len(layers) - 3} more" if len(layers) > 3 else "")
        groups.add_row(
            group["name"], str(group["channels"]), f"{group['macs']:.1%}", f"{group['params']:.1%}",
            shown + (" (scattered)" if group["scatter"] else ""),
        )  # fmt: skip
    console.print(groups)
    console.print("Shares: what goes when the whole group goes.\n", style="dim")
    if view["frozen"]:
        frozen = Table("frozen", "because", box=None, pad_edge=False)
        for row in view["frozen"]:
            frozen.add_row(row["name"], row["reason"])
        console.print(frozen)
    for operator, count in view["unknown_operators"].items():
        console.print(f"operator {operator} has no rule ({count} times): what it touches stays")
    smallest = view["smallest"]
    console.print(
        f"\nSmallest reachable: {smallest['macs']:.1%} of the MACs, {smallest['params']:.1%} of the parameters", highlight=False
    )
