"""The report as JSON: written, read with error messages that name the key, and described by a JSON Schema.

All three follow the type hints of the dataclasses in schema.py, so a new field is added in one place. The keys of version 1
are added by version1.py.
"""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, NoReturn, cast

from compressor.errors import CompressError, UsageError
from compressor.files import read_text
from compressor.report import version1
from compressor.report.schema import VERSION, Epoch, Report, Score, Stage
from compressor.report.typed import below, found, read, schema_of

LARGEST = 1e100


def to_json(report: Report) -> str:
    """The report as indented JSON text.

    Raises CompressError if a number is NaN or infinite, which JSON cannot represent.
    """
    data = dataclasses.asdict(report)
    version1.add_keys(data)
    for path, value in _leaves(data, ""):
        if isinstance(value, float) and not math.isfinite(value):
            raise CompressError(f"the report cannot be written: {path} is {value}, which JSON cannot represent")
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _leaves(value: object, path: str) -> list[tuple[str, object]]:
    if isinstance(value, dict):
        return [leaf for key, part in value.items() for leaf in _leaves(part, below(path, key))]
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
        raise UsageError(f"not a report: expected an object, found {found(data)}")
    _check_version(data)
    if data["version"] == 1:
        version1.upgrade(data)
    kept = version1.take_keys(data)
    report = cast(Report, read(Report, data, ""))
    version1.check_keys(kept, report)
    return report


def stage_from(data: object) -> Stage:
    """A stage from the output of `dataclasses.asdict`, by this release or an older one. Raises UsageError naming the key."""
    if isinstance(data, dict):
        version1.upgrade_stage(data)
    return cast(Stage, read(Stage, data, "stage"))


def epoch_from(data: object) -> Epoch:
    """An epoch of training, likewise."""
    if isinstance(data, dict):
        version1.upgrade_epoch(data, "epoch")
    return cast(Epoch, read(Epoch, data, "epoch"))


def score_from(data: object) -> Score:
    """A score, likewise."""
    return cast(Score, read(Score, data, "score"))


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
    if type(data["version"]) is not int or data["version"] not in (1, VERSION):
        raise UsageError(
            f"the report has version {found(data['version'])}, this release reads version {VERSION} and 1; "
            "read it with the release that wrote it, or rerun the compression"
        )


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of `report.json`; its descriptions are the docstrings of schema.py."""
    definitions: dict[str, Any] = {}
    schema_of(Report, definitions)
    version1.describe_keys(definitions)
    report = definitions.pop("Report")
    report["properties"]["version"] = {"const": VERSION}
    report["required"].append("version")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "The report of a compression run",
        **report,
        "$defs": definitions,
    }
