"""`compress methods [NAME]`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from compressor.cli import options
from compressor.errors import UsageError, did_you_mean
from compressor.methods import catalogue
from compressor.methods.catalogue import Entry

NEEDS = "Needs: nothing = only the weights, images = training images, training = images and epochs. All benefit from training."


@options.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="One method, or file.py:Class.", show_default=False)] = None,
) -> None:
    """List the methods, or describe one: what it does, its paper, its settings."""
    console, known = Console(highlight=False), catalogue.known()
    if name is None:
        for family in dict.fromkeys(entry.family for entry in known.values()):
            console.print(f"compress {family} --method NAME\n", style="bold")
            console.print(_listed([entry for entry in known.values() if entry.family == family]))
        for fault in catalogue.installed()[1].values():
            print(f"warning: {fault}", file=sys.stderr)
        console.print(f"\n{NEEDS}\n`compress methods NAME` describes one method.")
        return
    if ":" in name:
        known = {name: catalogue.own(name)}
    if name not in known:
        raise UsageError(f"there is no method {name!r}{did_you_mean(name, known) or '.'} Known: {', '.join(known)}.")
    _tell(known[name], console)


def _listed(entries: list[Entry]) -> Table:
    table = Table("method", "year", "needs", "what it does, and its paper", box=None, pad_edge=False)
    for entry in entries:
        told = Group(Text(entry.does), Text(entry.paper, style="dim"))
        table.add_row(entry.name, entry.year, entry.kind, told)
    return table


def _tell(entry: Entry, console: Console) -> None:
    """The help of a method: what it does, how it is called, its settings, and the paper with its formulas."""
    from rich.markdown import Markdown  # slow to import

    model = "MODEL" if entry.family != "distill" else "--model MODEL" if entry.teacher_is == "none" else "--teacher TEACHER"
    console.print(f"Usage: compress {entry.family} {model} --method {entry.name} [OPTIONS]", style="bold", markup=False)
    console.print(f"\n{entry.does}\nNeeds: {entry.needs}", markup=False)
    if entry.settings:
        table = Table("--set", "default", "what it does", box=None, pad_edge=False)
        for setting in entry.settings:
            table.add_row(Text(setting.name), Text(str(setting.default)), Text(setting.text))
        console.print()
        console.print(table)
    console.print()
    console.print(Markdown(entry.text, code_theme="bw"))
