"""`compress verify RUN`."""

from __future__ import annotations

import json as json_
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from compressor.cli import options
from compressor.errors import VerificationFailed

WORDS = {True: "ok", False: "FAILED", None: "skipped"}


@options.command(options.DATA, options.READING)
def verify(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a finished run.")],
    device: options.Device = "auto",
    json: options.Json = False,
) -> None:
    """Check a finished run: its files, its costs, ONNX against PyTorch, and its scores if the data are there."""
    from compressor.runs.verify import verify as checked

    asked = options.Asked(context)
    checks = checked(run, asked.source(str(run)), asked.images, device)
    if json:
        options.print_json(json_.dumps([asdict(check) for check in checks], indent=2))
    else:
        for check in checks:
            print(f"{WORDS[check.passed]:<7}  {check.name}: {check.text}")
    failed = [check.name for check in checks if check.passed is False]
    if failed:
        raise VerificationFailed(f"{run} is not what its report says: {', '.join(failed)}.\nRerun the compression.")
