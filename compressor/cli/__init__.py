"""The command line: parse arguments, call the library, print. No logic, and no import of torch before a command needs it.

Imports: everything.
"""

from __future__ import annotations

import os
import signal
import sys

from compressor.cli.app import app as app
from compressor.cli.check import check
from compressor.cli.compare import compare
from compressor.cli.demo import demo
from compressor.cli.distill import distill
from compressor.cli.evaluate import evaluate
from compressor.cli.export import export
from compressor.cli.help import Command
from compressor.cli.inspect import inspect
from compressor.cli.lowrank import lowrank
from compressor.cli.methods import methods
from compressor.cli.prune import prune
from compressor.cli.quantize import quantize
from compressor.cli.report import report
from compressor.cli.run import run
from compressor.cli.sensitivity import sensitivity
from compressor.cli.verify import verify
from compressor.training import distributed

app.command(cls=Command)(demo)
app.command(cls=Command)(inspect)
app.command(cls=Command)(sensitivity)
app.command(cls=Command)(prune)
app.command(cls=Command)(lowrank)
app.command(cls=Command)(distill)
app.command(cls=Command)(quantize)
app.command(cls=Command)(run)
app.command(cls=Command)(check)
app.command(cls=Command)(compare)
app.command(cls=Command)(report)
app.command("eval", cls=Command)(evaluate)
app.command(cls=Command)(export)
app.command(cls=Command)(verify)
app.command(cls=Command)(methods)


def main() -> None:
    """`compress`, as a process. SIGTERM, by which schedulers stop a job, is handled like Ctrl-C, by the first process alone."""
    if distributed.speaks():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        signal.signal(signal.SIGALRM, signal.default_int_handler)  # see _interrupt_again
        sys.unraisablehook = _interrupt_again
        os.register_at_fork(after_in_child=_leave_all_to_the_first)
    else:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    app()


def _leave_all_to_the_first() -> None:
    """A terminal sends Ctrl-C to the data loader processes, too. Their parent process ends them, and it alone prints errors."""
    for number in (signal.SIGINT, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)
    sys.excepthook = lambda *_: None


def _interrupt_again(ignored: sys.UnraisableHookArgs) -> None:
    """Python ignores exceptions raised while it starts a process or deletes an object: Ctrl-C must not be lost there.

    Other ignored exceptions are of no use to a user, such as those of objects that Ctrl-C left half initialized.
    """
    if issubclass(ignored.exc_type, KeyboardInterrupt):
        signal.setitimer(signal.ITIMER_REAL, 0.1)
