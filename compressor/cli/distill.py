"""`compress distill --teacher t.pt`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from compressor.cli import options
from compressor.errors import UsageError

LESSON, MADE = "Teacher and student", "A student pruned from the teacher"


@options.command(
    options.DATA, options.RECIPE, options.SEED, options.READING, options.ONNX, options.FORM, options.LATENCY, options.RUN
)
def distill(
    context: typer.Context,
    teacher_: Annotated[
        str | None,
        typer.Option(
            "--teacher",
            metavar="MODEL",
            help="Teacher: checkpoint, run directory, torchvision:NAME or timm:NAME.",
            rich_help_panel=LESSON,
        ),
    ] = None,
    student: Annotated[
        str | None,
        typer.Option(
            "--student",
            "--model",
            metavar="MODEL",
            help="Student, likewise; by default the teacher, pruned to --rate.",
            rich_help_panel=LESSON,
        ),
    ] = None,
    student_arch: Annotated[
        str | None,
        typer.Option(help="Code that builds the student; without --student its weights are random.", rich_help_panel=LESSON),
    ] = None,
    student_arch_arg: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Keyword argument of that code. Repeatable.", rich_help_panel=LESSON),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Initialize the student at random, as papers do.", rich_help_panel=LESSON)
    ] = False,
    method: Annotated[
        str,
        typer.Option(
            help="Distillation method; `compress methods` lists them.",
            autocompletion=options.methods_of("distill"),
            rich_help_panel=LESSON,
        ),
    ] = "kd",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Setting of the method. Repeatable.", rich_help_panel=LESSON),
    ] = None,
    taps: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Student module whose features are matched; the ends of its stages by default. Repeatable.",
            rich_help_panel=LESSON,
        ),
    ] = None,
    teacher_taps: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="The same for the teacher.", rich_help_panel=LESSON)
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="Fraction of the teacher's MACs to remove; 0.5 by default.", rich_help_panel=MADE)
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Instead: macs=50%, params<=5M, size<=10MB, filters=40%.", rich_help_panel=MADE)
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Layers not to prune, for example 'head.*'.", rich_help_panel=MADE),
    ] = None,
    round_to: Annotated[
        int | None,
        typer.Option(help="Round widths to multiples of this; 8 by default where possible.", min=1, rich_help_panel=MADE),
    ] = None,
    repair: Annotated[
        bool,
        typer.Option(
            help="Re-estimate the consumers of pruned channels by least squares, if that helps.", rich_help_panel=MADE
        ),
    ] = True,
    arch: Annotated[
        str | None,
        typer.Option(help="Code that builds the teacher: file.py:NAME, package.module:NAME, torchvision:NAME or timm:NAME."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Output directory; runs/TEACHER-METHOD by default.")] = None,
    trust_pickle: options.Trust = False,
) -> None:
    """Distil a teacher into a smaller student, or networks into each other, and export a verified ONNX model with a report."""
    from compressor.checkpoint import parse_arch_args
    from compressor.methods import catalogue

    entry = catalogue.find(method, "distill")
    settings = catalogue.parse_settings(entry, set_ or [])
    if teacher_ is None and student_arch is None and arch is not None:
        raise UsageError("--arch builds the teacher, but there is no teacher: give --student-arch.")

    from compressor.runs.distill import Distilling, Wish, first_network, parse_goal, student_source
    from compressor.training.recipe import Recipe

    asked = options.Asked(context)
    given = student_source(student, student_arch, parse_arch_args(student_arch_arg or []), trust_pickle)
    if given is not None and teacher_ is None:
        given = replace(given, constants=asked.constants, input_range=asked.input_range)
    first = first_network(None if teacher_ is None else asked.source(teacher_), given)
    recipe = asked.recipe(Recipe.mutual if teacher_ is None else Recipe.taught)
    chosen, teachers = tuple(taps or ()), tuple(teacher_taps or ())
    wish = Wish(
        given, parse_goal(rate, target), entry.name, settings, fresh, chosen, teachers, tuple(keep or ()), round_to, repair
    )
    asked.show(Distilling(asked.order(first, recipe, entry.label), wish))
