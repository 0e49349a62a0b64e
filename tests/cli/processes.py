"""`compress` as a process of its own. The processes are forked from one that has torch imported and has exported a network
once, which takes ten seconds; after that each begins at once."""

import multiprocessing
import os
import sys
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from unittest.mock import patch


def start(folder: Path, *arguments: str) -> ForkServerProcess:
    """Begin `compress ARGUMENTS` in `folder`; what it prints goes to `stdout` and `stderr` there."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["warm"])
    process = context.Process(target=_compress, args=(folder, arguments))
    with patch.dict(os.environ, PYTHONPATH=str(Path(__file__).parent)):  # where `warm` is
        process.start()
    return process


def _compress(folder: Path, arguments: tuple[str, ...]) -> None:
    os.chdir(folder)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = ["compress", *arguments]
    from compressor.cli import main

    main()
