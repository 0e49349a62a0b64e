"""The directory of a run: its lock, the state of a run in progress, and the publication of the results.

    runs/NAME/         the results of the last finished run
    runs/NAME/state/   the run in progress: its settings, its log, the newest training state, and in `new/` its results

A finished run moves its results up, the report last: a directory with a `report.json` holds a complete run. A run that replaces
another keeps the old results until its own are complete; then all old files are removed before the first new one is moved, so
that the plan of one run is never next to the weights of another. A run that fails leaves no files, or only those that
`--resume` needs. All this holds if the process is killed between any two steps, and after a power failure.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from compressor.errors import OutputError, UsageError
from compressor.files import sync, write_text, write_whole
from compressor.report.write import EXAMPLES
from compressor.runs.settings import first_change

# The report comes last: if it exists, all other files do.
NETWORK = ("model.onnx", "model.safetensors", "plan.json")
RESULTS = (
    *NETWORK,
    "report.md",
    "report.html",
    "log.jsonl",
    "config.toml",
    "report.json",
)
FILES = (EXAMPLES, *RESULTS)  # all that a run may publish, in the order in which it is moved into place


class RunDirectory:
    """The directory `out`, for a run whose settings are `config` (the text of its config.toml)."""

    _claim: os.stat_result  # of the lock file, once it is locked

    def __init__(self, out: Path, config: str) -> None:
        self.out, self.config = out, config
        self.state = out / "state"
        self.new = self.state / "new"
        self.original = self.new / "original.onnx"  # the uncompressed model
        self.training = self.state / "training.pt"
        self.earlier = self.state / "earlier.pt"  # of a training of the teacher before the student's
        self.stages = self.state / "stages.json"
        self.times = self.state / "times.json"
        self.log = self.state / "log.jsonl"
        self._lock = self.state / "lock"
        self._record = self.state / "config.toml"
        self._complete = self.new / "complete"  # a marker: all results are in `new`; it lists their names

    @property
    def is_finished(self) -> bool:
        """Whether the directory holds the results of a finished run."""
        return (self.out / "report.json").exists()

    @property
    def is_unpublished(self) -> bool:
        """Whether a run was interrupted while its complete results were moved into place."""
        return self._complete.exists()

    @property
    def can_resume(self) -> bool:
        """Whether the directory holds an unfinished run with a state to resume from."""
        begun = self.training.exists() or self.earlier.exists() or self.is_unpublished
        return self._record.exists() and begun

    def check(self, *, force: bool, resume: bool) -> None:
        """Raise OutputError when existing files would be lost, UsageError when the run to resume has other settings."""
        if force and resume:
            raise UsageError("--resume continues a run, and --force starts it over: give one of the two.")
        if not self.out.is_dir():
            if self.out.exists():
                raise OutputError(f"--out {self.out} is a file: give a directory.")
            return
        others = sorted(path.name for path in self.out.iterdir() if path.name not in {*FILES, "state"})
        if resume and (self.can_resume or self.is_finished):
            record = self._record if self.can_resume else self.out / "config.toml"
            if change := first_change(record.read_bytes().decode(errors="replace"), self.config):
                raise UsageError(
                    f"--resume: {self.out} was started with other settings: {change}.\n"
                    "Use the same settings, or --force to start over."
                )
        elif not force and self.can_resume:
            raise OutputError(
                f"{self.out} holds an unfinished run: --resume continues it, --force starts over, "
                "--out DIR chooses another directory."
            )
        elif not force and (self.is_finished or others):
            what = "a finished run: --force replaces it"
            if not self.is_finished:
                what = f"other files ({', '.join(others[:3])}): --force writes next to them"
            raise OutputError(f"{self.out} exists and holds {what}, --out DIR chooses another directory.")

    @contextmanager
    def claimed(self, *, force: bool, resume: bool) -> Iterator[None]:
        """Lock the directory. The state of an unfinished run is kept with `resume`, and deleted without.

        Raises OutputError or UsageError when the directory cannot be used.
        """
        existed = self.out.exists()
        with self._in_plain_words():
            self.check(force=force, resume=resume)
            self.state.mkdir(parents=True, exist_ok=True)
        try:
            with self._locked():
                with self._in_plain_words():
                    self.check(force=force, resume=resume)  # again: another run may have finished in the meantime
                    self._begin(resume)
                yield
        finally:
            if not existed:
                with suppress(OSError):  # it is not empty
                    self.out.rmdir()

    def check_held(self) -> None:
        """Raise OutputError when the locked directory was removed. Another run may have started in its place."""
        if not self._is_held:
            raise OutputError(f"{self.out} was removed or renamed while it was being written. Start the run again.")

    def publish(self) -> None:
        """Move the results in `new` into place. If interrupted, it can be repeated: files that were moved stay moved."""
        with self._in_plain_words():
            self.check_held()
            if not self.is_unpublished:
                write_text(self.new / self._record.name, self.config)
                write_whole(self.new / self.log.name, lambda unfinished: shutil.copyfile(self.log, unfinished))
                write_text(self._complete, "\n".join(name for name in FILES if (self.new / name).exists()))
                sync(self.new)
            left = [name for name in FILES if (self.new / name).exists()]
            made = self._complete.read_text(encoding="utf-8").split() or FILES  # an older version wrote no names
            for name in reversed(FILES):
                if name in left or name not in made:
                    (self.out / name).unlink(missing_ok=True)
            for name in left:
                (self.new / name).replace(self.out / name)
            sync(self.out)
            self._clear()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Lock out other runs, and at the end keep only what a later run needs."""
        lock = FileLock(self._lock, timeout=0)
        with self._in_plain_words():
            try:
                lock.acquire()
            except Timeout:
                raise OutputError(f"{self.out} is being written by another run: wait for it, or give another --out.") from None
        try:
            self._claim = self._lock.stat()
            yield
        finally:
            try:
                with self._in_plain_words():
                    self._leave()
            finally:
                lock.release()

    @property
    def _is_held(self) -> bool:
        """Whether the lock is still the file that was locked."""
        return self._lock.exists() and os.path.samestat(self._lock.stat(), self._claim)

    def _begin(self, resume: bool) -> None:
        """Delete what is not needed, and write the settings."""
        if self.is_unpublished and not resume:
            self.publish()  # complete results are kept until others replace them
        if not (resume and self.can_resume):
            self._clear()
        for path in self.state.glob(".*"):
            _remove(path)  # incomplete temporary files
        if not self.is_unpublished:
            _remove(self.new)
        self.new.mkdir(exist_ok=True)
        write_text(self._record, self.config)

    def _leave(self) -> None:
        """Delete the state of a run that is finished, or that failed and cannot be resumed."""
        is_anothers = self._lock.exists() and not self._is_held
        if is_anothers or not self.state.exists():
            return
        if self.can_resume:
            if not self.is_unpublished:
                _remove(self.new)
            return
        self._clear()
        self._lock.unlink(missing_ok=True)  # while it is held: a process that has opened it sees that it was deleted
        with suppress(OSError):  # not empty: the next run has started
            self.state.rmdir()

    def _clear(self) -> None:
        """Delete the state of a run. The marker of complete results is deleted last, so that this can be resumed, too."""
        others = [path for path in self.state.iterdir() if path not in (self._lock, self.new, self._record)]
        for path in (*others, self.new, self._record):
            _remove(path)

    @contextmanager
    def _in_plain_words(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(
                f"{self.out} cannot be used: {error.strerror or error}. Give another directory with --out."
            ) from error


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
