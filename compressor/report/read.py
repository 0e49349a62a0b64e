"""The report as JSON: written, read with error messages that name the key, and described by a JSON Schema.

All three follow the type hints of the dataclasses in schema.py, so a new field is added in one place.
"""

import dataclasses
import inspect
import json
import math
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, NoReturn, cast, get_args, get_origin, get_type_hints

from compressor.errors import CompressError, UsageError, did_you_mean, printable
from compressor.files import read_text
from compressor.report.schema import VERSION, Latency, Report, Stage

LARGEST = 1e100
SHORTEST = 1e-9  # ms; the report divides by latencies
_JSON_TYPE = {str: "string", float: "number", int: "integer", bool: "boolean", NoneType: "null"}
_WORDS = {str: "a string", float: "a number", int: "a whole number", bool: "true or false", NoneType: "null"}


def to_json(report: Report) -> str:
    """The report as indented JSON text.

    Raises CompressError if a number is NaN or infinite, which JSON cannot represent.
    """
    data = dataclasses.asdict(report)
    for path, value in _leaves(data, ""):
        if isinstance(value, float) and not math.isfinite(value):
            raise CompressError(f"the report cannot be written: {path} is {value}, which JSON cannot represent")
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _leaves(value: object, path: str) -> list[tuple[str, object]]:
    if isinstance(value, dict):
        return [leaf for key, part in value.items() for leaf in _leaves(part, _below(path, key))]
    if isinstance(value, list):
        return [leaf for index, part in enumerate(value) for leaf in _leaves(part, f"{path}[{index}]")]
    return [(path, value)]


def read_report(path: Path) -> Report:
    """Read the report of a run, given by its directory or its report.json.

    Raises UsageError if it does not exist or cannot be read; the message names the file.
    """
    file = report_file(path)
    try:
        return from_json(read_text(file))
    except FileNotFoundError:
        raise UsageError(f"{file} does not exist: give the directory of a finished run, or its report.json") from None
    except UnicodeDecodeError:
        raise UsageError(f"{file} cannot be read as a report: it is not a text file") from None
    except OSError as error:
        raise UsageError(f"{file} cannot be read as a report: {error.strerror}") from None
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from None


def report_file(path: Path) -> Path:
    return path / "report.json" if path.is_dir() else path


def from_json(text: str) -> Report:
    """Read the output of `to_json`. Texts are made printable on one line, because they go to logs, pages and terminals.

    Raises UsageError naming the key: `baseline.accuracy.top1: expected a number, found "x"`.
    """
    try:
        data = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite, parse_int=_whole)
    except RecursionError:
        raise UsageError("not a report: its objects are nested too deeply") from None
    except json.JSONDecodeError as error:
        raise UsageError(f"not a report: {error.msg} (line {error.lineno}, column {error.colno})") from None
    if not isinstance(data, dict):
        raise UsageError(f"not a report: expected an object, found {_found(data)}")
    _check_version(data)
    return cast(Report, _read(Report, data, ""))


def stage_from(data: object) -> Stage:
    """A stage from the output of `dataclasses.asdict`. Raises UsageError naming the key."""
    return cast(Stage, _read(Stage, data, "stage"))


def _refuse_constant(word: str) -> NoReturn:
    raise UsageError(f"not a report: {word} is not JSON; write null for what was not measured")


def _finite(word: str) -> float:
    """Raises UsageError for a number that is infinite, or so large that a product could be."""
    value = float(word)
    if abs(value) > LARGEST:
        raise UsageError(f"not a report: {word[:40]} is out of range")
    return value


def _whole(word: str) -> int:
    """Raises UsageError for an integer that does not fit into 64 bits."""
    if len(word) > 20 or abs(int(word)) >= 2**63:
        raise UsageError(f"not a report: {word[:20]}... is out of range")
    return int(word)


def _check_version(data: dict[str, Any]) -> None:
    if "version" not in data:
        raise UsageError('not a report: the key "version" is missing')
    if data["version"] != VERSION:
        raise UsageError(
            f"the report has version {_found(data['version'])}, this release reads version {VERSION}; "
            "read it with the release that wrote it, or rerun the compression"
        )


def _read(kind: Any, value: Any, path: str) -> Any:
    """`value` as an instance of the type `kind`; `path` is its key in the report."""
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(cast(type, kind), _expect(dict, "an object", value, path), path)
    if get_origin(kind) is list:
        (item,) = get_args(kind)
        return [_read(item, part, f"{path}[{i}]") for i, part in enumerate(_expect(list, "a list", value, path))]
    if get_origin(kind) is dict:
        _, item = get_args(kind)
        entries = _expect(dict, "an object", value, path).items()
        return {printable(key): _read(item, part, _below(path, key)) for key, part in entries}
    if get_origin(kind) is UnionType:
        return _read_union(get_args(kind), value, path)
    if kind is float and type(value) is int:
        return float(value)
    return _expect(kind, _WORDS[kind], value, path)


def _read_dataclass(kind: type, value: dict[str, Any], path: str) -> Any:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key in value:
        if key not in fields:
            raise UsageError(
                f'{path or "report"}: unknown key "{printable(key)}"{did_you_mean(key, fields.keys() - value.keys())}'
            )
    hints = get_type_hints(kind)
    for name, field in fields.items():
        if name not in value and _is_required(field):
            raise UsageError(f'{path or "report"}: the key "{name}" is missing')
    read = kind(**{key: _read(hints[key], part, _below(path, key)) for key, part in value.items()})
    if isinstance(read, Latency) and read.median_ms < SHORTEST:
        raise UsageError(f"{path}.median_ms: expected a time above 0, found {_found(read.median_ms)}")
    return read


def _read_union(kinds: tuple[Any, ...], value: Any, path: str) -> Any:
    """Plain types are distinguished by the JSON type; any other union here is one other type or null."""
    if type(value) in kinds:
        return printable(value) if isinstance(value, str) else value
    others = [kind for kind in kinds if kind is not NoneType]
    if len(others) == 1 and others[0] not in _WORDS:
        return _read(others[0], value, path)
    if float in kinds and type(value) is int:
        return float(value)
    raise UsageError(f"{path}: expected {' or '.join(_WORDS[kind] for kind in kinds)}, found {_found(value)}")


def _expect(kind: type, words: str, value: Any, path: str) -> Any:
    """Exactly this type: `True` is not accepted as a number, although bool is a subclass of int."""
    if type(value) is not kind:
        raise UsageError(f"{path}: expected {words}, found {_found(value)}")
    return printable(value) if isinstance(value, str) else value


def _found(value: object) -> str:
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _below(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _is_required(field: "dataclasses.Field[Any]") -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of `report.json`; its descriptions are the docstrings of schema.py."""
    definitions: dict[str, Any] = {}
    _schema_of(Report, definitions)
    report = definitions.pop("Report")
    report["properties"]["version"] = {"const": VERSION}
    report["required"].append("version")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "The report of a compression run",
        **report,
        "$defs": definitions,
    }


def _schema_of(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    if dataclasses.is_dataclass(kind):
        return _schema_of_dataclass(cast(type, kind), definitions)
    if get_origin(kind) is list:
        return {"type": "array", "items": _schema_of(get_args(kind)[0], definitions)}
    if get_origin(kind) is dict:
        return {"type": "object", "additionalProperties": _schema_of(get_args(kind)[1], definitions)}
    if get_origin(kind) is not UnionType:
        return {"type": _JSON_TYPE[kind]}
    if all(part in _JSON_TYPE for part in get_args(kind)):
        return {"type": [_JSON_TYPE[part] for part in get_args(kind)]}
    return {"anyOf": [_schema_of(part, definitions) for part in get_args(kind)]}


def _schema_of_dataclass(kind: type, definitions: dict[str, Any]) -> dict[str, Any]:
    if kind.__name__ not in definitions:
        hints = get_type_hints(kind)
        fields = dataclasses.fields(kind)
        definitions[kind.__name__] = {
            "type": "object",
            "description": inspect.getdoc(kind),
            "properties": {field.name: _schema_of(hints[field.name], definitions) for field in fields},
            "required": [field.name for field in fields if _is_required(field)],
            "additionalProperties": False,
        }
    return {"$ref": f"#/$defs/{kind.__name__}"}
