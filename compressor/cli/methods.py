"""`compress methods [NAME]`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from compressor import catalogue
from compressor.cli import options
from compressor.errors import UsageError, did_you_mean


@options.answers
def methods(
    name: Annotated[str | None, typer.Argument(help="Tell all about one method.", show_default=False)] = None,
    debug: options.Debug = False,
) -> None:
    """List every method: what it does, its paper, its settings."""
    console, known = Console(), catalogue.catalogue()
    if name is None:
        table = Table("method", "for", "what it does", "needs", "paper", box=None, pad_edge=False)
        for entry in known.values():
            table.add_row(entry.name, entry.family, entry.does, entry.needs, entry.paper)
        console.print(table)
        return
    if name not in known:
        raise UsageError(f"there is no method {name!r}{did_you_mean(name, known)}. Known: {', '.join(known)}.")
    entry = known[name]
    console.print(f"{entry.name} (compress {entry.family} --method {entry.name})\n", style="bold", highlight=False)
    console.print(entry.text, highlight=False, markup=False)
    if entry.settings:
        console.print("\nSettings (--set name=value):", style="bold")
        for setting in entry.settings:
            console.print(f"  {setting.name} = {setting.default}   {setting.text}", highlight=False, markup=False)
    console.print(f"\nNeeds: {entry.needs}", highlight=False)
