"""The report for the terminal: narrow tables that fit 80 columns, and plain lines in a build log."""

import re

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from compressor.report import comparison, summary
from compressor.report.comparison import Comparison
from compressor.report.schema import Report

SHOWN = {"method", "original", "target", "change", "MACs cut", "ONNX file", "speedup"}  # of a comparison, beside its score
_STYLE = {"good": "green", "bad": "red", "plain": ""}


def print_report(report: Report, console: Console) -> None:
    """Verdict, before and after, target, stages, warnings."""
    _print_line(Text(report.name, "bold"), console)
    _print_line(Text(report.verdict), console)
    console.print()
    console.print(_before_and_after(report))
    for note in summary.notes(report):
        _print_line(Text(note, "dim"), console)
    asked = summary.asked_and_reached(report.target)
    _print_line(Text(f"{asked[:1].upper()}{asked[1:]}."), console)
    if report.stages:
        console.print()
        console.print(_stages(report))
        if note := summary.stage_note(report):
            _print_line(Text(note, "dim"), console)
    training = summary.training(report)
    if training:
        _print_line(Text(f"Training: {training}.", "dim"), console)
    if report.warnings:
        console.print()
    for warning in report.warnings:
        _print_line(Text.assemble(("warning: ", "yellow"), warning), console)


def print_comparison(compared: Comparison, console: Console) -> None:
    """The table of several runs without its widest columns, notes, and missing runs."""
    names = comparison.heading(compared)
    shown = [place for place, name in enumerate(names) if name in SHOWN | {comparison.score_heading(compared)}]
    table = _table(*(names[place] for place in shown))
    for row in compared.rows:
        cells = comparison.cells(compared, row)
        table.add_row(*(Text(cells[place]) for place in shown), style="bold" if compared.is_best(row) else "")
    console.print()
    console.print(table)
    for note in comparison.notes(compared):
        _print_line(Text(note, "dim"), console)
    for row in compared.rows:
        if row.note:
            _print_line(Text.assemble((f"{row.name} at {row.rate:g}: ", "yellow"), row.note), console)


def _print_line(text: Text, console: Console) -> None:
    """Wrapped in a terminal, but one line in a log, so that a search finds it."""
    console.print(text, soft_wrap=not console.is_terminal)


def _before_and_after(report: Report) -> Table:
    table = _table("", "before", "after", "change")
    for row in summary.rows(report):
        table.add_row(
            Text.assemble(row.name, (row.label.removeprefix(row.name), "dim")),
            _with_spread(row.before, row.before_spread),
            _with_spread(row.after, row.after_spread),
            _with_spread(row.change, row.change_spread, _STYLE[row.tone]),
        )
    return table


def _with_spread(figure: str, spread: str = "", style: str = "") -> Text:
    return Text.assemble((figure, style), (f"\n{spread}" if spread else "", "dim"))


def _stages(report: Report) -> Table:
    *columns, _ = summary.stage_heading(report)  # a note is too wide
    table = _table(*columns)
    for name, *cells, _ in summary.stage_rows(report):
        table.add_row(Text(name), *(_with_spread(*re.split(r" (?=[\[(])", cell)) for cell in cells))
    return table


def _table(*columns: str) -> Table:
    """The first column has names, the others numbers."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", show_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", overflow="fold")
    return table
