"""`compress demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compressor.cli import options


@options.answers
def demo(
    out: Annotated[Path, typer.Option(help="Directory of the results.")] = Path("demo"),
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    debug: options.Debug = False,
) -> None:
    """The whole job on embedded data: train a digits classifier, halve its MACs, and write a verified ONNX model."""
    console = options.console(quiet=False, json=False)
    assert console is not None
    from compressor.demo import run
    from compressor.report import print_report

    report = run(out, console, force=force)
    print_report(report, console)
    console.print(
        f"\nLook at {out / 'half' / 'report.html'}; the small network is {out / 'half' / 'model.onnx'}.", highlight=False
    )
