"""`compress demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from compressor.cli import options


@options.command()
def demo(
    out: Annotated[Path, typer.Option(help="Output directory.")] = Path("demo"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing demo.")] = False,
) -> None:
    """The whole job on embedded data: train a digits classifier, halve its MACs, and export a verified ONNX model."""
    console = Console()
    from compressor.demo import run
    from compressor.report import print_report

    report = run(out, console, force=force)
    print_report(report, console)
    console.print(
        f"\nThe report is {out / 'half' / 'report.html'}, the pruned network {out / 'half' / 'model.onnx'}.", highlight=False
    )
