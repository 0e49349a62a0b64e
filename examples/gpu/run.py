"""Smoke tests, throughput, latency and the papers' recipe on one GPU, in one call of a few minutes.

    examples/gpu/run.sh [SECONDS] [--out DIR] [--assets DIR] [--device cpu] [--tiny]

Writes DIR/rows.jsonl, one JSON row a measurement (see rows.py), as soon as each is there, and DIR/log.txt. Every program runs
in a process of its own and is killed at its limit; what fails is a row with its error, and the next one begins. The sections,
in order: smoke.py (with latency.py's preparations beside it), throughput.py, latency.py, and recipe.py for the rest of the
time. ASSETS holds what is too large for the repository: cifar10.tar.gz, resnet20-12fca82f.th, resnet56-4bfd9763.th; what is
missing is replaced by noise and random weights, or recorded as unavailable. The network is not used.

`docs/generate.py` writes docs/gpu.md from examples/gpu/results/rows.jsonl.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rows import MARK, Row, Status, parse

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SECONDS = 480
SMOKE, PREPARATION = 90.0, 150.0  # seconds; both begin together
SHARES = {"throughput": 0.14, "latency": 0.25}  # of all seconds; recipe.py has the rest
MOST = 60.0  # seconds of one program of these
LEFT_FOR_THE_END = 8.0  # seconds
TAIL = 1500  # characters of the output of a program that failed


@dataclass(frozen=True)
class Task:
    """A program of this folder, and what it measures."""

    section: str
    program: str
    arguments: tuple[str, ...]
    limit: float  # seconds

    @property
    def name(self) -> str:
        """Of its row, when it ends without one."""
        return ", ".join(argument for argument in self.arguments if not argument.startswith("--")) or self.program


class Results:
    """rows.jsonl and log.txt, written line by line by several threads."""

    def __init__(self, out: Path) -> None:
        """Raises SystemExit when results lie there."""
        out.mkdir(parents=True, exist_ok=True)
        if (out / "rows.jsonl").exists():
            raise SystemExit(f"{out}/rows.jsonl exists: give another --out.")
        self._rows, self._log = out / "rows.jsonl", out / "log.txt"
        self._rows.touch()
        self._lock, self.count = threading.Lock(), 0

    def add(self, row: Row) -> None:
        with self._lock:
            self._write(self._rows, row.line)
            self.count += 1
            print(f"{row.section:10} {row.status:11} {row.seconds:6.1f} s  {row.name}", flush=True)

    def log(self, line: str) -> None:
        with self._lock:
            self._write(self._log, line)

    @staticmethod
    def _write(path: Path, line: str) -> None:
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


class Runner:
    """Runs tasks. `common` are the arguments that all programs take."""

    def __init__(self, results: Results, common: Sequence[str]) -> None:
        self.results, self.common = results, common
        self.environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE)]), "PYTHONUNBUFFERED": "1"}

    def all(self, tasks: Sequence[Task], jobs: int, deadline: float) -> None:
        """At most `jobs` at a time. Those that have not begun at `deadline` are rows that say so."""
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(lambda task: self.one(task, deadline), tasks))

    def one(self, task: Task, deadline: float) -> None:
        limit = min(task.limit, deadline - time.monotonic())
        if limit <= 1:
            self._add(task, "not run", 0.0, "no time was left")
            return
        began, rows, tail, late = time.monotonic(), 0, "", threading.Event()
        command = [sys.executable, str(HERE / task.program), *task.arguments, *self.common]
        process = subprocess.Popen(
            command, cwd=ROOT, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", start_new_session=True,
        )  # fmt: skip

        def kill() -> None:
            late.set()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

        timer = threading.Timer(limit, kill)
        timer.start()
        with process:
            for line in process.stdout or ():
                if line.startswith(MARK):
                    try:
                        self.results.add(parse({"section": task.section, **json.loads(line.removeprefix(MARK))}))
                        rows += 1
                        continue
                    except ValueError as error:
                        line = f"{line.rstrip()}: {error}\n"
                self.results.log(f"{task.name}: {line.rstrip()}")
                tail = (tail + line)[-TAIL:]
        timer.cancel()
        status = process.returncode
        seconds = time.monotonic() - began
        if late.is_set():
            self._add(task, "timed out", seconds, f"killed after {limit:.0f} s; {rows} rows were there. {tail}")
        elif status or not rows:
            self._add(task, "failed", seconds, f"exit status {status}, {rows} rows. {tail}")

    def _add(self, task: Task, status: Status, seconds: float, error: str) -> None:
        self.results.add(Row(task.section, task.name, status, round(seconds, 2), {}, error))


def expected() -> list[tuple[str, str]]:
    """Section and name of each row of a whole run."""
    import latency
    import prepare
    import recipe
    import smoke
    import throughput

    return [
        *(("machine", name) for name in prepare.NAMES),
        *(("smoke", name) for name in smoke.CASES),
        *(("throughput", name) for name in throughput.NAMES),
        *(("latency", row) for name in latency.NETWORKS for row in latency.timings(name)),
        *(("recipe", name) for name in recipe.rows()),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seconds", type=float, nargs="?", default=SECONDS, help=f"for all of it; {SECONDS} by default")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="where rows.jsonl and log.txt go")
    parser.add_argument("--assets", type=Path, help="the folder of images and checkpoints")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="as little of everything as shows that it works")
    parser.add_argument("--jobs", type=int, default=8, help="smoke cases at a time")
    options = parser.parse_args()
    began = time.monotonic()
    deadline = began + options.seconds - LEFT_FOR_THE_END
    results = Results(options.out)
    with tempfile.TemporaryDirectory(prefix="compress-gpu-") as work:
        common = ["--work", work, "--device", options.device, *["--tiny"] * options.tiny]
        run = Runner(results, common)
        if options.tiny:
            run.environment["OMP_NUM_THREADS"] = "1"  # several processes share a few cores
        assets = ("--assets", str(options.assets.resolve())) if options.assets else ()
        run.one(Task("machine", "prepare.py", assets, 120), deadline)
        sys.path.insert(0, str(ROOT))
        from latency import TINY  # it imports torch, and the package

        rows = expected()
        networks = dict.fromkeys(name.split()[0] for section, name in rows if section == "latency")
        if options.tiny:
            networks = {TINY: None}
        # To start a process takes longer than tiny networks do: one prepares and times them.
        kinds = ("prepare", "time") if options.tiny else ("prepare",)
        preparing = [
            Task("latency", "latency.py", tuple(f"{kind} {name}" for kind in kinds), options.seconds) for name in networks
        ]
        cases = [name for section, name in rows if section == "smoke"]
        processes = options.jobs if options.tiny else len(cases)  # to start one takes longer than a tiny case
        smoke = [Task("smoke", "smoke.py", tuple(cases[i::processes]), options.seconds) for i in range(processes)]
        now = time.monotonic()
        limits = (deadline, deadline) if options.tiny else (now + SMOKE, now + PREPARATION)
        with ThreadPoolExecutor(1) as beside:
            prepared = beside.submit(run.all, preparing, len(preparing), min(limits[1], deadline))
            run.all(smoke, options.jobs, min(limits[0], deadline))
            prepared.result()
        measured = [name for section, name in rows if section == "throughput"]
        if options.tiny:
            measured = ["train resnet20", "load 32 pixels from files"]
        most = options.seconds if options.tiny else MOST
        limit = time.monotonic() + SHARES["throughput"] * options.seconds
        tasks = [tuple(measured)] if options.tiny else [(name,) for name in measured]  # a process each, to be stopped alone
        run.all([Task("throughput", "throughput.py", names, most) for names in tasks], 1, min(limit, deadline))
        limit = time.monotonic() + SHARES["latency"] * options.seconds
        timing = [] if options.tiny else [Task("latency", "latency.py", (f"time {name}",), most) for name in networks]
        run.all(timing, 1, min(limit, deadline))
        left = max(0.0, deadline - time.monotonic())
        run.one(Task("recipe", "recipe.py", ("--seconds", f"{left:.0f}"), left), deadline)
    print(f"{results.count} rows in {options.out}/rows.jsonl, {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
