"""The report as a short Markdown page, for a pull request or a CI job summary.

CI systems truncate long summaries, so tables are limited; the HTML page and the JSON have the rest. Names come from the
user's network and are escaped: a `|` or a `<` in one must not break the table.
"""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from compressor.report import comparison, formatting, summary
from compressor.report.comparison import Comparison
from compressor.report.feeding import feeding
from compressor.report.pareto import HOW_TO_READ, tradeoffs
from compressor.report.schema import Layer, Report

if TYPE_CHECKING:
    from compressor.report.finding import Checked

MOST_LAYERS = 60
MOST_NOTES = 12  # of warnings, and of frozen channels
MOST_CHARACTERS = 50_000  # of the metrics table in a step summary, which may have 1 MiB in all


def to_markdown(report: Report) -> str:
    """Verdict, target, before and after, stages, checks, warnings, changed layers, how to reproduce the run."""
    sections = [
        _heading(report),
        _before_and_after(report),
        _stages(report),
        _checks(report),
        _warnings(report),
        _layers(report),
        _frozen(report),
        _feeding(report),
        _repeat(report),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _heading(report: Report) -> str:
    data = f", data {_code(report.data)}" if report.data else ", without data"
    what = f"{_code(report.model)} ({_code(report.arch)}) by {_code(report.method)}{data}"
    asked = summary.asked_and_reached(report.target)
    return f"## {_text(report.name)}\n\n**{_text(report.verdict)}**\n\n{what}\n\n{_text(_sentence(asked))}"


def _before_and_after(report: Report) -> str:
    table = _table(
        ["", "before", "after", "change"],
        "lrrr",
        (
            [
                _text(row.label),
                f"{row.before} {row.before_spread}".rstrip(),
                f"{row.after} {row.after_spread}".rstrip(),
                f"{row.change} {row.change_spread}".rstrip(),
            ]
            for row in summary.rows(report)
        ),
    )
    return "\n\n".join([table, *(_text(note) for note in summary.notes(report))])


def _stages(report: Report) -> str:
    header = summary.stage_heading(report)
    rows = ([_text(name), *cells, _text(note)] for name, *cells, note in summary.stage_rows(report))
    table = _table(header, "l" + "r" * (len(header) - 2) + "l", rows)
    training = summary.training(report)
    sections = ["### Stages", table, summary.stage_note(report), f"Training: {training}." if training else ""]
    return "\n\n".join(section for section in sections if section) if report.stages else ""


def _checks(report: Report) -> str:
    """All checks in one table: largest difference divided by largest output."""
    done = summary.checks(report.verification)
    if not done:
        return "### Verification\n\nNo checks were run."
    rows = (
        [_text(check.name), f"{check.difference:.1e}", f"{check.tolerance:.1e}", "yes" if check.passed else "**no**"]
        for check in done
    )
    return "### Verification\n\n" + _table(["check", "difference", "tolerance", "passed"], "lrrl", rows)


def _warnings(report: Report) -> str:
    if not report.warnings:
        return ""
    return "### Warnings\n\n" + _bullets([_text(warning) for warning in report.warnings])


def _layers(report: Report) -> str:
    changed = summary.changed_layers(report)
    if not changed:
        return ""
    shown = _most_saving(changed)
    rows = (
        [
            _code(layer.name).replace("|", "\\|"),
            _text(layer.kind),
            f"{formatting.shape(layer.shape)} -> {summary.weights_after(layer)}",
            f"{formatting.count(layer.macs)} -> {formatting.count(layer.macs_after)}",
            f"{formatting.count(layer.params)} -> {formatting.count(layer.params_after)}",
        ]
        for layer in shown
    )
    table = _table(["layer", "type", "weight", "MACs", "parameters"], "llrrr", rows)
    title = f"### Changed layers: {len(changed)} of {len(report.layers)}"
    if len(shown) == len(changed):
        return f"{title}\n\n{table}"
    return f"{title}\n\nThe {len(shown)} layers with the largest reduction in MACs; `report.html` lists all.\n\n{table}"


def _most_saving(layers: list[Layer]) -> list[Layer]:
    """As many layers as the table may have, in network order."""
    order = sorted(range(len(layers)), key=lambda i: layers[i].macs_after - layers[i].macs)
    return [layers[i] for i in sorted(order[:MOST_LAYERS])]


def _frozen(report: Report) -> str:
    if not report.frozen:
        return ""
    return "### Not compressed\n\n" + _bullets([f"{_code(part.name)}: {_text(part.reason)}" for part in report.frozen])


def _feeding(report: Report) -> str:
    lines = feeding(report)
    return f"### Run `model.onnx` on an image\n\n{_block(lines, 'python')}" if lines else ""


def _repeat(report: Report) -> str:
    versions = ", ".join(f"{_text(name)} {_text(version)}" for name, version in report.versions.items())
    facts = f"Seed {report.seed}, {_text(report.device)}, {_text(summary.duration(report))}, {_text(report.created)}"
    return f"### Reproduce\n\n{_block(report.command)}\n\n{facts}. {versions}."


def comparison_to_markdown(compared: Comparison) -> str:
    """The table of several runs, links to the plot files next to it, and notes."""
    what = ""
    if len(compared.originals) == 1:
        (original,) = compared.originals
        what = f"{_code(original.model)}, {_code(original.data) if original.data else 'without data'}"
    plots = "\n\n".join(f"![{_text(found.title)}]({found.name}.svg)" for found in tradeoffs(compared))
    names = [*comparison.heading(compared), "note"]
    table = _table(names, "l" + "r" * (len(names) - 2) + "l", (_compared(compared, row) for row in compared.rows))
    notes = "\n\n".join(_text(note) for note in [*comparison.notes(compared), *([HOW_TO_READ] if plots else [])])
    return "\n\n".join(part for part in ("## Comparison", what, plots, table, notes) if part) + "\n"


def _compared(compared: Comparison, row: comparison.Row) -> list[str]:
    """The cells of a row; bold in the best row."""
    best = comparison.bold(compared) if compared.is_best(row) else ()
    named = zip(comparison.heading(compared), map(_text, comparison.cells(compared, row)), strict=True)
    return [*(f"**{cell}**" if name in best else cell for name, cell in named), _text(row.note)]


def check_to_markdown(report: Report, checked: "Checked") -> str:
    """The result of a check for a CI step summary: the verdict, each budget, and the metrics before and after."""
    title = f"### {_text(formatting.shorten(report.name, 200))}: {checked.verdict}"
    states = {"missed": "**missed**", "warn": "warning"}
    rows = ([states.get(found.status, found.status), _code(found.budget.text), _text(found.text)] for found in checked.findings)
    table = _table(["", "budget", "result"], "lll", rows)
    figures_of_both = _before_and_after(report)
    if len(figures_of_both) > MOST_CHARACTERS:
        figures_of_both = "The metrics before and after are in `report.html`."
    return f"{title}\n\n{table}\n\n{figures_of_both}\n\n"


def _table(header: list[str], align: str, rows: Iterable[list[str]]) -> str:
    """`align` has one letter per column: l or r."""
    rule = [{"l": ":---", "r": "---:"}[side] for side in align]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, rule, *rows])


def _bullets(items: list[str]) -> str:
    shown = [f"- {item}" for item in items[:MOST_NOTES]]
    more = len(items) - len(shown)
    return "\n".join([*shown, f"- and {more} more in `report.html`"] if more else shown)


def _text(text: str) -> str:
    """On one line, with Markdown and HTML markup escaped; `snake_case` needs no escape."""
    return re.sub(r"[\\`*\[\]<|~&$]|(?<!\w)_|_(?!\w)", r"\\\g<0>", " ".join(text.split()))


def _code(text: str) -> str:
    """A code span; its fence is longer than any run of backticks inside."""
    text = " ".join(text.split())
    fence = _fence(text, 1)
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _block(text: str, language: str = "sh") -> str:
    fence = _fence(text, 3)
    return f"{fence}{language}\n{text}\n{fence}"


def _fence(text: str, least: int) -> str:
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    return "`" * max(least, longest + 1)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
