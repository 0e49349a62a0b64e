"""Progress of a run: on the terminal, and in `log.jsonl` as one line of JSON per event.

On a terminal an epoch is a progress bar with the loss terms and the time left; elsewhere it is one plain line.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.status import Status

from compressor.errors import OutputError
from compressor.report import formatting
from compressor.report.schema import Epoch

REMIND = 60.0  # seconds


class Journal:
    """Prints and logs what happens. Without a console it prints nothing, without a file it logs nothing.

    `check` raises when the file may no longer be written to, because its directory was removed.
    """

    def __init__(
        self, console: Console | None = None, file: Path | None = None, check: Callable[[], object] = lambda: None
    ) -> None:
        self.console, self.file, self.check = console, file, check
        self.times: dict[str, float] = {}  # seconds of each part of the run: see `part`
        self._parts: list[str] = []
        self._since = 0.0
        self._status: Status | None = None
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._shown = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop_bar()
        self._show(None)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the seconds of the block to those of `name` in `times`, without the parts within it, and show what is going on.

        On a terminal it is a line that disappears again; elsewhere a part that lasts is told once a minute.
        """
        self._begin([*self._parts, name])
        reminder = _Reminder(name, self.say) if self.console is not None and not self.console.is_terminal else nullcontext()
        try:
            with reminder:
                yield
        finally:
            self._begin(self._parts[:-1])

    def _begin(self, parts: list[str]) -> None:
        """Count the time so far, and go on with the last of these parts."""
        now = time.perf_counter()
        if self._parts:
            self.times[self._parts[-1]] = self.times.get(self._parts[-1], 0.0) + now - self._since
        self._parts, self._since = parts, now
        self._show(parts[-1] if parts else None)

    def _show(self, text: str | None) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None
        if text is not None and self._bar is None and self.console is not None and self.console.is_terminal:
            self._status = self.console.status(f"{text} ...")
            self._status.start()

    def event(self, kind: str, **fields: object) -> None:
        """Append one line to the log. Raises OutputError when it cannot be written."""
        if self.file is None:
            return
        self.check()
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": kind, **fields}
        try:
            with self.file.open("a+b") as file:
                _drop_half_line(file)
                file.write(json.dumps(line).encode() + b"\n")
        except OSError as error:
            raise OutputError(f"{self.file} cannot be written: {error.strerror}. Give another directory with --out.") from error

    def say(self, text: str) -> None:
        """One line for the user."""
        if self.console is not None:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    # The training loop's watcher --------------------------------------------------------------------------------------

    def epoch_began(self, epoch: int, epochs: int, batches: int) -> None:
        if self.console is None or not self.console.is_terminal:
            return
        self._show(None)
        columns = ("[bold]epoch {task.fields[epoch]}", BarColumn(), MofNCompleteColumn(), "{task.fields[losses]}")
        self._bar = Progress(
            *(TextColumn(c) if isinstance(c, str) else c for c in columns),
            TimeRemainingColumn(compact=True),
            console=self.console,
            transient=True,
        )
        self._task = self._bar.add_task("", total=batches, epoch=f"{epoch + 1}/{epochs}", losses="")
        self._bar.start()

    def step_ended(self, losses: Callable[[], dict[str, float]]) -> None:
        if self._bar is None or self._task is None:
            return
        self._bar.advance(self._task)
        if time.perf_counter() - self._shown > 0.5:  # reading a loss waits for the GPU, so only now and then
            self._shown = time.perf_counter()
            self._bar.update(self._task, losses=_terms(losses()))

    def epoch_ended(self, epoch: Epoch, epochs: int) -> None:
        self._stop_bar()
        score = epoch.held_out
        held_out = "" if score is None else f", held-out {score.label} {formatting.score(score)}"
        left = (epochs - epoch.epoch) * epoch.seconds
        remaining = f", about {formatting.duration(left)} left" if left else ""
        self.say(f"  epoch {epoch.epoch}/{epochs}: {_terms(epoch.losses)}{held_out}, {epoch.seconds:.1f} s{remaining}")
        self.event("epoch", **asdict(epoch))

    def _stop_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class _Reminder(AbstractContextManager[None]):
    """Says once a minute how long something has taken."""

    def __init__(self, name: str, say: Callable[[str], None]) -> None:
        self.name, self.say = name, say
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._remind, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _remind(self) -> None:
        began = time.perf_counter()
        while not self._ended.wait(REMIND):
            self.say(f"  {self.name}: {formatting.duration(time.perf_counter() - began)}")


def _drop_half_line(file: BinaryIO) -> None:
    """Remove an incomplete last line, left by a process that was killed or by a full disk."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 1))
    if file.read() not in (b"", b"\n"):
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


def _terms(losses: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in losses.items())
