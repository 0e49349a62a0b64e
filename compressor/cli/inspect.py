"""`compress inspect MODEL`."""

from __future__ import annotations

import json as json_
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from compressor.cli import options

SHOWN = 4  # patterns of names in one cell
FIGURES = ("groups", "layers", "channels", "MACs", "params")
IN_A_FILE = 160  # columns, without a terminal


@options.command(options.READING)
def inspect(
    context: typer.Context,
    model: options.Model,
    graph: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw the channel dependencies: Mermaid (.mmd, .md) or Graphviz (.dot, .gv)."),
    ] = None,
    residual: Annotated[
        Literal["coupled", "scatter"], typer.Option(help="Prune the channels of a residual stream together, or keep its width.")
    ] = "coupled",
    heads: Annotated[Literal["width", "whole"], typer.Option(help="Narrow attention heads, or remove whole heads.")] = "width",
    json: options.Json = False,
) -> None:
    """List the groups of coupled channels, and the layers that cannot be pruned, with the reason. Needs no data."""
    from compressor.runs.inspect import look

    asked = options.Asked(context)
    view = look(asked.source(model), asked.inputs, residual, heads, graph)
    if json:
        options.print_json(json_.dumps(view, indent=2))
    else:
        _show(view, graph)


def _show(view: Mapping[str, Any], graph: Path | None) -> None:
    from compressor.report import formatting

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = max(console.width, IN_A_FILE)
    console.print(f"{view['model']}: {view['arch']}, {formatting.inputs(view['inputs'])}")
    for note in view["notes"]:
        console.print(f"  {note}")
    macs, params = view["macs"], view["params"]
    groups = view["groups"]
    console.print(f"{formatting.count(macs)} MACs, {formatting.count(params)} parameters, {len(groups)} channel groups\n")
    if groups:
        console.print(_groups(groups))
        console.print("Shares: removed with the whole group. Groups in one row are alike.", style="dim")
        if wide := next((group for group in groups if group["copies"] > 1), None):
            size, each = wide["channels"], wide["copies"]
            console.print(f"{size} x {each}: {size} prunable units of {each} channels per layer.", style="dim")
        console.print()
    if view["frozen"]:
        console.print(_frozen(view["frozen"]))
    for operator, count in view["unknown_operators"].items():
        console.print(f"operator {operator} has no rule ({count} times): its channels are frozen")
    least = view["smallest"]
    console.print(
        f"\nSmallest reachable: {formatting.count(round(least['macs'] * macs))} MACs ({least['macs']:.1%}), "
        f"{formatting.count(round(least['params'] * params))} parameters ({least['params']:.1%})"
    )
    if graph is not None:
        console.print(f"The channel dependencies are drawn in {graph}")


def _groups(groups: Iterable[Mapping[str, Any]]) -> Table:
    """A row for each group, or for several groups that are alike."""
    table = _table("group", "groups", "channels", "MACs", "params", "coupled with")
    alike: dict[str, list[Mapping[str, Any]]] = {}
    for group in groups:
        alike.setdefault(group["alike"], []).append(group)
    for same in alike.values():
        first, names = same[0], [group["name"] for group in same]
        table.add_row(
            _names(names) + (" (scattered)" if first["scatter"] else ""),
            f"{len(same)}",
            f"{first['channels']}" + (f" x {first['copies']}" if first["copies"] > 1 else ""),
            f"{first['macs']:.1%}",
            f"{first['params']:.1%}",
            _names([layer for group in same for layer in group["layers"] if layer not in names], SHOWN),
        )
    return table


def _names(names: list[str], most: int | None = None) -> str:
    """Abbreviated, each pattern on a line of its own."""
    from compressor.channels.diagram import brief

    return brief(names, most).replace(", ", "\n")


def _frozen(frozen: Iterable[Mapping[str, str]]) -> Table:
    """A row for each reason."""
    table = _table("frozen", "layers", "reason")
    reasons: dict[str, list[str]] = {}
    for row in frozen:
        reasons.setdefault(row["reason"], []).append(row["name"])
    for reason, names in reasons.items():
        table.add_row(_names(names), f"{len(names)}", reason)
    return table


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in FIGURES else "left", overflow="fold")
    return table
