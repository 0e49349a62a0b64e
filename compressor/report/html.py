"""The report as one self-contained HTML page, readable without network access and scripts, in light and dark mode and in print.

The style is in page.css, the content in page.html.jinja, which escapes all text.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from compressor.report import comparison, formatting, summary
from compressor.report.comparison import Comparison
from compressor.report.feeding import feeding
from compressor.report.pareto import HOW_TO_READ
from compressor.report.schema import Report

if TYPE_CHECKING:
    from compressor.report.plots import Plot


def to_html(report: Report, drawn: Mapping[str, Sequence[Plot]] | None = None, examples: bytes | None = None) -> str:
    """The whole page. `drawn`: its plots, if they exist already; `examples`: a PNG file of test images."""
    from compressor.report.plots import plots  # matplotlib takes a second to import, and only the page needs it

    page = _environment().get_template("page.html.jinja")
    return page.render(
        report=report,
        summary=summary,
        plots=drawn or plots(report),
        cards=_cards(report),
        feeding=feeding(report),
        examples=None if examples is None else base64.b64encode(examples).decode("ascii"),
    )


def comparison_to_html(compared: Comparison, drawn: Sequence[Plot]) -> str:
    """The page that compares several runs, with its plots `drawn`."""
    page = _environment().get_template("comparison.html.jinja")
    return page.render(compared=compared, comparison=comparison, plots=drawn, how_to_read=HOW_TO_READ)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("compressor", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": formatting.count,
        "size": formatting.size,
        "share": formatting.share,
        "duration": formatting.duration,
        "shape": formatting.shape,
        "inputs": formatting.inputs,
        "typeset": _typeset,
        "capitalize_first": lambda text: text[:1].upper() + text[1:],
        "data_url": _data_url,
    }
    return environment


def _cards(report: Report) -> list[summary.Row]:
    """The four metrics at the top of the page."""
    macs, params, *_ = summary.cost_rows(report)
    return [macs, params, summary.score_rows(report)[0], summary.latency_rows(report)[0]]


def _typeset(text: str) -> str:
    """Numbers with typographic arrows, minus and times signs, and a no-break space before per cent signs."""
    text = text.replace(" %", "\N{NO-BREAK SPACE}%").replace("+-", "\N{PLUS-MINUS SIGN}")
    text = re.sub(r"(?<![\w-])-(?=\d)", "\N{MINUS SIGN}", text.replace("->", "\N{RIGHTWARDS ARROW}"))
    return re.sub(r"(?<=\d)x\b|(?<=\d)x(?=\d)", "\N{MULTIPLICATION SIGN}", text)


def _data_url(csv: str) -> str:
    return f"data:text/csv;charset=utf-8,{quote(csv)}"
