"""Comparison of reports: rows over seeds, the best row, and the same content in every format."""

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
    to_json,
    write_comparison,
)
from compressor.report.comparison import cells, heading, notes
from compressor.report.pareto import front, tradeoffs
from compressor.report.plots import accuracy_and_cost
from compressor.report.write import compare_runs

TOP1 = {("a", 0.5): (0.86, 0.88), ("b", 0.5): (0.861, 0.869), ("a", 0.7): (0.83,), ("dense", 0.0): (0.882, 0.884)}


def report_of(method: str, rate: float, seed: int, top1: float) -> Report:
    report = example.example()
    before = report.baseline
    after = replace(report.compressed, scores=example.scores(top1), macs=round((1 - rate) * before.macs))
    change = compare(before, after)
    stages = report.stages
    if not rate:
        change, stages = replace(change, latency={}), [stages[0], stages[3], stages[4]]
    target = Target("macs", rate, rate, "")
    settings = report.settings | {"seed": seed}
    return replace(
        report, method=method, seed=seed, compressed=after, change=change, target=target, stages=stages, settings=settings
    )


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
        "method": "a", "target": "50.0 %", "top-1": "87.00 +- 1.41 %", "change": "-0.96", "MACs cut": "50.0 %",
        "parameters cut": "52.9 %", "ONNX file": "527 kB", "speedup": "1.5x", "training": "20 min 39 s",
        "cut": "31.27 +- 0.00 %", "recalibrated": "73.85 +- 0.00 %", "seeds": "2",
    }  # fmt: skip
    assert stdev(TOP1["a", 0.5]) == pytest.approx(0.014142, abs=1e-6)


def test_one_seed_is_a_measurement_with_wilsons_interval() -> None:
    row = row_of(compared(), "a", 0.7)
    assert (row["top-1"], row["cut"], row["seeds"]) == ("83.00 % [82.3, 83.7]", "31.27 % [30.4, 32.2]", "1")


def test_what_was_not_measured_is_no_figure() -> None:
    dense, failed = row_of(compared(*FAILED), "dense", 0.0), row_of(compared(*FAILED), "b", 0.7)
    assert (dense["target"], dense["speedup"], dense["cut"], dense["top-1"]) == ("-", "-", "-", "88.30 +- 0.14 %")
    assert [*failed.values()] == ["b", "70.0 %", *["-"] * 9, "0"]


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
    assert [(row["method"], row["rate"], row[row["score"]]["mean"]) for row in best] == [("a", 0.5, fmean(TOP1["a", 0.5]))]
    assert [gap["status"] for gap in read["gaps"]] == [2, 2] and read["originals"][0]["score"]["n"] == 10_000


def test_without_images_there_is_a_table_of_costs_and_no_plot(tmp_path: Path) -> None:
    comparison = collect({"a-0.5-seed0": example.without_data()})
    write_comparison(comparison, tmp_path)
    assert not [*tmp_path.glob("*.svg")] and accuracy_and_cost(comparison) == []
    assert notes(comparison)[-1] == "Scores were not measured: the runs had no --data."
    Page((tmp_path / "comparison.html").read_text(encoding="utf-8"))


def test_before_any_run_is_finished_there_is_a_table_of_gaps(tmp_path: Path) -> None:
    write_comparison(collect({}, [WAITING]), tmp_path)
    assert "seed 0 not run yet" in (tmp_path / "comparison.md").read_text(encoding="utf-8")
    assert "No run has finished." in Page((tmp_path / "comparison.html").read_text(encoding="utf-8")).text


def test_the_terminal_shows_the_narrow_columns(capsys: pytest.CaptureFixture[str]) -> None:
    print_comparison(compared(*FAILED), Console(width=80))
    told = capsys.readouterr().out
    assert "a 50.0 % 87.00 +- 1.41 % -0.96 50.0 % 527 kB 1.5x" in " ".join(told.split())
    assert "b at 0.7: seed 0, 1 failed: the loss is nan |" in told


# Runs from anywhere ---------------------------------------------------------------------------------------------------


def test_runs_of_other_originals_say_which_is_whose() -> None:
    other = replace(report_of("a", 0.5, 0, 0.86), model="elsewhere/vgg.pt")
    comparison = collect({"one": report_of("a", 0.5, 0, 0.86), "two": other})
    assert [(row.name, row.original, len(row.points)) for row in comparison.rows] == [("a", 0, 1), ("a", 1, 1)]
    assert row_of(collect({"two": other}), "a", 0.5).get("original") is None
    assert heading(comparison)[1] == "original" and cells(comparison, comparison.rows[1])[1] == "2"
    told = "\n".join(notes(comparison))
    assert "Original 2: elsewhere/vgg.pt (examples/cifar/resnet.py:resnet20), imagefolder:data/cifar10: 40.6 M MACs" in told
    assert "The runs have different originals" in told and "on the same test images in all runs" in told
    (found,) = tradeoffs(comparison)
    assert [axis.label.partition(",")[0] for axis in found.axes] == ["MACs", "ONNX file", "latency", "latency"]
    assert [{mark.line for mark in axis.marks} for axis in found.axes[2:]] == [
        {"a, original 1", "original 1"}, {"a, original 2", "original 2"},
    ]  # fmt: skip


def test_one_original_has_one_name_wherever_the_runs_were_started() -> None:
    elsewhere = replace(report_of("a", 0.5, 1, 0.88), model="../checkpoints/resnet20.pt", arch="resnet.py:resnet20")
    comparison = collect({"one": report_of("a", 0.5, 0, 0.86), "two": elsewhere})
    assert len(comparison.originals) == 1 and row_of(comparison, "a", 0.5)["top-1"] == "87.00 +- 1.41 %"


def test_accuracies_on_other_images_never_share_an_axis(tmp_path: Path) -> None:
    comparison = collect({"one": report_of("a", 0.5, 0, 0.86), "two": replace(report_of("a", 0.5, 0, 0.9), data="digits")})
    write_comparison(comparison, tmp_path)
    assert [{mark.score.mean for mark in found.axes[0].marks if mark.seeds} for found in tradeoffs(comparison)] == [
        {0.86},
        {0.9},
    ]
    assert "The test images differ: top-1 on one set is not comparable with top-1 on another" in "\n".join(notes(comparison))
    assert len([*tmp_path.glob("accuracy-and-cost-?.svg")]) == len([*tmp_path.glob("accuracy-and-cost-?.csv")]) == 2


def test_runs_with_other_scores_never_share_an_axis(tmp_path: Path) -> None:
    restored = replace(example.restoration(), method="b", target=Target("macs", 0.5, 0.5, ""))
    comparison = collect({"one": report_of("a", 0.5, 0, 0.86), "two": restored})
    write_comparison(comparison, tmp_path)
    assert (heading(comparison)[3], [cells(comparison, row)[3:5] for row in comparison.rows]) == (
        "score", [["top-1 86.00 % [85.3, 86.7]", "-1.96"], ["PSNR 28.41 dB [28.2, 28.6]", "-0.31"]],
    )  # fmt: skip
    assert [{mark.score.of.name for mark in found.axes[0].marks} for found in tradeoffs(comparison)] == [{"top1"}, {"psnr"}]
    assert [found.title for found in tradeoffs(comparison)] == [
        "Top-1 against cost: imagefolder:data/cifar10, n = 10,000", "PSNR against cost: imagefolder:data/cifar10, n = 100",
    ]  # fmt: skip
    assert not any(comparison.is_best(row) for row in comparison.rows)
    assert "The runs have different scores, which are not comparable: top-1, PSNR." in notes(comparison)
    assert "change is in percentage points or dB from the original" in "\n".join(notes(comparison))
    lines = list(csv.DictReader(io.StringIO((tmp_path / "comparison.csv").read_text(encoding="utf-8"))))
    assert [(line["top1"], line["psnr"], line["psnr_cut"]) for line in lines] == [("0.86", "", ""), ("", "28.41", "9.2")]


def test_where_less_is_better_the_lowest_is_best() -> None:
    def report(method: str, loss: float, macs: int) -> Report:
        made = report_of(method, 0.5, 0, 0.8)
        before, after = replace(made.baseline, scores=[example.loss(0.3)]), replace(made.compressed, macs=macs)
        after = replace(after, scores=[example.loss(loss)])
        return replace(made, baseline=before, compressed=after, change=compare(before, after))

    comparison = collect({"a": report("a", 0.5, 20_000_000), "b": report("b", 0.4, 20_000_000)})
    assert [(row.method, comparison.is_best(row)) for row in comparison.rows] == [("b", True), ("a", False)]
    (found,) = tradeoffs(comparison)
    assert {mark.line for mark in found.axes[0].marks if mark.front} == {"b", "the original"}
    assert row_of(comparison, "b", 0.5)["cross-entropy"] == "0.4000"


def test_runs_that_differ_by_more_than_their_seed_are_rows_of_their_own() -> None:
    first = report_of("a", 0.5, 0, 0.86)
    longer = replace(first, settings=first.settings | {"epochs": 90}, seed=1)
    comparison = collect({"main/a": first, "later/a": first, "long": longer})
    names = ["a (later/a)", "a (long)", "a (main/a)"]
    assert [row.name for row in comparison.rows] == names and [len(row.points) for row in comparison.rows] == [1, 1, 1]
    assert "The runs have different settings: epochs (30 or 90)." in notes(comparison)
    (found,) = tradeoffs(comparison)
    assert {mark.line for mark in found.axes[0].marks} == {*names, "the original"}


def test_a_budget_of_something_else_than_macs_says_so() -> None:
    report = report_of("a", 0.4, 0, 0.86)
    report = replace(report, target=replace(report.target, quantity="params"))
    assert row_of(collect({"a": report}), "a", 0.4)["target"] == "40.0 % of the parameters"


def test_finished_runs_are_read_and_named_by_what_tells_them_apart(tmp_path: Path) -> None:
    for place in ("main/half", "branch/half", "other"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "report.json").write_text(to_json(example.without_data()), encoding="utf-8")
        (tmp_path / place / "report.html").touch()
    (tmp_path / "lone.json").write_text(to_json(example.without_data()), encoding="utf-8")
    runs = ["main/half", "branch/half/report.json", "other", "main/half/", "lone.json"]
    comparison = compare_runs([tmp_path / run for run in runs], tmp_path / "page" / "s")
    assert {point.run: point.page for point in comparison.points} == {
        "main/half": "../../main/half/report.html", "branch/half": "../../branch/half/report.html",
        "other": "../../other/report.html", "lone.json": "",
    }  # fmt: skip
    links = [a["href"] for tag, a in Page((tmp_path / "page" / "s" / "comparison.html").read_text()).elements if tag == "a"]
    assert links == [point.page for point in comparison.points if point.page]


# Accuracy against cost ------------------------------------------------------------------------------------------------


def test_the_front_is_what_nothing_else_beats() -> None:
    assert front([(1, 0.5), (2, 0.4), (2, 0.6), (3, 0.6), (2, 0.6)]) == [True, False, True, False, True]


def quantized(report: Report) -> Report:
    """As many MACs, a smaller file, less time."""
    after = replace(report.compressed, size_bytes=130_000, latency=[example.timed(1, 0.7)])
    return replace(report, method="int8", compressed=after, change=compare(report.baseline, after))


def test_every_cost_has_its_front_and_its_original() -> None:
    half, wide = report_of("a", 0.5, 0, 0.86), report_of("b", 0.4, 0, 0.84)
    comparison = collect({"half": half, "wide": wide, "int8": quantized(report_of("a", 0.5, 0, 0.855))})
    (found,) = tradeoffs(comparison)
    best = {axis.cost: {mark.line for mark in axis.marks if mark.front} for axis in found.axes}
    assert best == {
        "macs": {"a", "the original"},  # int8 has as many as a, and is less accurate
        "size_bytes": {"int8", "a", "the original"},
        "latency_left": {"int8", "a", "the original"},
    }
    latency = {mark.line: mark.cost for mark in found.axes[2].marks}
    assert latency["int8"] == pytest.approx(0.7 / 1.93) and latency["the original"] == 1
    assert found.axes[2].label == "latency, relative to the original\nbatch 1, CPU, 1 thread"


def test_the_plot_shows_every_axis_and_its_csv_every_mark() -> None:
    comparison = compared(*FAILED)
    (found,), (plot,) = tradeoffs(comparison), accuracy_and_cost(comparison)
    root = ElementTree.fromstring(plot.svg)
    texts = {element.text for element in root.iter("text")}
    assert texts >= {"Pareto front", "the original", "a", "b", "dense, unpruned", "MACs, one image", "ONNX file"}
    assert any("opacity: 0.35" in element.get("style", "") for element in root.iter())  # dominated networks are pale
    assert (
        "MACs, one image, Pareto front: a 83.00 % at 12.2 M, a 87.00 % at 20.3 M, dense, unpruned 88.30 % at 40.6 M" in plot.alt
    )
    lines = list(csv.DictReader(io.StringIO(plot.csv)))
    assert len(lines) == sum(len(axis.marks) for axis in found.axes)
    of_a = [line for line in lines if (line["cost"], line["line"], line["asked"]) == ("macs", "a", "50.0 %")]
    assert [(line["pareto_front"], line["seeds"]) for line in of_a] == [("yes", "2")] and float(of_a[0]["top1"]) == 0.87


def test_many_methods_are_lines_of_their_own() -> None:
    names = [f"method{i}" for i in range(14)]
    (plot,) = accuracy_and_cost(collect({name: report_of(name, 0.5, 0, 0.8) for name in names}))
    assert {*names} <= {element.text for element in ElementTree.fromstring(plot.svg).iter("text")}
