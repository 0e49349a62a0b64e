"""`compress run compress.toml`."""

from __future__ import annotations

import json as json_
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from compressor.cli import config_file, options
from compressor.errors import UsageError

if TYPE_CHECKING:
    from compressor.runs.pipeline import Foretold
    from compressor.runs.run import Run


@options.command()
def run(
    context: typer.Context,
    file: Annotated[
        Path | None, typer.Argument(help="compress.toml, or [tool.compress] of pyproject.toml, by default.", show_default=False)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Output directory; runs/MODEL by default.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Rerun all steps, including finished ones.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Estimate the result of each step without training or writing anything.")
    ] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of compress.toml, for editors.")] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Run the compression steps of a settings file. Finished steps are kept, so it can be repeated."""
    if schema:
        print(json_.dumps(config_file.json_schema(), indent=2))
        return
    found = file or config_file.find()
    if found is None:
        raise UsageError(f"There is no {config_file.FILE} here, and no [tool.compress] in pyproject.toml: give the file.")
    from compressor.report import read_report
    from compressor.runs.pipeline import Pipeline

    settings = config_file.read(found)
    steps = [(step.command, step.settings, step.own) for step in settings.steps]
    place = out or settings.out or Path("runs") / options.stem(settings.model or "pipeline")
    pipeline = Pipeline(steps, place, settings.text, settings.model)
    console = Console(stderr=json, quiet=quiet, highlight=False, markup=False)
    silent = quiet or json or dry_run

    def perform(command: str, given: Mapping[str, object], take: Callable[[Run], object] | None) -> int:
        """Run a command with the settings `given`, as on the command line."""
        from compressor.cli.app import app

        told = {**given, "quiet": True} if silent or take else given
        return typer.main.get_command(app).main([command], standalone_mode=False, default_map={command: told}, obj=take) or 0

    if dry_run:
        status, plan = pipeline.foretell(perform)
        _show(plan, json)
    else:
        status = pipeline.run(perform, console.print, force=force)
        if json and status == 0:
            options.print_json((place / "report.json").read_text(encoding="utf-8"))
        elif status == 0:
            console.print()
            options.tell(read_report(place), place, console)
        if status == 0:
            options.check_exported(read_report(place), place)
    raise typer.Exit(status)


def _show(plan: list[Foretold], json: bool) -> None:
    """The steps, their states and their predicted results."""
    if json:
        options.print_json(json_.dumps([asdict(row) for row in plan], indent=2))
        return
    table = Table("step", "method", "state", "estimate from the weights", box=None, pad_edge=False)
    for row in plan:
        table.add_row(row.step, row.method, row.state, "" if row.foreseen is None else str(row.foreseen))
    Console(highlight=False, markup=False, soft_wrap=True).print(table)
