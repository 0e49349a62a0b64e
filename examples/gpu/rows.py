"""The results of the GPU script: one row a measurement, one JSON object a line.

A program that measures prints its rows with `emit`; run.py adds the section and writes them to rows.jsonl as they come.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

Value = str | float | int | bool | None
Status = Literal["ok", "failed", "timed out", "unavailable", "not run"]
SECTIONS = ("machine", "smoke", "throughput", "latency", "recipe")
MARK = "ROW "


@dataclass(frozen=True)
class Row:
    """One measurement. `values` holds what was measured, with its unit in the key (`_ms`, `_mib`, `images_per_s`)."""

    section: str
    name: str
    status: Status
    seconds: float
    values: Mapping[str, Value]
    error: str | None = None  # of a row that is not ok: the exception, or the end of the output

    def __post_init__(self) -> None:
        """Raises ValueError for what is no row."""
        kinds = {"section": str, "name": str, "status": str, "seconds": (int, float), "values": dict}
        for field, kind in kinds.items():
            if not isinstance(getattr(self, field), kind):
                raise ValueError(f"{field}: {getattr(self, field)!r}")
        if self.section not in SECTIONS:
            raise ValueError(f"section: {self.section!r} is none of {SECTIONS}")
        if self.status not in get_args(Status):
            raise ValueError(f"status: {self.status!r} is none of {get_args(Status)}")
        if (self.status == "ok") != (self.error is None):
            raise ValueError(f"a row that is {self.status} has the error {self.error!r}")
        for key, value in self.values.items():
            if not isinstance(key, str) or not isinstance(value, (str, float, int, bool, type(None))):
                raise ValueError(f"values: {key!r}: {value!r}")

    @property
    def line(self) -> str:
        return json.dumps(asdict(self), allow_nan=False)


def parse(data: Any) -> Row:
    """Raises ValueError when `data` is no row."""
    if not isinstance(data, dict) or set(data) - {field.name for field in fields(Row)}:
        raise ValueError(f"not a row: {data!r}")
    try:
        return Row(**data)
    except TypeError as error:
        raise ValueError(f"not a row: {error}") from None


def read(path: Path) -> list[Row]:
    """All rows of a file; none if it does not exist. Raises ValueError."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [parse(json.loads(line)) for line in lines]


def emit(name: str, values: Mapping[str, Value], seconds: float, status: Status = "ok", error: str | None = None) -> None:
    """Print a row for run.py to write down. Numbers that are not finite raise ValueError."""
    row = {"name": name, "status": status, "seconds": round(seconds, 2), "values": dict(values), "error": error}
    print(MARK + json.dumps(row, allow_nan=False), flush=True)
