"""`compress` as a process of its own. It is spawned, not forked: threads of torch do not always survive a fork."""

import multiprocessing
import os
import signal
import sys
from multiprocessing.context import SpawnProcess
from pathlib import Path


def start(folder: Path, *arguments: str) -> SpawnProcess:
    """Begin `compress ARGUMENTS` in `folder`; what it prints goes to `stdout` and `stderr` there."""
    process = multiprocessing.get_context("spawn").Process(target=_compress, args=(folder, arguments))
    process.start()
    return process


def _compress(folder: Path, arguments: tuple[str, ...]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs, as in CI, ignore Ctrl-C
    os.chdir(folder)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = ["compress", *arguments]
    from compressor.cli import main

    main()
