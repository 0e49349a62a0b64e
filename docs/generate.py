"""Write what the documentation takes from elsewhere: a page a method, the fields of report.json, and measured figures.

    python docs/generate.py

A test compares what stands in the pages with what this would write.
"""

import dataclasses
import inspect
import json
import re
import sys
import typing
from collections.abc import Iterable
from pathlib import Path
from types import NoneType, UnionType
from typing import Any

from compressor.methods.catalogue import Entry, catalogue
from compressor.report import Report, Score, formatting, headline, read_report, schema

sys.path.insert(0, str(Path(__file__).parent))
from measured import results  # these lie beside this file
from on_gpu import tables

DOCS = Path(__file__).parent
METHODS = DOCS / "methods"  # a page for each, and no others
EXAMPLES = DOCS.parent / "examples"
FAMILIES = {"prune": "Pruning", "lowrank": "Low rank", "distill": "Distillation"}
MARKS = "<!-- begin: written by docs/generate.py -->", "<!-- end -->"


def pages() -> dict[Path, str]:
    """Each page that is generated, wholly or between two marks, as it should be."""
    parts = {
        DOCS / "gpu.md": tables(),
        DOCS / "methods.md": _methods(),
        DOCS / "models.md": _models(),
        DOCS / "report.md": _fields(),
        DOCS / "results.md": results(),
        EXAMPLES / "README.md": _results(),
    }
    whole = {METHODS / f"{entry.name}.md": _method(entry) for entry in catalogue().values()}
    return {path: _between_marks(path, text) for path, text in parts.items()} | whole


def _between_marks(path: Path, text: str) -> str:
    begin, end = MARKS
    before, _, rest = path.read_text(encoding="utf-8").partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n\n{text.strip()}\n\n{end}{after}"


# Methods --------------------------------------------------------------------------------------------------------------


def _methods() -> str:
    """A table for each family, from which links lead to the methods' own pages."""
    parts = []
    for family, title in FAMILIES.items():
        entries = [entry for entry in catalogue().values() if entry.family == family]
        if entries:
            rows = [[f"[`{e.name}`](methods/{e.name}.md)", e.does.rstrip("."), e.paper, e.kind] for e in entries]
            parts.append(f"## {title}\n\n{_table(['method', 'what it does', 'paper', 'needs'], rows)}")
    return "\n\n".join(parts)


def _method(entry: Entry) -> str:
    """The page of one method: what `compress methods NAME` tells."""
    rows = [[f"`{s.name}`", s.kind, f"`{s.default}`", s.text] for s in entry.settings]
    settings = _table(["setting (`--set name=value`)", "type", "default", "what it does"], rows)
    data = "" if entry.kind == "nothing" else " --data imagefolder:photos"
    networks = "model.pt --rate 0.5"
    if entry.family == "distill":
        networks = f"{'--model' if entry.teacher_is == 'none' else '--teacher'} model.pt"
    cutout = f"With `--recipe paper`, images of up to 64 pixels are trained with `--cutout {entry.cutout:g}`."
    parts = [
        f"# {entry.name}",
        entry.does,
        f"```sh\ncompress {entry.family} {networks}{data} --method {entry.name}\n```",
        f"Paper: {entry.paper}. Needs {entry.needs}. [All methods](../methods.md)",
        entry.text,
        f"## Settings\n\n{settings if rows else 'It has none of its own.'}",
        cutout if entry.cutout else "",
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


# report.json ----------------------------------------------------------------------------------------------------------


def _fields() -> str:
    """A table for each dataclass of the schema: the report itself first, then its parts."""
    classes = [kind for _, kind in inspect.getmembers(schema, inspect.isclass) if dataclasses.is_dataclass(kind)]
    return "\n\n".join(_fields_of(kind) for kind in sorted(classes, key=lambda kind: (kind is not Report, kind.__name__)))


def _fields_of(kind: type) -> str:
    hints, remarks = typing.get_type_hints(kind), _remarks(kind)
    rows = [[f"`{field.name}`", _kind(hints[field.name]), remarks.get(field.name, "")] for field in dataclasses.fields(kind)]
    return f"### {kind.__name__}\n\n{inspect.getdoc(kind)}\n\n{_table(['key', 'holds', 'remark'], rows)}"


def _remarks(kind: type) -> dict[str, str]:
    """The comments beside the fields in the source."""
    return dict(re.findall(r"^    (\w+): .*?  # (.+)$", inspect.getsource(kind), re.MULTILINE))


def _kind(hint: Any) -> str:
    """A type as a reader of JSON would name it; parts of the report link to their own table."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is list:
        return f"list of {_kind(args[0])}"
    if origin is dict:
        return f"object of {_kind(args[1])}"
    if origin is UnionType:
        return " or ".join(_kind(arg) for arg in args)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return f"[{hint.__name__}](#{hint.__name__.lower()})"
    return {str: "string", int: "whole number", float: "number", bool: "true or false", NoneType: "null"}[hint]


# Results --------------------------------------------------------------------------------------------------------------


def _results() -> str:
    """One row for each report that lies under examples/."""
    rows = []
    for path in sorted(EXAMPLES.glob("*/results/*.json")):
        report = read_report(path)
        before, after = report.baseline, report.compressed
        times = [f"{formatting.milliseconds(profile.latency[0].median_ms)}" for profile in (before, after)]
        rows.append(
            [
                f"[{path.stem}]({path.relative_to(EXAMPLES)})",
                str(len(report.epochs)),
                f"{formatting.count(before.macs)} → {formatting.count(after.macs)}",
                f"{formatting.count(before.params)} → {formatting.count(after.params)}",
                f"{_score(headline(before.scores))} → {_score(headline(after.scores))}",
                " → ".join(times),
            ]
        )
    return _table(["report", "epochs", "MACs", "parameters", "top-1 [95 %]", "batch 1, one CPU thread"], rows)


def _score(score: Score | None) -> str:
    return "not measured" if score is None else f"{formatting.score(score)} {formatting.interval(score)}"


# Models ---------------------------------------------------------------------------------------------------------------

Row = dict[str, Any]  # one model and one tool, as examples/benchmarks/zoo.py writes it
OURS, THEIRS = "ours", "torch-pruning"
STEPS = {  # column -> the step of zoo.py that it shows
    "analysed": "analysis",
    "cut": "surgery",
    "equal": "verification",
    "runs": "forward",
    "reloads": "reload",
    "ONNX": "onnx",
}
STEPS_OF = {OURS: list(STEPS), THEIRS: ["analysed", "cut", "runs", "ONNX"]}


def _models() -> str:
    """How many models of each family pass each step, every model, and what stopped those that do not pass."""
    rows: list[Row] = json.loads((EXAMPLES / "benchmarks" / "zoo.json").read_text(encoding="utf-8"))["rows"]
    families: dict[str, dict[str, dict[str, Row]]] = {}  # family -> model -> tool -> row
    for row in rows:
        families.setdefault(row["family"], {}).setdefault(row["model"], {})[row["tool"]] = row
    parts = ["## Summary", _summary(families)]
    for family, models in families.items():
        header = ["model", *_header("ours", OURS), *_header("Torch-Pruning", THEIRS)]
        table = [[f"`{model}`", *_cells(tools, OURS), *_cells(tools, THEIRS)] for model, tools in models.items()]
        parts += [f"## {family[0].upper()}{family[1:]}", _table(header, table)]
    for title, tool in (("Where ours falls short", OURS), ("What stopped Torch-Pruning", THEIRS)):
        short = [f"- `{row['model']}`: {'; '.join(why)}" for row in rows if row["tool"] == tool and (why := _shortcomings(row))]
        parts += [f"## {title}", "\n".join(short) or "Nowhere."]
    return "\n\n".join([*parts, *_owners()])


def _summary(families: dict[str, dict[str, dict[str, Row]]]) -> str:
    lines = []
    for family, models in families.items():
        for tool, name in ((OURS, "ours"), (THEIRS, "Torch-Pruning")):
            marks = [_marks(tools[tool]) for tools in models.values() if tool in tools]
            tried = {step for mark in marks for step in STEPS_OF[tool] if mark[step]}  # the others are blank, not zero
            counts = [str(sum(mark[step] == "✓" for mark in marks)) if step in tried else "" for step in STEPS]
            neither = sum(mark["ONNX"] == "–" for mark in marks)
            lines.append([family, name, str(len(marks)), *counts, str(neither or "")])
    return _table(["family", "tool", "models", *STEPS, "the original has no ONNX form"], lines)


def _header(name: str, tool: str) -> list[str]:
    return [f"{name}: seconds", "MACs left", *STEPS_OF[tool]]


def _cells(tools: dict[str, Row], tool: str) -> list[str]:
    """The cells of one model and one tool: empty where that was not measured."""
    if (row := tools.get(tool)) is None:
        return [""] * (2 + len(STEPS_OF[tool]))
    spent = [row["seconds"][step]["cpu"] for step in ("analysis", "selection", "surgery") if step in row.get("seconds", {})]
    marks = _marks(row)
    left = formatting.share(row["macs_after"] / row["macs"]) if "macs_after" in row else ""
    return [f"{sum(spent):.1f}" if marks["cut"] == "✓" else "", left, *(marks[step] for step in STEPS_OF[tool])]


def _marks(row: Row) -> dict[str, str]:
    """Column -> ✓ passed, ✗ failed, – the original fails likewise, nothing where it did not get so far."""
    done, failed = row.get("seconds", {}), row["failed"]
    marks = {column: "✓" if step in done else "✗" if step in failed else "" for column, step in STEPS.items()}
    if not failed.get("onnx of the original", "stopped").startswith("stopped"):  # out of time says nothing of the original
        marks["ONNX"] = "–"
    return marks


def _shortcomings(row: Row) -> list[str]:
    """Where a model falls short, and why; nothing when all is well, or the original has no ONNX form either."""
    why = [f"{step}: {_code(reason)}" for step, reason in row["failed"].items() if not step.startswith("onnx")]
    if _marks(row)["ONNX"] == "✗":
        why.append(f"onnx: {_code(row['failed']['onnx'])}")
    if row["tool"] == OURS and "macs_after" in row and row["macs_after"] > 0.51 * row["macs"]:
        why.append(f"at most {formatting.share(1 - row['macs_after'] / row['macs'])} of the MACs could go")
    if held := row.get("held"):
        name, reason = next(iter(held.items()))
        why.append(f"{len(held)} of {row['groups']} groups are held whole, the first of them `{name}`: {_code(reason)}")
    return why


def _owners() -> list[str]:
    """The table of the public checkpoints, as examples/benchmarks/owners_networks.py writes it."""
    figures = json.loads((EXAMPLES / "benchmarks" / "owners_networks.json").read_text(encoding="utf-8"))
    rows: list[Row] = figures["rows"]
    asked = [f"{name}, -{100 * figures['asked'][name]:.0f} %" for name in ("prune", "lowrank")]
    whole = sum(not row["failed"] for row in rows)
    header = ["network", "task", "parameters", "MACs", *asked, "ONNX batch sizes", "ONNX image sizes", "what failed"]
    return [
        "## Public checkpoints with their owners' code",
        f"{whole} of {len(rows)} pass every step. MACs are for the first image size; both reductions are the ones reached.",
        _table(header, map(_owners_row, rows)),
    ]


def _owners_row(row: Row) -> list[str]:
    name = f"[`{row['name']}`](https://github.com/{row['repository']})"
    cost = [formatting.count(row["inspect"][key]) if row.get("inspect", {}).get(key) else "" for key in ("params", "macs")]
    reached = [
        formatting.share(row[step]["removed"]) if "removed" in row.get(step, {}) else "✗" for step in ("prune", "lowrank")
    ]
    batches = dict.fromkeys(key.rpartition("batch ")[2] for key in row.get("batches", {}).get("differences", {}))
    sides = [key.rpartition(" ")[2] for key in row.get("sizes", {}).get("differences", {})]
    sides = list(dict.fromkeys([row["size"], *sides])) if batches else sides
    failed = "; ".join(f"{step}: {_code(why)}" for step, why in row["failed"].items())
    return [name, row["task"], *cost, *reached, ", ".join(batches) or "✗", ", ".join(sides) or "✗", failed]


def _code(message: str) -> str:
    return "`" + message.replace("`", "'") + "`"


def _table(header: list[str], rows: Iterable[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    METHODS.mkdir(exist_ok=True)
    for left_over in set(METHODS.iterdir()) - pages().keys():
        left_over.unlink()
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
