"""The tables of docs/gpu.md, from the rows that examples/gpu/run.sh wrote on a machine with a GPU."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "examples/gpu"))
from rows import Row, Value, read  # these lie there
from run import expected

ROWS = Path(__file__).parents[1] / "examples/gpu/results/rows.jsonl"
NOT_YET = "not yet run"
TITLES = {
    "machine": "Machine",
    "smoke": "Smoke tests",
    "throughput": "Throughput",
    "latency": "Latency",
    "recipe": "The papers' recipe",
}
Column = tuple[str, Callable[[Mapping[str, Value]], str]]


def tables(path: Path = ROWS) -> str:
    """A section each, with a line for every row of a whole run, also of those that are missing."""
    found = {(row.section, row.name): row for row in read(path)}
    names = dict.fromkeys([*expected(), *found])
    parts = []
    for section, title in TITLES.items():
        rows = [(name, found.get((of, name))) for of, name in names if of == section]
        columns = COLUMNS[section]
        lines = [["", "result", *(head for head, _ in columns)]]
        lines += [[name, _result(row), *_cells(row, columns)] for name, row in rows]
        lines.insert(1, ["---"] * len(lines[0]))
        parts.append("\n".join([f"### {title}\n", *(f"| {' | '.join(line)} |" for line in lines)]))
    return "\n\n".join(parts)


def _result(row: Row | None) -> str:
    if row is None:
        return NOT_YET
    if row.status == "ok":
        return f"ok, {row.seconds:.1f} s"
    error = (row.error or "").strip().splitlines()
    return f"{row.status}: {error[-1].replace('|', ' ')[:160]}" if error else row.status


def _cells(row: Row | None, columns: list[Column]) -> list[str]:
    return ["" if row is None else show(row.values) for _, show in columns]


def _plain(key: str, digits: int = 1) -> Callable[[Mapping[str, Value]], str]:
    def show(values: Mapping[str, Value]) -> str:
        value = values.get(key)
        return "" if value is None else f"{value:,.{digits}f}" if isinstance(value, float) else str(value)

    return show


def _percent(key: str) -> Callable[[Mapping[str, Value]], str]:
    return lambda values: f"{100 * value:.2f} %" if isinstance(value := values.get(key), float | int) else ""


def _all(values: Mapping[str, Value]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items() if value is not None)


def _top1(values: Mapping[str, Value]) -> str:
    before, after = _percent("top1_before")(values), _percent("top1_after")(values)
    return f"{before} → {after}" if before else ""


COLUMNS: dict[str, list[Column]] = {
    "machine": [("values", _all)],
    "smoke": [
        ("top-1", _top1),
        ("images/s", _plain("images_per_s")),
        ("GPU memory, MiB", _plain("peak_mib")),
    ],
    "throughput": [
        ("`compress`, images/s", lambda values: _plain("compress_images_per_s")(values) or _plain("images_per_s")(values)),
        ("plain loop, images/s", _plain("plain_images_per_s")),
        ("ratio", _plain("compress_over_plain", 3)),
        ("GPU memory, MiB", _plain("compress_peak_mib")),
    ],
    "latency": [
        (f"{head}, ms", _plain(f"{head.replace(' ', '_')}_ms", 3)) for head in ("original", "pruned", "low rank", "both")
    ],
    "recipe": [
        ("epochs", _plain("epochs")),
        ("MACs left", _percent("macs_left")),
        ("top-1", _top1),
        ("images/s", _plain("images_per_s")),
    ],
}
