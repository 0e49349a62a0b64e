"""`compress check RUN --max-drop 1 --min-cut 0.4 --max-latency 5ms`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from compressor.cli import options

BUDGETS = "Budgets"


@options.command(options.OUTPUT)
def check(
    context: typer.Context,
    report: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a finished run, or its report.json.")],
    budget: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help="macs<=50% of the original's, params<=5M, size<=10MB, weights<=4MB, latency@8<=20ms, drop<=1, "
            "macs<=baseline+2%; any score in the report: miou>=70%, psnr>=original-0.3dB. Repeatable. Begin with warn:, "
            "error: or off: to set the level; only a missed latency warns by default.",
            rich_help_panel=BUDGETS,
        ),
    ] = None,
    max_drop: Annotated[
        str | None,
        typer.Option(
            metavar="POINTS",
            help="Maximum loss of the headline score, in percentage points or its unit.",
            rich_help_panel=BUDGETS,
        ),
    ] = None,
    min_cut: Annotated[
        str | None,
        typer.Option(metavar="SHARE", help="Minimum fraction of the MACs removed: 0.4 or 40%.", rich_help_panel=BUDGETS),
    ] = None,
    max_latency: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Maximum latency at the smallest batch: 5ms, or 80% of the original. Only warns; "
            "--budget 'error: latency<=5ms' fails.",
            rich_help_panel=BUDGETS,
        ),
    ] = None,
    max_size: Annotated[
        str | None, typer.Option(metavar="BYTES", help="Maximum size of the ONNX file: 10MB, or 50%.", rich_help_panel=BUDGETS)
    ] = None,
    max_params: Annotated[
        str | None, typer.Option(metavar="COUNT", help="Maximum number of parameters: 5M, or 50%.", rich_help_panel=BUDGETS)
    ] = None,
    max_macs: Annotated[
        str | None, typer.Option(metavar="COUNT", help="Maximum MACs: 40M, or 50%.", rich_help_panel=BUDGETS)
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Earlier run, or its report.json, to compare with.", rich_help_panel=BUDGETS),
    ] = None,
    no_worse: Annotated[
        str | None,
        typer.Option(
            metavar="PERCENT",
            help="2%: MACs, parameters, size and latency at most 2 % above the baseline, the score at most 2 points below.",
            rich_help_panel=BUDGETS,
        ),
    ] = None,
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="Write JUnit XML with a test case per budget.")] = None,
    metrics: Annotated[Path | None, typer.Option(metavar="FILE", help="Write all figures in OpenMetrics format.")] = None,
) -> None:
    """Check a finished run against budgets, in CI; the exit status is 1 if one is missed. Needs neither PyTorch nor data.

    What was not measured counts as missed. On GitHub it annotates the build, and writes the summary and outputs of the step.
    """
    from compressor.report import check_output, gate, read_report
    from compressor.report.budgets import collect

    json, quiet = context.params["json"], context.params["quiet"]
    earlier = None if baseline is None else read_report(baseline)
    budgets = collect(
        budget or [],
        max_drop=max_drop,
        min_cut=min_cut,
        max_latency=max_latency,
        max_size=max_size,
        max_params=max_params,
        max_macs=max_macs,
        no_worse=no_worse,
        baseline=earlier,
    )
    run = read_report(report)
    checked = gate.check(run, budgets, earlier)
    check_output.print_check(checked, Console(stderr=json or quiet), quiet)
    if json:
        options.print_json(check_output.check_to_json(run, checked))
    check_output.tell_github(run, checked, os.environ, sys.stderr if json else sys.stdout)
    if junit is not None:
        check_output.write_junit(junit, run, checked)
    if metrics is not None:
        check_output.write_metrics(metrics, run, checked)
    if not checked.passed:
        raise typer.Exit(1)
