"""`compress distill --teacher t.pt`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compressor.cli import options
from compressor.errors import UsageError

LESSON, MADE = "Who teaches whom", "A student made of the teacher"


@options.command(options.DATA, options.RECIPE, options.SEED, options.READING, options.RUN)
def distill(
    context: typer.Context,
    teacher_: Annotated[
        str | None,
        typer.Option(
            "--teacher",
            metavar="MODEL",
            help="What is learned from: a checkpoint, a run directory, torchvision:NAME or timm:NAME.",
            rich_help_panel=LESSON,
        ),
    ] = None,
    student: Annotated[
        str | None,
        typer.Option(
            "--student",
            "--model",
            metavar="MODEL",
            help="What learns: likewise. Without it and --student-arch, the teacher made smaller.",
            rich_help_panel=LESSON,
        ),
    ] = None,
    student_arch: Annotated[
        str | None,
        typer.Option(help="The code that builds the student; without --student, it has new weights.", rich_help_panel=LESSON),
    ] = None,
    student_arch_arg: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="An argument for that code. Repeatable.", rich_help_panel=LESSON),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Give the student new weights, as papers do.", rich_help_panel=LESSON)
    ] = False,
    method: Annotated[str, typer.Option(help="See `compress methods`.", rich_help_panel=LESSON)] = "kd",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A setting of the method. Repeatable.", rich_help_panel=LESSON),
    ] = None,
    taps: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A module of the student whose features are compared; by default where its stages end. Repeatable.",
            rich_help_panel=LESSON,
        ),
    ] = None,
    teacher_taps: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Likewise of the teacher.", rich_help_panel=LESSON)
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="Share of the teacher's MACs to remove; 0.5 by default.", rich_help_panel=MADE)
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Instead: macs=50%, params<=5M, size<=10MB, filters=40%.", rich_help_panel=MADE)
    ] = None,
    keep: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Layers to leave whole, as in 'head.*'.", rich_help_panel=MADE)
    ] = None,
    round_to: Annotated[
        int | None,
        typer.Option(help="Widths are multiples of this; by default of 8 where they can be.", min=1, rich_help_panel=MADE),
    ] = None,
    repair: Annotated[
        bool, typer.Option(help="Refit what reads cut channels, where held-out images say that it helps.", rich_help_panel=MADE)
    ] = True,
    arch: Annotated[
        str | None,
        typer.Option(help="The teacher's code: torchvision:NAME, timm:NAME, path/to/file.py:NAME, package.module:NAME."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Directory of the results; runs/TEACHER-METHOD by default.")] = None,
    trust_pickle: options.Trust = False,
) -> None:
    """Have a teacher train a smaller student, or networks train each other, and write a verified compact ONNX model."""
    from compressor.checkpoint import parse_arch_args
    from compressor.methods import catalogue

    entry = catalogue.find(method, "distill")
    settings = catalogue.parse_settings(entry, set_ or [])
    if teacher_ is None and student_arch is None and arch is not None:
        raise UsageError("--arch is the teacher's code, and there is no teacher: give --student-arch.")

    from compressor.runs.distill import Distilling, Wish, first_network, parse_goal, student_source
    from compressor.training.recipe import Recipe

    given = student_source(student, student_arch, parse_arch_args(student_arch_arg or []), trust_pickle)
    asked = options.Asked(context)
    first = first_network(None if teacher_ is None else asked.source(teacher_), given)
    recipe = asked.recipe(Recipe.mutual if teacher_ is None else Recipe.taught)
    chosen, teachers = tuple(taps or ()), tuple(teacher_taps or ())
    wish = Wish(
        given, parse_goal(rate, target), entry.name, settings, fresh, chosen, teachers, tuple(keep or ()), round_to, repair
    )
    asked.show(Distilling(asked.order(first, recipe, entry.name), wish))
