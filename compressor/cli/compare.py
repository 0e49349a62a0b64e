"""`compress compare RUN RUN`, and `compress compare MODEL --methods sfp,magnitude --rates 0.3,0.5`."""

from __future__ import annotations

import json as json_
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from compressor.cli import options
from compressor.errors import NotExported, UsageError

if TYPE_CHECKING:
    from compressor.methods.catalogue import Value

CUT = "What to compare"


@options.command(
    options.DATA, options.RECIPE, options.TAUGHT, options.READING, options.ONNX, options.FORM, options.LATENCY, options.OUTPUT
)
def compare(
    context: typer.Context,
    model: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...|MODEL",
            help="Finished runs; or with --methods one model: checkpoint, run directory, torchvision:NAME or timm:NAME.",
            show_default=False,
        ),
    ],
    methods: Annotated[
        str | None,
        typer.Option(help="Prune the model with each of these methods; `compress methods` lists them.", rich_help_panel=CUT),
    ] = None,
    rates: Annotated[str, typer.Option(help="Fractions of the MACs to remove.", rich_help_panel=CUT)] = "0.3,0.5,0.7",
    seeds: Annotated[str, typer.Option(help="Random seeds, one run each.", rich_help_panel=CUT)] = "0",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="METHOD.NAME=VALUE", help="Setting of a method. Repeatable.", rich_help_panel=CUT),
    ] = None,
    residual: Annotated[
        Literal["coupled", "scatter"],
        typer.Option(help="Prune the channels of a residual stream together, or keep its width.", rich_help_panel=CUT),
    ] = "coupled",
    dense: Annotated[
        bool | None,
        typer.Option(
            help="Also fine-tune the unpruned network, as a baseline; on by default with epochs.", rich_help_panel=CUT
        ),
    ] = None,
    device: options.Device = "auto",
    out: Annotated[
        Path | None,
        typer.Option(help="Output directory; runs/compare by default, or runs/MODEL-compare with --methods."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Rerun everything, including finished runs.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the runs without running them.")] = False,
    json: options.Json = False,
) -> None:
    """Compare finished runs: one table, and plots of scores against cost with their Pareto fronts.

    With --methods, prune one model with each of them on equal terms, and compare the results. Finished runs are kept. If a run
    fails the others continue; the exit status is then that of the failed run, the highest if there are several.
    """
    asked = options.Asked(context)
    if methods is None:
        _check_alone(context)
        try:
            asked.side_by_side([Path(run) for run in model], out)
        except UsageError as error:
            more = "" if len(model) > 1 else "\nTo prune one model with several methods, list them with --methods."
            raise UsageError(f"{error}{more}") from None
        return
    if len(model) > 1:
        raise UsageError(
            f"--methods prunes one MODEL, but {len(model)} were given: {', '.join(model[:3])}. "
            "To compare finished runs, omit --methods."
        )
    names = [name.strip() for name in methods.split(",")]
    settings = _settings(names, set_ or [])
    shares, numbers = options.numbers("--rates", rates, "write fractions, as in 0.3,0.5"), _seeds(seeds)

    from compressor.runs.compare import Series
    from compressor.training.recipe import Recipe

    alike = asked.recipe(Recipe.paper)  # without the cutout of a method's paper, so that it is the same for all
    series = Series(
        asked.order(asked.source(model[0]), alike, "compare"),
        methods=names,
        rates=shares,
        seeds=numbers,
        settings=settings,
        residual=residual,
        dense=dense,
    )
    if dry_run:
        runs = [{"run": trial.name, "epochs": alike.epochs, "state": trial.state} for trial in series.trials]
        if json:
            options.print_json(json_.dumps(runs, indent=2))
        else:
            print("\n".join(f"{run['run']}: {run['state']}" for run in runs))
        return
    found = series.run()
    asked.show_comparison(found, series.out)
    if found.failures:
        told = ", ".join(gap.run for gap in found.failures)
        print(
            f"error: {len(found.failures)} of {len(series.trials)} runs failed ({told}); see the table for the reasons.",
            file=sys.stderr,
        )
        raise typer.Exit(max(gap.status or 0 for gap in found.failures))
    lost = [point.run for point in found.points if point.size_bytes is None]
    if lost and context.params["onnx"]:
        raise NotExported(
            f"{len(lost)} of {len(series.trials)} runs have no ONNX file ({', '.join(lost)}): the warnings in their reports "
            "have the reasons.\n--no-onnx does without the files."
        )


def _check_alone(context: typer.Context) -> None:
    """Raise UsageError for options that only apply to new runs."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = [name for name, source in sources.items() if source and source.name == "COMMANDLINE"]
    if useless := [name for name in given if name not in {"model", "out", *options.OUTPUT, "config", "debug"}]:
        names = ", ".join(f"--{name.rstrip('_').replace('_', '-')}" for name in useless)
        raise UsageError(f"{names}: only with --methods; finished runs are compared without rerunning them.")


def _seeds(text: str) -> list[int]:
    if not all(part.strip().isdecimal() for part in text.split(",")):
        raise UsageError(f"--seeds {text!r} is not a list of whole numbers: write them like 0,1,2.")
    return [int(part) for part in text.split(",")]


def _settings(methods: list[str], pairs: list[str]) -> dict[str, dict[str, Value]]:
    """`["sfp.mask_norms=false"]` -> the settings of each method. Raises UsageError."""
    from compressor.methods import catalogue

    own: dict[str, list[str]] = {name: [] for name in methods}
    for pair in pairs:
        method = max((name for name in own if pair.startswith(f"{name}.")), key=len, default=None)
        if method is None:
            raise UsageError(f"--set {pair!r} is not of the form METHOD.NAME=VALUE with a METHOD of --methods {','.join(own)}.")
        own[method].append(pair.removeprefix(f"{method}."))
    return {name: catalogue.parse_settings(catalogue.find(name, "prune"), texts) for name, texts in own.items()}
