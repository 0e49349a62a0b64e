"""Settings from a file: compress.toml, or [tool.compress] of pyproject.toml.

    model = "model.pt"            # for every command that has this option
    data = "imagefolder:photos"

    [prune]                       # for `compress prune` only
    method = "pgmpf"

    [[steps]]                     # the steps of `compress run`, in order
    do = "prune"
    rate = 0.5

The keys are the options of the command line, which overrides the file. Their types are taken from the commands' signatures.
"""

from __future__ import annotations

import inspect
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import typer

from compressor.errors import UsageError, did_you_mean
from compressor.runs.settings import to_toml

FILE, PROJECT, SECTION = "compress.toml", "pyproject.toml", ("tool", "compress")
STEPS = ("prune", "lowrank", "distill", "quantize", "export", "check")  # the commands that can be steps of a pipeline
STEP, DO = "steps", "do"
NOTED = ("method_sha256",)  # keys in the config.toml of a run that are not settings
OF_ONE_CALL = {"config", "debug", "dry_run", "help_all", "json", "resume"}  # options of a single call, not allowed in a file
OF_THE_WHOLE = {"out", "force"}  # options of a pipeline, not of each step
LARGEST = 1_000_000  # bytes of a settings file

Commands = Mapping[str, Callable[..., None]]
Where = tuple[str | int, ...]  # the keys that lead to a place in the file


@dataclass(frozen=True)
class Option:
    """An option of a command: `parameter` of its function, of the plain type `kind`, repeatable if `is_list`."""

    name: str
    parameter: str
    kind: Any
    is_list: bool
    default: Any
    text: str
    is_required: bool

    @property
    def choices(self) -> tuple[str, ...]:
        return get_args(self.kind) if get_origin(self.kind) is Literal else ()

    def read(self, value: object) -> str | list[str]:
        """A value of the file as written on the command line. Raises ValueError with a text that follows "must be"."""
        parts = value if isinstance(value, list) else [value]
        texts = [self._read(part) for part in parts]
        if self.is_list:
            return texts
        if isinstance(value, list) and self.kind is not str:
            raise ValueError(f"{self._wanted}, not a list")
        return ",".join(texts)  # as in --mean 0.5,0.5,0.5

    def _read(self, value: object) -> str:
        fits = {bool: (bool,), int: (int,), float: (int, float), Path: (str,)}.get(self.kind, (str, int, float))
        if not isinstance(value, fits) or (isinstance(value, bool) and self.kind is not bool):
            raise ValueError(f"{self._wanted}; found {_shown(value)}")
        if self.choices and value not in self.choices:
            raise ValueError(f"{self._wanted}; found {_shown(value)}{did_you_mean(str(value), self.choices)}")
        return str(value).lower() if isinstance(value, bool) else str(value)

    @property
    def _wanted(self) -> str:
        words = {bool: "true or false", int: "a whole number", float: "a number"}
        return f"one of {', '.join(self.choices)}" if self.choices else words.get(self.kind, "a string")

    @property
    def schema(self) -> dict[str, Any]:
        """As JSON Schema."""
        kinds = {bool: "boolean", int: "integer", float: "number"}
        plain: dict[str, Any] = {"type": kinds.get(self.kind, "string")}
        if self.choices:
            plain["enum"] = list(self.choices)
        if self.kind is str and not self.choices:
            plain = {"type": ["string", "number", "array"]}
        found = {"anyOf": [plain, {"type": "array", "items": plain}]} if self.is_list else plain
        return {"description": self.text, **found}


def commands() -> Commands:
    """All commands, by their names."""
    from compressor.cli.app import app

    named = ((info.name, info.callback) for info in app.registered_commands if info.callback is not None)
    return {name or callback.__name__: callback for name, callback in named}


def options_of(command: Callable[..., None]) -> dict[str, Option]:
    """The options of `command`, by all names that they have on the command line."""
    found: dict[str, Option] = {}
    for parameter in inspect.signature(command).parameters.values():
        kind, told = _plain(parameter.annotation)
        if told is None or parameter.name in OF_ONE_CALL:
            continue
        is_list = get_origin(kind) is list
        name = parameter.name.rstrip("_")
        option = Option(
            name,
            parameter.name,
            get_args(kind)[0] if is_list else kind,
            is_list,
            parameter.default,
            told.help or "",
            parameter.default is inspect.Parameter.empty,
        )
        names = [flag.partition("/")[0].lstrip("-").replace("-", "_") for flag in told.param_decls or ()]
        found |= {known: option for known in (name, *names) if len(known) > 1}
    return found


def _plain(annotation: Any) -> tuple[Any, Any]:
    """`Annotated[str | None, Option(...)]` -> `str`, and the typer option; None for a parameter that is no option."""
    if not hasattr(annotation, "__metadata__"):
        return annotation, None
    kind, told = annotation.__origin__, annotation.__metadata__[0]
    some = [part for part in get_args(kind) if part is not NoneType]
    return (some[0] if NoneType in get_args(kind) else kind), told


# The file -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One step of a pipeline: a command, and its settings by the names of its parameters. `own` are set in the step itself."""

    command: str
    settings: dict[str, str | list[str]]
    own: frozenset[str]


class Configuration:
    """A settings file, checked as a whole: an unknown key is an error, whichever command is called."""

    def __init__(self, path: Path, text: str, section: tuple[str, ...] = ()) -> None:
        """Raises UsageError that names the key and its line."""
        self.path, self.section = path, section
        try:
            table: Any = tomllib.loads(text)
        except (ValueError, RecursionError) as error:  # a number of thousands of digits raises no TOMLDecodeError
            raise UsageError(f"{path} is not TOML: {str(error)[:200]}") from None
        for key in section:
            table = table.get(key, {})
        if not isinstance(table, dict):
            raise UsageError(f"{path}: [{'.'.join(section)}] must be a table.")
        self._lines, self._commands = _lines(text), commands()
        self._options = {name: options_of(command) for name, command in self._commands.items()}
        self._table_of_all = dict(table)
        told = [name for name in self._options if isinstance(table.get(name), dict)]
        self._own = {name: self._table(name, table.pop(name), (name,)) for name in told}
        steps = table.pop(STEP, None)
        if steps is None and DO in table:  # the config.toml of a run
            self._shared: dict[str, Any] = {}
            self.steps = [self._step(table, ())]
            return
        self._shared = dict(table)
        self._check_shared()
        self.steps = self._steps(steps if steps is not None else [])

    @property
    def model(self) -> str | None:
        """The model that the first step starts from."""
        first = self.steps[0].settings if self.steps else {}
        found = self._shared.get("model") or first.get("model")
        return None if found is None else str(found)

    @property
    def out(self) -> Path | None:
        """The output directory of a pipeline."""
        found = self._own.get("run", {}).get("out") or self._shared.get("out")
        return None if found is None else Path(str(found))

    @property
    def text(self) -> str:
        """The same settings as the text of a compress.toml."""
        whole = self._table_of_all
        plain = {key: value for key, value in whole.items() if key != STEP and not isinstance(value, dict)}
        tables = [f"\n[{key}]\n{to_toml(value)}" for key, value in whole.items() if isinstance(value, dict)]
        steps = [f"\n[[{STEP}]]\n{to_toml(step)}" for step in whole.get(STEP, [])]
        return "".join([to_toml(plain), *tables, *steps])

    def of(self, command: str) -> dict[str, str | list[str]]:
        """The settings of a command, by the names of its parameters."""
        options, meant = self._options[command], _meanings(self._options.values())
        shared = {
            option.parameter: self._value(option, value, (key,))
            for key, value in self._shared.items()
            if (option := options.get(_name(key))) and option.name == _name(key) and option.kind == meant[option.name]
        }
        return shared | self._own.get(command, {})

    def _check_shared(self) -> None:
        known = _meanings(self._options.values())
        for key in self._shared:
            if _name(key) not in known:
                near = did_you_mean(_name(key), {*known, STEP, *self._options})
                raise self._error((key,), f"there is no setting {_shown(key)}{near or '.'} `compress prune --help` lists them.")
        for command in self._options:
            self.of(command)

    def _steps(self, steps: object) -> list[Step]:
        if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
            raise self._error((STEP,), f"{STEP} is a list of tables: write [[{STEP}]] above each.")
        return [self._step(step, (STEP, number)) for number, step in enumerate(steps)]

    def _step(self, table: Mapping[str, Any], where: Where) -> Step:
        command = table.get(DO)
        if command not in STEPS:
            near = did_you_mean(str(command), STEPS)
            found = "is missing" if command is None else f"= {_shown(command)} is not a step{near}"
            raise self._error((*where, DO), f"{DO} {found}: it can be {', '.join(STEPS)}.")
        own = self._table(command, {key: value for key, value in table.items() if key not in (DO, *NOTED)}, where)
        shared = {name: value for name, value in self.of(command).items() if name not in OF_THE_WHOLE}
        return Step(command, shared | own, frozenset(own))

    def _table(self, command: str, table: Mapping[str, Any], where: Where) -> dict[str, str | list[str]]:
        options, settings = self._options[command], {}
        for key, value in table.items():
            option = options.get(_name(key))
            if option is None:
                near = did_you_mean(_name(key), options)
                told = f"compress {command} has no setting {_shown(key)}{near or '.'} `compress {command} --help` lists them."
                raise self._error((*where, key), told)
            settings[option.parameter] = self._value(option, value, (*where, key))
        return settings

    def _value(self, option: Option, value: object, where: Where) -> str | list[str]:
        try:
            return option.read(value)
        except ValueError as error:
            raise self._error(where, f"{where[-1]} must be {error}.") from None

    def _error(self, where: Where, told: str) -> UsageError:
        """An error at the place `where`, or at the nearest enclosing place that has a line."""
        place: Where = (*self.section, *where)
        while place and place not in self._lines:
            place = place[:-1]
        line = f", line {self._lines[place]}" if place else ""
        return UsageError(f"{self.path}{line}: {told}")


def read(path: Path) -> Configuration:
    """Raises UsageError when the file cannot be read, or is not valid."""
    try:
        if path.stat().st_size > LARGEST:
            raise UsageError(f"{path} is larger than {LARGEST:,} bytes: that is not a settings file.")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    return Configuration(path, text, SECTION if path.name == PROJECT else ())


def find() -> Path | None:
    """The settings file of the working directory."""
    if Path(FILE).is_file():
        return Path(FILE)
    try:
        project: Any = tomllib.loads(Path(PROJECT).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # not an error here: other tools use this file, too
        return None
    for key in SECTION:
        project = project.get(key, {}) if isinstance(project, dict) else {}
    return Path(PROJECT) if project else None


def configure(context: typer.Context, file: Path | None) -> Path | None:
    """Make the settings of --config, or of the working directory, the defaults of the command. Raises UsageError."""
    if context.default_map is None and (found := file or find()) is not None:
        settings = read(found).of(str(context.info_name))
        context.default_map = dict(settings)
        context.meta[__name__] = found
    return file


def told(context: typer.Context) -> str | None:
    """One line on the settings that came from a file, if any did."""
    file = context.meta.get(__name__)
    used = [
        name.rstrip("_")
        for name in context.default_map or {}
        if (source := context.get_parameter_source(name)) and source.name == "DEFAULT_MAP"
    ]
    return f"settings from {file}: {', '.join(used)}" if file and used else None


def _meanings(commands: Iterable[Mapping[str, Option]]) -> dict[str, Any]:
    """Name -> type of the settings above all tables: that of the first command with an option of this name."""
    kinds: dict[str, Any] = {}
    for options in commands:
        for option in options.values():
            kinds.setdefault(option.name, option.kind)
    return kinds


def _lines(text: str) -> dict[Where, int]:
    """The line number of each key, which tomllib does not report. Strings of several lines may add some."""
    found: dict[Where, int] = {}
    counts: dict[Where, int] = {}
    around: Where = ()
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*(\[\[?)\s*([^\]]+?)\s*\]", line):
            around = tuple(part.strip().strip("\"'") for part in header[2].split("."))
            if header[1] == "[[":
                counts[around] = counts.get(around, -1) + 1
                found.setdefault(around, number)
                around = (*around, counts[around])
            found.setdefault(around, number)
        elif key := re.match(r"""\s*(["']?)([^"'=\s]+)\1\s*=""", line):
            found.setdefault((*around, *key[2].split(".")), number)
    return found


def _name(key: str) -> str:
    return key.replace("-", "_")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# For editors ----------------------------------------------------------------------------------------------------------


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of compress.toml."""
    by_command = {name: options_of(command) for name, command in commands().items()}
    shared: dict[str, Any] = {}
    for options in by_command.values():
        for option in _once(options.values()):
            shared.setdefault(option.name, option.schema)
    steps = [
        {
            "type": "object",
            "properties": {DO: {"const": name}, **{option.name: option.schema for option in _once(by_command[name].values())}},
            "required": [DO],
            "additionalProperties": False,
        }
        for name in STEPS
        if name in by_command
    ]
    tables = {
        name: {
            "type": "object",
            "description": f"Settings of `compress {name}`.",
            "properties": {option.name: option.schema for option in _once(options.values())},
            "additionalProperties": False,
        }
        for name, options in by_command.items()
        if options
    }
    pipeline = {"type": "array", "description": "The steps of `compress run`, in order.", "items": {"oneOf": steps}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Settings of compress",
        "type": "object",
        "properties": {**shared, **tables, STEP: pipeline, DO: {"enum": list(STEPS)}},
        "additionalProperties": False,
    }


def _once(options: Iterable[Option]) -> list[Option]:
    return list({option.name: option for option in options}.values())
