"""The report of a run: one schema (`schema.py`), written as JSON, Markdown, an HTML page and terminal tables, and the gate that
checks it against budgets. Nothing here imports torch.

Imports: nothing.
"""

from compressor.report.comparison import Comparison, Gap, collect, comparison_to_json
from compressor.report.html import to_html
from compressor.report.markdown import to_markdown
from compressor.report.read import from_json, json_schema, read_report, to_json
from compressor.report.schema import (
    VERSION,
    Change,
    Difference,
    Epoch,
    Fidelity,
    Frozen,
    Latency,
    Layer,
    Preprocessing,
    Profile,
    Report,
    Score,
    Stage,
    Target,
    Teaching,
    Verification,
    headline,
    named,
)
from compressor.report.summary import compare, verdict
from compressor.report.terminal import print_comparison, print_report
from compressor.report.write import write_comparison, write_reports

__all__ = [
    "VERSION",
    "Change",
    "Comparison",
    "Difference",
    "Epoch",
    "Fidelity",
    "Frozen",
    "Gap",
    "Latency",
    "Layer",
    "Preprocessing",
    "Profile",
    "Report",
    "Score",
    "Stage",
    "Target",
    "Teaching",
    "Verification",
    "collect",
    "compare",
    "comparison_to_json",
    "from_json",
    "headline",
    "json_schema",
    "named",
    "print_comparison",
    "print_report",
    "read_report",
    "to_html",
    "to_json",
    "to_markdown",
    "verdict",
    "write_comparison",
    "write_reports",
]
