"""The output of a check, for people and for CI services: lines, annotations, a job summary, outputs, JUnit, OpenMetrics.

Names from a report are untrusted: none may start a line of a build log, where CI services look for commands, or break out of
its table cell or attribute.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO
from xml.etree import ElementTree

from rich.console import Console
from rich.text import Text

from compressor.errors import OutputError
from compressor.files import write_text
from compressor.report import formatting, gate
from compressor.report.finding import Checked, Finding
from compressor.report.markdown import check_to_markdown
from compressor.report.schema import Profile, Report, Score

MOST_ANNOTATIONS = 10  # of each level: GitHub shows no more per step
_STYLE = {"ok": "green", "missed": "red", "warn": "yellow", "off": "dim"}


def print_check(checked: Checked, console: Console, quiet: bool) -> None:
    """One line per budget, and the verdict; when `quiet`, only the budgets that fail the check."""
    for finding in checked.having("missed") if quiet else checked.findings:
        status = Text(f"{finding.status:<6}", _STYLE[finding.status])
        console.print(Text.assemble(status, "  ", finding.text), soft_wrap=True)
    if not quiet:
        console.print(Text(checked.verdict, "bold"), soft_wrap=True)


def check_to_json(report: Report, checked: Checked) -> str:
    """The verdict, every budget with its result, and every metric that can have a budget."""
    budgets = [
        {
            "budget": found.budget.text,
            "level": found.budget.level,
            "status": found.status,
            "value": found.value,
            "limit": found.limit,
            "text": found.text,
        }
        for found in checked.findings
    ]
    told = {"version": 1, "passed": checked.passed, "verdict": checked.verdict, "budgets": budgets, "figures": _figures(report)}
    return json.dumps(told, indent=2, allow_nan=False) + "\n"


def _figures(report: Report) -> dict[str, float]:
    """Every metric that was measured, under its name in report.json."""
    names = {"size": "size_bytes", "weights": "weight_bytes", "latency": "latency_ms"}
    return {names.get(name, name): value for name, value in gate.measured(report).items()}


# GitHub ---------------------------------------------------------------------------------------------------------------


def tell_github(report: Report, checked: Checked, environment: Mapping[str, str], log: TextIO) -> None:
    """Annotate the build, and append to the summary and the outputs of its step, if the environment variables are set.

    Raises OutputError if a file cannot be appended to.
    """
    if environment.get("GITHUB_ACTIONS") == "true":
        for command, findings in (("error", checked.having("missed")), ("warning", checked.having("warn"))):
            for finding in findings[:MOST_ANNOTATIONS]:
                print(_annotation(command, finding), file=log)
    _append("GITHUB_STEP_SUMMARY", check_to_markdown(report, checked), environment)
    result = {"passed": str(checked.passed).lower(), "verdict": checked.verdict}
    outputs = result | {name: _number(value) for name, value in _figures(report).items()} | result  # a score has any name
    _append("GITHUB_OUTPUT", "".join(f"{name}={value}\n" for name, value in outputs.items()), environment)


def _annotation(command: str, finding: Finding) -> str:
    title = _escaped(f"Budget {finding.budget.text}").replace(":", "%3A").replace(",", "%2C")
    return f"::{command} title={title}::{_escaped(finding.text)}"


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _append(variable: str, text: str, environment: Mapping[str, str]) -> None:
    """Append to the file that an environment variable names, if it is set. Raises OutputError."""
    if not environment.get(variable):
        return
    path = Path(environment[variable])
    try:
        with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError as error:
        raise OutputError(
            f"{path} could not be written: {error.strerror or error}.\n"
            f"The variable {variable} names this file: unset it, or set it to another file."
        ) from error


# Files for other services ---------------------------------------------------------------------------------------------


def write_junit(path: Path, report: Report, checked: Checked) -> None:
    """A test case for each budget; it fails if the budget is missed at level `error`. Raises OutputError."""
    missed, off = len(checked.having("missed")), len(checked.having("off"))
    counts = {"tests": str(len(checked.findings)), "failures": str(missed), "errors": "0", "skipped": str(off)}
    suites = ElementTree.Element("testsuites", counts)
    suite = ElementTree.SubElement(suites, "testsuite", {"name": _xml(f"compress check {report.name}")} | counts)
    suite.extend(_case(finding) for finding in checked.findings)
    ElementTree.indent(suites)
    write_text(path, f'<?xml version="1.0" encoding="utf-8"?>\n{ElementTree.tostring(suites, encoding="unicode")}\n')


def _case(finding: Finding) -> ElementTree.Element:
    case = ElementTree.Element("testcase", {"classname": "compress.check", "name": finding.budget.text})
    measured = {"value": finding.value, "limit": finding.limit}
    told = {"level": str(finding.budget.level)}
    told |= {name: _number(value) for name, value in measured.items() if value is not None}
    properties = ElementTree.SubElement(case, "properties")
    for name, value in told.items():
        ElementTree.SubElement(properties, "property", {"name": name, "value": value})
    if finding.status == "missed":
        ElementTree.SubElement(case, "failure", {"message": _xml(finding.text), "type": "budget"})
    if finding.status == "off":
        ElementTree.SubElement(case, "skipped", {"message": "off"})
    ElementTree.SubElement(case, "system-out").text = _xml(finding.line)
    return case


def _xml(text: str) -> str:
    """Replace the characters that XML cannot represent."""
    return re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "?", text)


def write_metrics(path: Path, report: Report, checked: Checked) -> None:
    """Every metric of the original and the compressed network, and whether each budget is met. Raises OutputError."""
    families: dict[str, list[tuple[dict[str, str], float]]] = {}
    for network, profile in (("original", report.baseline), ("compressed", report.compressed)):
        for name, labels, value in _samples(profile):
            families.setdefault(f"compress_{name}", []).append(({"network": network, **labels}, value))
    for score in report.fidelity.scores if report.fidelity else []:
        families.setdefault(f"compress_{_metric(score)}", []).append(({}, score.value))
    families["compress_budget_met"] = [
        ({"budget": found.budget.text, "level": found.budget.level}, int(found.met)) for found in checked.findings
    ]
    write_text(path, "".join(_family(name, samples) for name, samples in families.items()) + "# EOF\n")


def _samples(network: Profile) -> list[tuple[str, dict[str, str], float]]:
    """Name, labels and value of every metric, in the base units that the format requires."""
    found: dict[str, float | None] = {
        "macs": network.macs,
        "params": network.params,
        "size_bytes": network.size_bytes,
        "weight_bytes": network.weight_bytes,
        **{_metric(score): score.value for score in network.scores},
    }
    samples: list[tuple[str, dict[str, str], float]] = [(name, {}, value) for name, value in found.items() if value is not None]
    for one in network.latency:
        labels = {"batch": str(one.batch), "provider": formatting.plain(one.provider), "threads": str(one.threads)}
        samples.append(("latency_seconds", labels, one.median_ms / 1000))
    return samples


def _metric(score: Score) -> str:
    """The name with its unit: `miou_ratio`, `psnr_db`."""
    unit = "ratio" if score.unit == "%" else re.sub(r"\W+", "_", score.unit.lower(), flags=re.ASCII).strip("_")
    return f"{score.name}_{unit}" if unit else score.name


def _family(name: str, samples: list[tuple[dict[str, str], float]]) -> str:
    """All samples of one name, without duplicate sets of labels."""
    lines = [f"# TYPE {name} gauge"]
    unit = name.rpartition("_")[2]
    if unit in ("bytes", "seconds", "ratio"):
        lines.append(f"# UNIT {name} {unit}")
    lines += {f"{name}{_labels(labels)}": f"{name}{_labels(labels)} {_number(value)}" for labels, value in samples}.values()
    return "\n".join(lines) + "\n"


def _labels(labels: Mapping[str, str]) -> str:
    pairs = ",".join(f'{name}="{value}"' for name, value in labels.items())
    return f"{{{pairs}}}" if labels else ""


def _number(value: float) -> str:
    """With at most 12 significant digits, without floating-point noise."""
    return str(value) if isinstance(value, int) else f"{value:.12g}"
