"""JSON values as instances of dataclasses, by their type hints: read with errors that name the key, and as a JSON Schema."""

import dataclasses
import inspect
import json
import re
from types import NoneType, UnionType
from typing import Any, cast, get_args, get_origin, get_type_hints

from compressor.errors import UsageError, did_you_mean, printable
from compressor.report.schema import PROCESSOR, WALL, Latency, Score

SHORTEST = 1e-9  # ms; the report divides by latencies
NAME = re.compile(r"[A-Za-z]\w*", re.ASCII)  # of a score, which stands in budgets and in lines NAME=VALUE
MOST_PLACES = 9
_JSON_TYPE = {str: "string", float: "number", int: "integer", bool: "boolean", NoneType: "null"}
_WORDS = {str: "a string", float: "a number", int: "a whole number", bool: "true or false", NoneType: "null"}


def read(kind: Any, value: Any, path: str) -> Any:
    """`value` as an instance of the type `kind`; `path` is its key in the report."""
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(cast(type, kind), _expect(dict, "an object", value, path), path)
    if get_origin(kind) is list:
        (item,) = get_args(kind)
        return [read(item, part, f"{path}[{i}]") for i, part in enumerate(_expect(list, "a list", value, path))]
    if get_origin(kind) is dict:
        _, item = get_args(kind)
        entries = _expect(dict, "an object", value, path).items()
        return {printable(key): read(item, part, below(path, key)) for key, part in entries}
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
    made = kind(**{key: read(hints[key], part, below(path, key)) for key, part in value.items()})
    _check_values(made, path)
    return made


def _check_values(made: object, path: str) -> None:
    """Raise UsageError for values of the right type with which nothing can be written."""
    if isinstance(made, Latency) and made.median_ms < SHORTEST:
        raise UsageError(f"{path}.median_ms: expected a time above 0, found {found(made.median_ms)}")
    if isinstance(made, Latency) and made.clock not in (WALL, PROCESSOR):
        raise UsageError(f'{path}.clock: expected "{WALL}" or "{PROCESSOR}", found {found(made.clock)}')
    if isinstance(made, Score) and not NAME.fullmatch(made.name):
        raise UsageError(f"{path}.name: expected a letter, then letters, digits and _, found {found(made.name)}")
    if isinstance(made, Score) and not 0 <= made.places <= MOST_PLACES:
        raise UsageError(f"{path}.places: expected a whole number from 0 to {MOST_PLACES}, found {made.places}")


def _read_union(kinds: tuple[Any, ...], value: Any, path: str) -> Any:
    """Plain types are distinguished by the JSON type; any other union here is one other type or null."""
    if type(value) in kinds:
        return printable(value) if isinstance(value, str) else value
    others = [kind for kind in kinds if kind is not NoneType]
    if len(others) == 1 and others[0] not in _WORDS:
        return read(others[0], value, path)
    if float in kinds and type(value) is int:
        return float(value)
    raise UsageError(f"{path}: expected {' or '.join(_WORDS[kind] for kind in kinds)}, found {found(value)}")


def _expect(kind: type, words: str, value: Any, path: str) -> Any:
    """Exactly this type: `True` is not accepted as a number, although bool is a subclass of int."""
    if type(value) is not kind:
        raise UsageError(f"{path}: expected {words}, found {found(value)}")
    return printable(value) if isinstance(value, str) else value


def found(value: object) -> str:
    """A value as it is quoted in an error."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}..."


def below(path: str, key: str) -> str:
    """The place of `key` in the object at `path`."""
    return f"{path}.{key}" if path else key


def _is_required(field: "dataclasses.Field[Any]") -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def schema_of(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """The JSON Schema of a type; those of dataclasses are added to `definitions`, described by their docstrings."""
    if dataclasses.is_dataclass(kind):
        return _schema_of_dataclass(cast(type, kind), definitions)
    if get_origin(kind) is list:
        return {"type": "array", "items": schema_of(get_args(kind)[0], definitions)}
    if get_origin(kind) is dict:
        return {"type": "object", "additionalProperties": schema_of(get_args(kind)[1], definitions)}
    if get_origin(kind) is not UnionType:
        return {"type": _JSON_TYPE[kind]}
    if all(part in _JSON_TYPE for part in get_args(kind)):
        return {"type": [_JSON_TYPE[part] for part in get_args(kind)]}
    return {"anyOf": [schema_of(part, definitions) for part in get_args(kind)]}


def _schema_of_dataclass(kind: type, definitions: dict[str, Any]) -> dict[str, Any]:
    if kind.__name__ not in definitions:
        hints = get_type_hints(kind)
        fields = dataclasses.fields(kind)
        definitions[kind.__name__] = {
            "type": "object",
            "description": inspect.getdoc(kind),
            "properties": {field.name: schema_of(hints[field.name], definitions) for field in fields},
            "required": [field.name for field in fields if _is_required(field)],
            "additionalProperties": False,
        }
    return {"$ref": f"#/$defs/{kind.__name__}"}
