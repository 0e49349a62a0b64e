"""`compress export MODEL --out model.onnx`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compressor.cli import options
from compressor.errors import OutputError


@options.command(options.READING, options.FORM)
def export(
    context: typer.Context,
    model: options.Model,
    out: Annotated[Path, typer.Option(help="ONNX file to write.")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Export a model to ONNX, and verify it against PyTorch in ONNX Runtime at batch sizes 1, 2 and 3."""
    if out.exists() and not force:
        raise OutputError(f"--out {out} exists: --force replaces it.")
    from compressor.report import formatting
    from compressor.runs.export import export_checked

    asked = options.Asked(context)
    made = export_checked(asked.source(model), asked.inputs, out, asked.form)
    if quiet:
        return
    print(f"{out}: {made.arch}, {formatting.inputs(made.inputs)}, {formatting.size(out.stat().st_size)}")
    for note in made.notes:
        print(f"  {note}")
    if made.differences:
        worst = max(made.differences.values())
        print(f"ONNX Runtime matches PyTorch at batch {', '.join(made.differences)} (largest difference {worst:.1e})")
        print(f"The file takes {made.form}.")
