"""Kill runs of `compress` at random moments, rerun them until they are done, and compare with uninterrupted runs.

    python tests/kills.py --kills 200 --seed 0

SIGKILL cannot be caught, so a run must be safe against it at any time. Most kills come at a random time of the run; every
fourth comes before a random file operation, because publishing takes only milliseconds. A rerun may be killed again. Half of
the runs replace an older result.

After each kill the directory must contain nothing, the complete old result or the complete new one, or, during publishing,
files of only one of them. In the end, model.onnx, model.safetensors, plan.json and config.toml must equal those of an
uninterrupted run bit for bit, and report.json except for times.
"""

import argparse
import json
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from processes import start

from compressor.runs.run_directory import RESULTS, RunDirectory

EPOCHS = 3
TRAINED = ("--arch", "net.py:Net", "--data", "digits", "--epochs", str(EPOCHS), "--batch-size", "32")
CASES = {
    "sfp": ("prune", "net.pt", *TRAINED, "--rate", "0.4", "--method", "sfp", "--ema-decay", "0.9"),
    "svd": ("lowrank", "net.pt", *TRAINED, "--rate", "0.3"),
    "kd": ("distill", "--teacher", "net.pt", *TRAINED, "--rate", "0.5"),
}
SAME = ("model.onnx", "model.safetensors", "plan.json", "config.toml")
AGAIN = 0.5  # probability that a rerun is killed again
AIMED = 0.25  # probability that a kill comes at a file operation
TIMES = {"seconds", "times", "images_per_second", "latency", "created", "command", "verdict", "teaching"}


@dataclass(frozen=True)
class Kill:
    """What the run was doing when it was killed, which results were there, and how the run continues."""

    case: str
    replacing: bool
    during: str
    there: str
    then: str


@dataclass(frozen=True)
class Undisturbed:
    """An uninterrupted run: its results, its CPU seconds, and its number of file operations."""

    results: dict[str, bytes]
    seconds: float
    steps: int


class Killer:
    """Kills runs of `cases` in `folder`, which contains net.py and net.pt."""

    def __init__(self, folder: Path, seed: int, cases: Sequence[str] = tuple(CASES)) -> None:
        self.folder, self.chance, self.cases, self.runs = folder, random.Random(seed), cases, 0
        self.whole = {case: self._undisturbed(case) for case in cases}

    def kill(self, count: int) -> list[Kill]:
        """Kill `count` times or a few more. Raises AssertionError if any result is lost, mixed or different."""
        kills: list[Kill] = []
        while len(kills) < count:
            case = self.cases[self.runs % len(self.cases)]
            kills += self._trial(Path(f"run-{self.runs}") / "half", case, replacing=self.runs // len(self.cases) % 2 == 1)
            self.runs += 1
        return kills

    def _trial(self, out: Path, case: str, replacing: bool) -> Iterator[Kill]:
        """One run: killed, rerun, possibly killed again, until it is done. `out` is the option of the command line."""
        whole, place = self.whole[case], self.folder / out
        place.mkdir(parents=True)
        for name, content in older(whole.results).items() if replacing else ():
            (place / name).write_bytes(content)
        options, killed = ("--force",) * replacing, False
        while True:
            status = self._attempt(
                [*CASES[case], "--out", str(out), *options], whole, doomed=not killed or self.chance.random() < AGAIN
            )
            told = (self.folder / "stderr").read_text(encoding="utf-8")
            if status == -signal.SIGKILL:
                yield self._looked_at(place, case, replacing)
                killed, options = True, self.chance.choice([("--resume",), ("--resume",), ()])
            elif status == 2 and "--resume continues it" in told and not options:
                options = ("--resume",)
            elif status == 2 and "--force" in told and "--force" not in options:
                options = ("--force",)  # only the old result is left, or the run is done
            else:
                assert status == 0, told
                break
        found = read(place)
        assert {name: found[name] for name in SAME} == {name: whole.results[name] for name in SAME}
        assert timeless(found) == timeless(whole.results)
        assert not list(place.glob("state/*.pt")), "the training state was not deleted"
        shutil.rmtree(place.parent)

    def _attempt(self, arguments: Sequence[str], whole: Undisturbed, doomed: bool) -> int | None:
        """Returns the exit status."""
        if doomed and self.chance.random() < AIMED:
            process = start(self.folder, *arguments, die_at=self.chance.randint(1, whole.steps))
            process.join()
        else:
            process = start(self.folder, *arguments)
            if doomed:
                kill_after(process, self.chance.uniform(0, whole.seconds))
            process.join()
        return process.exitcode

    def _looked_at(self, place: Path, case: str, replacing: bool) -> Kill:
        """The state after a kill. Raises AssertionError if it is not a complete result."""
        found, new = read(place), self.whole[case].results
        old = older(new) if replacing else {}
        there = "nothing"
        if found:
            is_old = all(old.get(name) == content for name, content in found.items())
            is_new = all(content == new[name] if name in SAME else content != old.get(name) for name, content in found.items())
            assert is_old or is_new, f"{place} holds a mixture: {sorted(found)}"
            assert "report.json" not in found or found.keys() == set(RESULTS)
            there = ("" if "report.json" in found else "some files of ") + ("the old result" if is_old else "the new result")
        run = RunDirectory(place, "")
        then = "started over"
        if run.is_unpublished:
            then = "put in place"
        elif run.can_resume:
            then = "resumed"
        elif there == "the new result":
            then = "done already"
        assert then != "started over" or there in ("nothing", "the old result"), f"{place} has lost a result"
        return Kill(case, replacing, during(run, done=then == "done already"), there, then)

    def _undisturbed(self, case: str) -> Undisturbed:
        process = start(self.folder, *CASES[case], "--out", f"{case}/half")
        process.join()
        assert process.exitcode == 0, (self.folder / "stderr").read_text(encoding="utf-8")
        steps, seconds = (self.folder / "used").read_text().split()
        return Undisturbed(read(self.folder / case / "half"), float(seconds), int(steps))


def kill_after(process: ForkServerProcess, seconds: float) -> None:
    """Kill a process and its children after this many seconds of CPU time."""
    pid = process.pid
    assert pid is not None
    with suppress(OSError):  # it has already ended
        while time.clock_gettime(~pid << 3 | 2) < seconds:  # its CPU clock, see clock_getcpuclockid(3)
            time.sleep(0.001)
        os.killpg(pid, signal.SIGKILL)
    process.kill()  # it may not have its own process group yet


def older(results: dict[str, bytes]) -> dict[str, bytes]:
    """Results as of a run with another seed."""
    config = results["config.toml"].replace(b"seed = 0", b"seed = 1")
    return {name: b"older" + content for name, content in results.items()} | {"config.toml": config}


def read(place: Path) -> dict[str, bytes]:
    """The results in a directory."""
    return {name: (place / name).read_bytes() for name in RESULTS if (place / name).exists()}


def during(run: RunDirectory, done: bool) -> str:
    """What an unfinished run was doing."""
    log = run.log.read_text(encoding="utf-8") if run.log.exists() else ""
    if done or run.is_unpublished:
        return "clearing away" if run.is_finished and not (run.new / "report.json").exists() else "publishing"
    if '"original"' not in log:
        return "opening"
    return "training" if log.count('"event": "epoch"') < EPOCHS else "exporting and checking"


def timeless(results: dict[str, bytes]) -> Any:
    """A report without times."""

    def without_times(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: without_times(part) for key, part in value.items() if key not in TIMES}
        if isinstance(value, list):
            return [without_times(part) for part in value if not str(part).startswith(("no faster", "unreliable latency"))]
        return value

    return without_times(json.loads(results["report.json"]))


def table(kills: Sequence[Kill]) -> str:
    """The number of kills, by what the run was doing and how it continued."""
    rows, columns = (list(dict.fromkeys(names)) for names in zip(*((kill.during, kill.then) for kill in kills), strict=True))
    counts = Counter((kill.during, kill.then) for kill in kills)
    lines = [f"{'killed while':24}" + "".join(f"{column:>16}" for column in columns)]
    lines += [f"{row:24}" + "".join(f"{counts[row, column]:16}" for column in columns) for row in rows]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    from small import write_project

    with tempfile.TemporaryDirectory() as folder:
        write_project(Path(folder))
        killer = Killer(Path(folder), asked.seed)
        kills = killer.kill(asked.kills)
    print(
        f"{len(kills)} kills of {killer.runs} runs, seed {asked.seed}; each run ended like an uninterrupted one, bit for bit.\n"
    )
    print(table(kills))
    for name in ("case", "there"):
        counts = Counter(getattr(kill, name) for kill in kills)
        print(f"\n{name}: " + ", ".join(f"{value} {count}" for value, count in counts.most_common()))
    print(f"replacing an older result: {sum(kill.replacing for kill in kills)}")


if __name__ == "__main__":
    main()
