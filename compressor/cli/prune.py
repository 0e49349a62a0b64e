"""`compress prune MODEL --rate 0.5`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from compressor.cli import options
from compressor.errors import UsageError


class Residual(StrEnum):
    coupled = "coupled"
    scatter = "scatter"


class Heads(StrEnum):
    width = "width"
    whole = "whole"


class Optimizer(StrEnum):
    sgd = "sgd"
    adamw = "adamw"


class Schedule(StrEnum):
    cosine = "cosine"
    step = "step"


class Amp(StrEnum):
    auto = "auto"
    none = "none"
    bf16 = "bf16"
    fp16 = "fp16"


CUT, TRAINING = "What to cut", "Training"


@options.answers
def prune(
    model: options.Model,
    rate: Annotated[
        float | None, typer.Option(help="Share of the MACs to remove, for example 0.5.", rich_help_panel=CUT)
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Instead: macs=50%, params<=5M, size<=10MB, filters=40%.", rich_help_panel=CUT)
    ] = None,
    method: Annotated[str, typer.Option(help="See `compress methods`.", rich_help_panel=CUT)] = "magnitude",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A setting of the method. Repeatable.", rich_help_panel=CUT),
    ] = None,
    keep: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Layers to leave whole, as in 'head.*'.", rich_help_panel=CUT)
    ] = None,
    round_to: Annotated[
        int | None,
        typer.Option(help="Widths are multiples of this; by default of 8 where they can be.", min=1, rich_help_panel=CUT),
    ] = None,
    most: Annotated[float, typer.Option(help="At most this share of one group goes.", rich_help_panel=CUT)] = 0.95,
    residual: Annotated[
        Residual, typer.Option(help="Cut a stream's channels together, or keep it wide.", rich_help_panel=CUT)
    ] = Residual.coupled,
    heads: Annotated[
        Heads, typer.Option(help="Make the heads of attention narrower, or cut whole ones.", rich_help_panel=CUT)
    ] = Heads.width,
    sensitivity: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Cut groups that lose little first: sensitivity.csv of `compress sensitivity`.",
            rich_help_panel=CUT,
        ),
    ] = None,
    data: options.DataSpec = None,
    size: options.Size = None,
    mean: options.Mean = None,
    std: options.Std = None,
    workers: options.Workers = 0,
    epochs: Annotated[
        int | None, typer.Option(help="Epochs of fine-tuning; 10 when there are data.", rich_help_panel=TRAINING)
    ] = None,
    batch_size: Annotated[int, typer.Option(rich_help_panel=TRAINING)] = 128,
    lr: Annotated[float | None, typer.Option(help="0.02 for SGD, 0.0005 for AdamW.", rich_help_panel=TRAINING)] = None,
    optimizer: Annotated[Optimizer, typer.Option(rich_help_panel=TRAINING)] = Optimizer.sgd,
    momentum: Annotated[float, typer.Option(rich_help_panel=TRAINING)] = 0.9,
    weight_decay: Annotated[
        float | None, typer.Option(help="0.0001 for SGD, 0.05 for AdamW.", rich_help_panel=TRAINING)
    ] = None,
    schedule: Annotated[Schedule, typer.Option(rich_help_panel=TRAINING)] = Schedule.cosine,
    warmup: Annotated[float, typer.Option(help="Epochs of linear warm-up.", rich_help_panel=TRAINING)] = 0.0,
    amp: Annotated[Amp, typer.Option(help="Mixed precision; auto is bf16 on a GPU.", rich_help_panel=TRAINING)] = Amp.auto,
    channels_last: Annotated[
        bool | None, typer.Option(help="Memory layout; the default is to use it on a GPU.", rich_help_panel=TRAINING)
    ] = None,
    accumulate: Annotated[int, typer.Option(help="Batches to one step.", rich_help_panel=TRAINING)] = 1,
    ema_decay: Annotated[
        float | None, typer.Option(help="Keep averaged weights, for example 0.999.", rich_help_panel=TRAINING)
    ] = None,
    label_smoothing: Annotated[float, typer.Option(rich_help_panel=TRAINING)] = 0.0,
    seed: Annotated[int, typer.Option(rich_help_panel=TRAINING)] = 0,
    arch: options.Arch = None,
    arch_arg: options.ArchArg = None,
    input_: options.Input = None,
    key: options.Key = None,
    ema: options.Ema = False,
    trust_pickle: options.Trust = False,
    device: options.Device = "auto",
    out: Annotated[Path | None, typer.Option(help="Directory of the results; runs/MODEL-METHOD by default.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a run that is there.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was interrupted.")] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Remove channels, fine-tune, and write a verified compact ONNX model with a report."""
    from compressor import budget, catalogue

    if (rate is None) == (target is None):
        raise UsageError("Say how much is to go: give either --rate 0.5 (share of the MACs) or --target, see --help.")
    goal = budget.parse_rate(rate) if rate is not None else budget.parse_target(str(target))
    entry = catalogue.find(method, "prune")
    settings = catalogue.parse_settings(entry, set_ or [])
    inputs = options.inputs(input_)

    from compressor.recipe import Recipe
    from compressor.report import print_report, to_json
    from compressor.run import Pruning, Wish

    recipe = Recipe(
        epochs=epochs if epochs is not None else (10 if data else 0),
        batch_size=batch_size,
        lr=lr,
        optimizer=optimizer.value,
        momentum=momentum,
        weight_decay=weight_decay,
        schedule=schedule.value,
        warmup=warmup,
        amp=amp.value,
        channels_last=channels_last,
        accumulate=accumulate,
        ema_decay=ema_decay,
        label_smoothing=label_smoothing,
        seed=seed,
    )
    console = options.console(quiet, json)
    run = Pruning(
        options.source(model, arch, arch_arg, key, ema, trust_pickle),
        Wish(goal, method, settings, residual.value, heads.value, tuple(keep or ()), round_to, most, sensitivity),
        options.images(data, size, mean, std, workers),
        recipe,
        out=out or Path("runs") / f"{Path(model.rpartition(':')[2]).stem}-{method}",
        device=device,
        inputs=inputs,
        console=console,
        force=force,
        resume=resume,
    )
    report = run.run()
    if json:
        print(to_json(report))
    elif console is not None:
        print_report(report, console)
        console.print(f"\nResults are in {run.out}: model.onnx, model.safetensors + plan.json, report.html", highlight=False)
