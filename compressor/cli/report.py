"""`compress report RUN...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compressor.cli import options


@options.command(options.OUTPUT)
def report(
    context: typer.Context,
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Directories of finished runs, or their report.json.", show_default=False),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Output directory; by default the run's own, or runs/compare for several runs."),
    ] = None,
) -> None:
    """Write the HTML and Markdown report of a finished run again from its report.json, and the data of each plot as CSV.

    Several runs are put on one page, as by `compress compare`. Needs neither the model nor data.
    """
    from compressor.report import print_report, to_json
    from compressor.report.write import write_pages

    asked = options.Asked(context)
    if len(runs) > 1:
        asked.side_by_side(runs, out)
        return
    written, place = write_pages(runs[0], out)
    if asked.options["json"]:
        options.print_json(to_json(written))
    elif (console := asked.console) is not None:
        print_report(written, console)
        console.print(f"\nWritten to {place}: report.html, report.md, plots/*.csv", highlight=False)
