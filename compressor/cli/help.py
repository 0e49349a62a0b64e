"""Help that fits on a screen and a half: at first the common options, and all of them with `--help-all`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.markup import escape
from typer.core import TyperCommand

ALL = f"{__name__}.all"  # context key: show everything
FORMER = {"--most"}  # old names that still work, but are not shown

# Options, by the names of their parameters, that a command with --help-all shows only there.
RARE = frozenset(
    (
        "size fit task mean std color max_value crop pad_to tile group workers arch_arg input_ input_range constant key ema "
        "trust_pickle force json quiet dry_run config debug momentum schedule milestones gamma warmup channels_last "
        "accumulate ema_decay label_smoothing cutout augment select patience teacher "
        "round_to most onnx dynamic onnx_batch latency_batches "
        "latency_threads latency_provider latency_runs residual heads "
        "sensitivity repair energy rank student_arch_arg taps teacher_taps dense"
    ).split()
)


class Command(TyperCommand):
    """A command whose help is shown as written, including brackets, and at first without its rare options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.help = escape(self.help) if self.help else self.help
        for param in self.params:
            if text := getattr(param, "help", None):
                param.help = escape(text)  # type: ignore[attr-defined]  # it has the attribute

    def format_help(self, ctx: Any, formatter: Any) -> None:
        has_more = any(param.name == "help_all" for param in self.params)
        with self._shown(everything=ctx.meta.get(ALL, False) or not has_more):
            super().format_help(ctx, formatter)

    @contextmanager
    def _shown(self, everything: bool) -> Iterator[None]:
        """Hide former names, and rare options unless `everything` is to be shown, while the help is printed."""
        before = [(param, param.hidden, param.opts) for param in self.params if hasattr(param, "hidden")]
        try:
            for param, hidden, names in before:
                param.hidden = hidden or (not everything and param.name in RARE)
                param.opts = [name for name in names if name not in FORMER]
            yield
        finally:
            for param, hidden, names in before:
                param.hidden, param.opts = hidden, names


def _print_all(context: typer.Context, wanted: bool) -> None:
    if wanted:
        context.meta[ALL] = True
        context.get_help()
        raise typer.Exit


HelpAll = Annotated[
    bool, typer.Option("--help-all", help="Show all options.", callback=_print_all, is_eager=True, show_default=False)
]
