"""The application that commands are registered with, and the options of `compress` itself."""

from __future__ import annotations

import typer

from compressor.version import __version__

app = typer.Typer(
    name="compress",
    help="Make a trained PyTorch vision model smaller and faster, and prove it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit status: 0 done, 1 a budget was missed, 2 wrong usage or unusable input, 3 the target cannot be met, "
    "4 a check failed and nothing was published, 5 an internal error, 6 published without the ONNX file, 130 interrupted.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"compress {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", help="Print the version.", callback=_print_version, is_eager=True),
) -> None:
    pass
