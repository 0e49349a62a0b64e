"""`compress` in its own process, forked from a server that has already done the slow imports.

The process of the tests is not forked, because threads of torch do not always survive that.
"""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["warm"])
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH")))
)  # of `warm`
sys.warnoptions.append("ignore:resource_tracker")  # warns about resources that killed processes did not release
STEPS = {"open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate"}  # of Python's audit events


def start(folder: Path, *arguments: str, die_at: int | None = None) -> ForkServerProcess:
    """Start `compress ARGUMENTS` in `folder`, as the leader of a process group. Its output goes to `stdout` and `stderr` there.
    It kills itself before file operation `die_at` below `--out`. The number of file operations and the CPU seconds are written
    to `used`.
    """
    process = SERVER.Process(target=_compress, args=(folder, arguments, die_at))
    process.start()
    return process


def count_steps(below: Path, stop_at: int | None, stop: Callable[[], None]) -> Callable[[], int]:
    """From now on, call `stop` before file operation `stop_at` of this process below a folder.

    Returns a function that returns the number of operations so far.
    """
    count = 0

    def step(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event not in STEPS:
            return
        inside = event in {"os.remove", "os.rmdir"} and arguments[-1] != -1  # rmtree passes names relative to a folder
        if inside or any(str(below) in os.fsdecode(path) for path in arguments if isinstance(path, str | bytes | os.PathLike)):
            count += 1
            if count == stop_at:
                stop()

    sys.addaudithook(step)
    return lambda: count


def kill() -> None:
    """Kill this process and its children."""
    os.killpg(0, signal.SIGKILL)


def _compress(folder: Path, arguments: tuple[str, ...], die_at: int | None) -> None:
    os.setpgid(0, 0)
    multiprocessing.set_start_method(None, force=True)  # as in a program that was not forked
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs, as in CI, ignore Ctrl-C
    os.chdir(folder)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = ["compress", *arguments]
    steps = count_steps(Path(arguments[arguments.index("--out") + 1]), die_at, kill)
    from compressor.cli import main

    try:
        main()
    finally:
        Path("used").write_text(f"{steps()} {time.process_time()}")
