"""The steps of a settings file, in order: for example prune, distil into the pruned network, quantize, check.

    OUT/1-prune/, OUT/2-distill/ ...    a run each, which starts from the result of the one before
    OUT/                                the final network, and one report from the original to it
    OUT/pipeline.json                   what each step was made from

A step is skipped if its settings, files and predecessors are those of its last run, and resumed if it was interrupted. So the
same command, repeated, runs only what is not finished.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from compressor.checkpoint.user_code import code_of
from compressor.errors import NotExported, UsageError
from compressor.files import sha256_of, write_text
from compressor.methods import catalogue
from compressor.runs.run_directory import NETWORK, RunDirectory
from compressor.version import __version__

if TYPE_CHECKING:
    from compressor.runs.run import Foreseen, Run

RECORD = "pipeline.json"
RUNS = ("prune", "lowrank", "distill", "quantize")  # steps that make a network
OF_THE_FILE = ("key", "ema", "trust_pickle")  # options for reading the original, which a run directory does not need

Settings = dict[str, str | list[str]]
Told = Callable[[str], object]
# A command, its settings by the names of its parameters, and a function that receives the run if it shall not be executed.
# Returns the exit status; errors have been printed.
Perform = Callable[[str, Mapping[str, object], "Callable[[Run], object] | None"], int]


@dataclass(frozen=True)
class Step:
    """One step, ready to run. `place` is None if it makes no network."""

    command: str
    settings: Settings
    number: int
    place: Path | None = None
    after: Path | None = None  # the run that it starts from; None: the original

    @property
    def name(self) -> str:
        return f"{self.number}-{self.command}"


@dataclass(frozen=True)
class Foretold:
    """What is known of a step before it runs."""

    step: str
    state: str  # done, interrupted, to do
    method: str
    foreseen: Foreseen | None  # None if it makes no network


class Pipeline:
    """The chained steps of a settings file; `run` runs them, `foretell` predicts their results."""

    def __init__(
        self, steps: Sequence[tuple[str, Settings, frozenset[str]]], out: Path, config: str, model: str | None = None
    ) -> None:
        """`steps`: a command, all its settings, and the names of those that are given in the step itself. `model` is the
        original, and `config` the text of the settings file.

        Raises UsageError for steps that cannot follow each other.
        """
        if not steps:
            raise UsageError('A pipeline needs steps: write [[steps]] with do = "prune" and rate = 0.5 into compress.toml.')
        if not any(command in RUNS for command, _, _ in steps):
            raise UsageError(f"A pipeline needs a step that compresses the network: {', '.join(RUNS)}.")
        self.out, self.config, self.model = out, config, model
        self.steps = list(self._chained(steps))

    def _chained(self, steps: Sequence[tuple[str, Settings, frozenset[str]]]) -> Iterator[Step]:
        """Each step starts from the result of the one before, unless it has a model of its own."""
        last: Path | None = None
        for number, (command, settings, own) in enumerate(steps, 1):
            _check_complete(number, command, settings, self.model, last)
            if command in RUNS:
                place = self.out / f"{number}-{command}"
                begin = self._taught if command == "distill" else _continued
                yield Step(command, begin(last, settings, own), number, place, last)
                last = place
            elif last is None:
                raise UsageError(f"Step {number}, {command}, has no run before it: put it after one of {', '.join(RUNS)}.")
            elif command == "export":
                yield Step(command, {"model": str(self.out), "out": settings["out"], "force": "true"}, number)
            else:
                yield Step(command, {**settings, "report": str(self.out)}, number)

    def _taught(self, last: Path | None, settings: Settings, own: frozenset[str]) -> Settings:
        """A distillation: the teacher is the original, and the student the last step's result; without a teacher, that result
        is one of the networks that teach each other."""
        taught = catalogue.find(str(settings.get("method", "kd")), "distill").teacher_is != "none"
        given = dict(settings)
        if taught and self.model is not None:
            given.setdefault("teacher_", self.model)
        elif "arch" in given and not taught:
            given |= {f"student_{name}": given.pop(name) for name in ("arch", "arch_arg") if name in given}
        student = str(last) if last is not None else None if taught else self.model
        if student is not None and not own & {"student", "student_arch"}:
            given["student"] = student
        return given

    # Dry run ----------------------------------------------------------------------------------------------------------

    def foretell(self, perform: Perform) -> tuple[int, list[Foretold]]:
        """Each step, its state, and its predicted result. Returns the exit status, 0 without errors."""
        told: list[Foretold] = []
        with tempfile.TemporaryDirectory() as folder:
            for step in self.steps:
                foreseen: list[tuple[str, Foreseen]] = []
                if step.place is not None:
                    into = Path(folder) / step.name
                    settings = {
                        name: str(Path(folder) / step.after.name) if step.after and value == str(step.after) else value
                        for name, value in step.settings.items()
                    }
                    if status := perform(step.command, settings, _foreseeing(foreseen, into)):
                        return status, told
                told.append(Foretold(step.name, self._state(step), *(foreseen[0] if foreseen else ("", None))))
        return 0, told

    def _state(self, step: Step) -> str:
        if self._is_done(step):
            return "done"
        return "interrupted" if self._record.get(step.name, {}).get("begun") == self._print(step) else "to do"

    # Run --------------------------------------------------------------------------------------------------------------

    def run(self, perform: Perform, told: Told, *, force: bool = False) -> int:
        """Run all steps. Returns the exit status of the first that fails, or 0. Raises a CompressError.

        A network without its ONNX file does not stop the pipeline: later steps start from the network for PyTorch.
        """
        if force:
            (self.out / RECORD).unlink(missing_ok=True)
        for step in self.steps:
            if step.place is None:
                self._put_together(perform, told)
            if self._is_done(step):
                told(f"{step.name}: up to date")
                continue
            told(f"\n{step.name}")
            status = self._write(step, perform) if step.place is None else self._perform(step, perform)
            if status and not (step.place is not None and status == NotExported.exit_code):
                return status
        self._put_together(perform, told)
        return 0

    def _write(self, step: Step, perform: Perform) -> int:
        """Export or check. A check always runs: its output is for the present caller."""
        status = perform(step.command, step.settings, None)
        if status == 0 and step.command == "export":
            self._note(step.name, {"done": self._print(step)})  # the written file is part of the hash
        return status

    def _perform(self, step: Step, perform: Perform) -> int:
        assert step.place is not None
        made_from, record = self._print(step), self._record
        going_on = record.get(step.name, {}).get("begun") == made_from and RunDirectory(step.place, "").can_resume
        if not going_on:
            self._note(step.name, {"begun": made_from})
        status = perform(step.command, {**step.settings, "out": str(step.place), "resume" if going_on else "force": True}, None)
        if status in (0, NotExported.exit_code):
            self._note(step.name, {"begun": made_from, "done": made_from})
        return status

    def _put_together(self, perform: Perform, told: Told) -> None:
        """Write the results of the whole pipeline, from the original to the last run so far, unless they are up to date."""
        runs = [step for step in self.steps if step.place is not None and self._is_done(step)]
        made_from = _hash([self._record[step.name]["done"] for step in runs])
        if self._record.get("whole") == {"done": made_from} and (self.out / "report.json").is_file():
            return
        from compressor.runs.pipeline_report import Part, put_together

        parts = [Part(step.command, step.place) for step in runs if step.place is not None]
        first: list[Run] = []
        perform(runs[0].command, {**runs[0].settings, "out": str(self.out)}, first.append)
        told(f"\n{self.out.name}: from the original to {runs[-1].name}")
        put_together(parts, first[0], self.config)
        self._note("whole", {"done": made_from})

    # Which steps are up to date ---------------------------------------------------------------------------------------

    def _is_done(self, step: Step) -> bool:
        done = self._record.get(step.name, {}).get("done")
        is_there = step.place is None or RunDirectory(step.place, "").is_finished
        return done is not None and is_there and done == self._print(step)

    def _print(self, step: Step) -> str:
        """A hash of everything that affects the step's result. The location of OUT does not."""
        files = {name: _contents(value) for name, value in step.settings.items()}
        places = {str(place) for place in (self.out, step.after) if place is not None}
        settings = {name: value for name, value in step.settings.items() if isinstance(value, list) or value not in places}
        return _hash([step.command, settings, files, __version__, version("torch")])

    @property
    def _record(self) -> dict[str, dict[str, str]]:
        file = self.out / RECORD
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError):
            raise UsageError(f"{file} is damaged: delete it, and all steps are rerun.") from None
        return found if isinstance(found, dict) and all(isinstance(entry, dict) for entry in found.values()) else {}

    def _note(self, name: str, entry: dict[str, str]) -> None:
        write_text(self.out / RECORD, json.dumps({**self._record, name: entry}, indent=2) + "\n")


def _continued(last: Path | None, settings: Settings, own: frozenset[str]) -> Settings:
    """A step that starts from the last one's network, unless it has its own; options for reading the original are dropped."""
    if last is None or "model" in own:
        return settings
    return {name: value for name, value in settings.items() if name not in OF_THE_FILE} | {"model": str(last)}


def _check_complete(number: int, command: str, settings: Settings, model: str | None, last: Path | None) -> None:
    """Raise UsageError when a step lacks a required setting."""
    given = {"model", "teacher_", "student", "student_arch"} & settings.keys()
    if command in RUNS and last is None and model is None and not given:
        raise UsageError(f'Step {number}, {command}, has no model to start from: write model = "model.pt" above the steps.')
    if command == "export" and "out" not in settings:
        raise UsageError(f'Step {number}, export, has no output file: write out = "model.onnx".')


def _foreseeing(foreseen: list[tuple[str, Foreseen]], into: Path) -> Callable[[Run], object]:
    return lambda run: foreseen.append((run.method, run.foresee(into)))


def _contents(value: str | list[str]) -> list[str]:
    """Hashes of the files and directories that a setting names: `model.pt`, `imagefolder:photos`, `code.py:function`."""
    texts = value if isinstance(value, list) else [value]
    names = {part for text in texts for part in (text, text.partition(":")[2], text.rpartition(":")[0]) if part}
    found = {Path(name) for name in names if _exists(Path(name))}
    return sorted({_content(path) for path in found.union(*map(code_of, texts))})


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long for a file name, or not one at all
        return False


def _content(path: Path) -> str:
    """Of a file and of a run's network all bytes; of other directories, which may be large, their files' names and sizes."""
    if path.is_file():
        return sha256_of(path)
    if (path / "plan.json").is_file():
        return _hash([_content(path / name) for name in NETWORK if (path / name).is_file()])
    files = sorted((str(file.relative_to(path)), file.stat().st_size) for file in path.rglob("*") if file.is_file())
    return _hash(files)


def _hash(told: object) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
