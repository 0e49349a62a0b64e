"""`compress report`, and `compress compare` of finished runs: pages from report.json alone, and errors."""

import json
from dataclasses import replace
from pathlib import Path

import example
import pytest
from small import compress

from compressor.report import read_report, to_json


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Finished runs `a` and `b`, which differ by their method, in the working directory."""
    for method in ("a", "b"):
        (tmp_path / method).mkdir()
        report = replace(example.example(), name=method, method=method, layers=[], epochs=[])
        (tmp_path / method / "report.json").write_text(to_json(report), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_pages_of_a_run_are_rewritten(runs: Path) -> None:
    (runs / "a" / "report.html").write_text("old")
    result = compress("report", "a")
    assert result.exit_code == 0, result.output
    assert "40.6 M -> 20.2 M MACs" in result.stdout and "Written to a: report.html, report.md, plots/*.csv" in result.stdout
    assert (runs / "a" / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert (runs / "a" / "plots" / "stages.csv").read_text().startswith("stage,top1,low,high,n")
    printed = compress("report", "a", "--out", "elsewhere", "--json").stdout
    assert json.loads(printed) == json.loads((runs / "a" / "report.json").read_text(encoding="utf-8"))
    assert (runs / "elsewhere" / "report.md").exists()


def test_several_runs_come_onto_one_page(runs: Path) -> None:
    result = compress("compare", "a", "b/report.json")
    assert result.exit_code == 0, result.output
    assert "The table and the plots are in runs/compare" in result.stdout
    files = {path.name: path.read_bytes() for path in (runs / "runs" / "compare").iterdir()}
    page = {"comparison.html", "comparison.md", "comparison.csv", "comparison.json"}
    assert files.keys() == page | {"accuracy-and-cost.svg", "accuracy-and-cost.csv"}
    result = compress("report", "a", "b", "--json")
    assert [point["run"] for point in json.loads(result.stdout)["points"]] == ["a", "b"]
    assert {path.name: path.read_bytes() for path in (runs / "runs" / "compare").iterdir()} == files


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("compare", "a", "none"), "none does not exist: give the directory of a finished run, or its report.json"),
        (("compare", "a", "."), "report.json does not exist"),
        (
            ("compare", "model.pt"),
            "cannot be read as a report: it is not a text file\nTo prune one model with several methods, list",
        ),
        (("compare", "a", "b", "--methods", "sfp"), "--methods prunes one MODEL, but 2 were given: a, b. To compare"),
        (("compare", "a", "--rates", "0.5", "--force"), "--rates, --force: only with --methods"),
        (("compare",), "Missing argument"),
        (("report", "a", "--out", "b"), "b contains the report of another run"),
        (("report", "a", "--out", "model.pt"), "could not be written"),
        (("report", "model.pt"), "cannot be read as a report"),
    ],
)
def test_what_cannot_be_done_is_an_error(runs: Path, arguments: tuple[str, ...], words: str) -> None:
    (runs / "model.pt").write_bytes(b"\x80\x02")
    result = compress(*arguments)
    assert result.exit_code == 2, result.output
    assert words in result.stderr and "Traceback" not in result.stderr
    assert read_report(runs / "b").name == "b"
