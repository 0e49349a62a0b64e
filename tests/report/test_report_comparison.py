"""Several reports side by side: what a row says of its seeds, which one is the best, and that every format says the same."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from xml.etree import ElementTree

import example
import pytest
from markdown_it import MarkdownIt
from rich.console import Console
from test_report_html import Page

from compressor.report import (
    Comparison,
    Gap,
    Report,
    Target,
    collect,
    compare,
    comparison_to_json,
    print_comparison,
    write_comparison,
)
from compressor.report.comparison import cells, heading, notes
from compressor.report.plots import accuracy_by_macs

TOP1 = {("a", 0.5): (0.86, 0.88), ("b", 0.5): (0.861, 0.869), ("a", 0.7): (0.83,), ("dense", 0.0): (0.882, 0.884)}


def report_of(method: str, rate: float, seed: int, top1: float) -> Report:
    report = example.example()
    before = report.baseline
    after = replace(report.compressed, accuracy=example.accuracy(top1), macs=round((1 - rate) * before.macs))
    change = compare(before, after)
    stages = report.stages
    if not rate:
        change, stages = replace(change, latency={}), [stages[0], stages[3], stages[4]]
    target = Target("macs", rate, rate, "")
    return replace(report, method=method, seed=seed, compressed=after, change=change, target=target, stages=stages)


def compared(*gaps: Gap) -> Comparison:
    entries = [(*key, seed, top1) for key, seeds in TOP1.items() for seed, top1 in enumerate(seeds)]
    return collect(
        {f"{method}-{rate:g}-seed{seed}": report_of(method, rate, seed, top1) for method, rate, seed, top1 in entries}, gaps
    )


def row_of(comparison: Comparison, method: str, rate: float) -> dict[str, str]:
    (row,) = (row for row in comparison.rows if (row.method, row.rate) == (method, rate))
    return dict(zip(heading(comparison), cells(comparison, row), strict=True))


FAILED = Gap("b", 0.7, 0, "b-0.7-seed0", "the loss is nan |", 2), Gap("b", 0.7, 1, "b-0.7-seed1", "the loss is nan |", 2)
WAITING = Gap("b", 0.3, 0, "b-0.3-seed0")


def test_several_seeds_are_a_mean_with_its_deviation() -> None:
    row = row_of(compared(), "a", 0.5)
    assert row == {
        "method": "a", "asked": "50.0 %", "top-1": "87.00 +- 1.41 %", "change": "-0.96", "MACs gone": "50.0 %",
        "parameters gone": "52.9 %", "faster": "1.5x", "training": "20 min 39 s", "cut": "31.27 +- 0.00 %",
        "recalibrated": "73.85 +- 0.00 %", "seeds": "2",
    }  # fmt: skip
    assert stdev(TOP1["a", 0.5]) == pytest.approx(0.014142, abs=1e-6)


def test_one_seed_is_a_measurement_with_wilsons_interval() -> None:
    row = row_of(compared(), "a", 0.7)
    assert (row["top-1"], row["cut"], row["seeds"]) == ("83.00 % [82.3, 83.7]", "31.27 % [30.4, 32.2]", "1")


def test_what_was_not_measured_is_no_figure() -> None:
    dense, failed = row_of(compared(*FAILED), "dense", 0.0), row_of(compared(*FAILED), "b", 0.7)
    assert (dense["asked"], dense["faster"], dense["cut"], dense["top-1"]) == ("-", "-", "-", "88.30 +- 0.14 %")
    assert [*failed.values()] == ["b", "70.0 %", *["-"] * 8, "0"]


def test_rows_rise_by_rate_and_the_best_of_rivals_is_marked() -> None:
    comparison = compared(*FAILED, WAITING)
    assert [(row.method, row.rate, comparison.is_best(row)) for row in comparison.rows] == [
        ("dense", 0.0, False), ("b", 0.3, False), ("a", 0.5, True), ("b", 0.5, False), ("a", 0.7, False), ("b", 0.7, False),
    ]  # fmt: skip


def test_a_reason_is_told_once_for_all_its_seeds() -> None:
    comparison = compared(*FAILED, WAITING)
    told = {(row.method, row.rate): row.note for row in comparison.rows if row.note}
    assert told == {("b", 0.7): "seed 0, 1 failed: the loss is nan |", ("b", 0.3): "seed 0 not run yet"}
    assert comparison.failures == [*FAILED]


def test_every_format_holds_the_table(tmp_path: Path) -> None:
    comparison = compared(*FAILED)
    write_comparison(comparison, tmp_path)
    found = MarkdownIt("commonmark").enable("table").render((tmp_path / "comparison.md").read_text(encoding="utf-8"))
    page = Page((tmp_path / "comparison.html").read_text(encoding="utf-8"))
    for text in (found, page.text):
        assert all(word in text for word in ("dense", "31.27", "20 min 39 s", "n = 10,000", "failed: the loss is nan |"))
    assert "<strong>87.00 +- 1.41 %</strong>" in found and "87.00 ± 1.41\N{NO-BREAK SPACE}%" in page.text
    assert found.count("<tr>") == 1 + len(comparison.rows)
    assert {attributes["href"] for tag, attributes in page.elements if tag == "a"} >= {"a-0.7-seed0/report.html"}
    assert [tag for tag, _ in page.elements].count("svg") == 1


def test_csv_and_json_read_back(tmp_path: Path) -> None:
    comparison = compared(*FAILED)
    write_comparison(comparison, tmp_path)
    lines = list(csv.DictReader(io.StringIO((tmp_path / "comparison.csv").read_text(encoding="utf-8"))))
    assert len(lines) == 7 and float(lines[0]["top1"]) == 0.86 and float(lines[0]["top1_cut"]) == 0.3127
    assert (lines[-1]["method"], lines[-1]["top1_cut"], lines[-1]["faster"]) == ("dense", "", "")
    read = json.loads(comparison_to_json(comparison))
    best = [row for row in read["rows"] if row["best"]]
    assert [(row["method"], row["rate"], row["top1"]["mean"]) for row in best] == [("a", 0.5, fmean(TOP1["a", 0.5]))]
    assert [gap["status"] for gap in read["gaps"]] == [2, 2] and read["original"]["accuracy"]["n"] == 10_000


def test_the_plot_has_a_line_a_method_and_the_original() -> None:
    plot = accuracy_by_macs(compared(*FAILED))
    assert (
        plot is not None
        and plot.alt == "the original 87.96 %; a 83.00 % at 30.0 %; b 86.50 % at 50.0 %; dense, uncut 88.30 % at 100.0 %"
    )
    texts = [element.text for element in ElementTree.fromstring(plot.svg).iter("text")]
    assert {"the original", "a", "b", "dense, uncut", "MACs left, % of the original"} <= {*texts}


def test_many_methods_are_lines_of_their_own() -> None:
    names = [f"method{i}" for i in range(14)]
    plot = accuracy_by_macs(collect({name: report_of(name, 0.5, 0, 0.8) for name in names}))
    assert plot is not None
    assert {*names} <= {element.text for element in ElementTree.fromstring(plot.svg).iter("text")}


def test_without_images_there_is_a_table_of_costs_and_no_plot(tmp_path: Path) -> None:
    comparison = collect({"a-0.5-seed0": example.without_data()})
    write_comparison(comparison, tmp_path)
    assert not (tmp_path / "comparison.svg").exists() and accuracy_by_macs(comparison) is None
    assert notes(comparison)[-1] == "Accuracy was not measured: give images with --data."
    Page((tmp_path / "comparison.html").read_text(encoding="utf-8"))


def test_before_any_run_is_finished_there_is_a_table_of_gaps(tmp_path: Path) -> None:
    write_comparison(collect({}, [WAITING]), tmp_path)
    assert "seed 0 not run yet" in (tmp_path / "comparison.md").read_text(encoding="utf-8")
    assert "No run is finished." in Page((tmp_path / "comparison.html").read_text(encoding="utf-8")).text


def test_the_terminal_shows_the_narrow_columns(capsys: pytest.CaptureFixture[str]) -> None:
    print_comparison(compared(*FAILED), Console(width=80))
    told = capsys.readouterr().out
    assert "a 50.0 % 87.00 +- 1.41 % -0.96 50.0 % 1.5x" in " ".join(told.split())
    assert "b at 0.7: seed 0, 1 failed: the loss is nan |" in told
