"""The verdict and the rows: before, after, and what was not measured."""

from dataclasses import replace

import example
import pytest

from compressor.report import Accuracy, Change, Profile, Target, Verification, compare, verdict
from compressor.report.summary import (
    accuracy_rows,
    asked_and_reached,
    checks,
    latency_rows,
    rows,
    stage_heading,
    stage_note,
    stage_rows,
)

GOOD = Verification(2e-7, 1e-4, {"1": 3e-7}, 1e-4)
BEFORE = Profile(40_800_000, 270_000, 1_080_000, 1_100_000, None, example.accuracy(0.8796), [example.timed(1, 1.93)])
AFTER = Profile(20_300_000, 135_000, 540_000, 550_000, None, example.accuracy(0.8710), [example.timed(1, 1.31)])


def test_a_whole_verdict() -> None:
    assert verdict(BEFORE, AFTER, GOOD) == (
        "40.8 M -> 20.3 M MACs (-50.2 %), top-1 87.96 % -> 87.10 % (-0.86, n = 10,000), "
        "CPU 1.93 ms -> 1.31 ms at batch 1 (1.5x), checks passed"
    )


def test_a_file_that_alone_became_smaller_is_what_a_verdict_tells() -> None:
    after = replace(BEFORE, size_bytes=320_000)
    assert verdict(BEFORE, after, GOOD).startswith("1.10 MB -> 320 kB ONNX file (-70.9 %), top-1 87.96 %")
    assert verdict(BEFORE, BEFORE, GOOD).startswith("40.8 M -> 40.8 M MACs (0.0 %)")


@pytest.mark.parametrize(
    ("median", "words"),
    [
        (1.97, "CPU 1.93 ms -> 1.97 ms, no faster at batch 1: 0.98x"),
        (1.90, "CPU 1.93 ms -> 1.90 ms, no faster at batch 1: 1.02x"),
        (2.41, "CPU 1.93 ms -> 2.41 ms, slower at batch 1: 0.80x"),
    ],
)
def test_no_gain_is_said_plainly(median: float, words: str) -> None:
    after = replace(AFTER, latency=[example.timed(1, median)])
    assert words in verdict(BEFORE, after, GOOD)


def test_what_was_not_measured_is_said_plainly() -> None:
    after = replace(AFTER, accuracy=None, latency=[])
    assert verdict(BEFORE, after, GOOD).endswith("accuracy not measured (no data), latency not measured, checks passed")


def test_an_original_that_was_not_measured_is_no_zero() -> None:
    before = replace(BEFORE, accuracy=None, latency=[])
    words = "top-1 87.10 % (n = 10,000; the original was not measured), CPU 1.31 ms at batch 1 (the original was not measured)"
    assert words in verdict(before, AFTER, GOOD)
    report = replace(example.example(), baseline=before, compressed=AFTER)
    assert [(row.before, row.after) for row in rows(report)[-2:]] == [("not measured", "87.10 %"), ("not measured", "1.31 ms")]


def test_accuracies_on_different_images_say_so() -> None:
    before = replace(BEFORE, accuracy=example.accuracy(0.8796, 5000))
    assert "(-0.86, n = 5,000 and 10,000)" in verdict(before, AFTER, GOOD)


@pytest.mark.parametrize(
    ("verification", "words"),
    [
        (replace(GOOD, masked=2e-4), "CHECKS FAILED"),
        (replace(GOOD, onnx={"1": 1e-7, "2": float("nan")}), "CHECKS FAILED"),
        (replace(GOOD, masked=None), "checks passed"),
        (Verification(None, 1e-4, {}, 1e-4), "not checked"),
    ],
)
def test_the_verdict_ends_with_the_checks(verification: Verification, words: str) -> None:
    assert verdict(BEFORE, AFTER, verification).endswith(f", {words}")


def test_only_checks_that_ran_are_listed() -> None:
    assert [check.name for check in checks(replace(GOOD, masked=None))] == ["ONNX Runtime against PyTorch, batch 1"]


def test_changes_are_after_over_before() -> None:
    change = compare(BEFORE, AFTER)
    assert change == Change(
        macs=pytest.approx(203 / 408),
        params=0.5,
        weight_bytes=0.5,
        size_bytes=0.5,
        top1=pytest.approx(-0.0086),
        latency={"1": pytest.approx(1.93 / 1.31)},
    )


def test_only_equal_set_ups_are_compared() -> None:
    before = replace(BEFORE, latency=[example.timed(1, 1.9, threads=4), example.timed(8, 9.0)])
    after = replace(AFTER, latency=[example.timed(1, 1.3, threads=1), example.timed(8, 4.5)])
    assert compare(before, after).latency == {"8": 2.0}


def test_the_same_batch_on_another_provider_has_its_own_row() -> None:
    changes = [(row.detail, row.change, row.tone) for row in latency_rows(example.example())]
    assert changes == [
        ("batch 1, CPU, 1 thread", "1.5x faster", "good"),
        ("batch 1, CUDA, 1 thread", "no faster: 0.98x", "plain"),
        ("batch 32, CPU, 1 thread", "1.7x faster", "good"),
    ]


@pytest.mark.parametrize(("top1", "tone"), [(0.8710, "plain"), (0.83, "bad"), (0.92, "good")])
def test_overlapping_intervals_decide_nothing(top1: float, tone: str) -> None:
    report = replace(example.example(), baseline=BEFORE, compressed=replace(AFTER, accuracy=example.accuracy(top1)))
    assert accuracy_rows(report)[0].tone == tone


def test_accuracy_never_stands_without_its_number_of_images() -> None:
    row = accuracy_rows(example.example())[0]
    assert (row.label, row.after, row.after_spread) == ("Top-1, n = 10,000", "87.10 %", "[86.4, 87.7]")


def test_an_accuracy_of_nothing_has_no_share() -> None:
    before = replace(BEFORE, accuracy=Accuracy(0.0, 0.0, 0.1, 30))
    row = accuracy_rows(replace(example.example(), baseline=before))[0]
    assert (row.left, row.change) == (None, "+87.10 points")


def test_asked_and_reached_says_why_they_differ() -> None:
    target = Target("params", 0.5, 0.463, "params=50%", "widths were rounded to 8")
    assert asked_and_reached(target) == (
        "target: 50.0 % of the parameters removed (params=50%), reached 46.3 %: widths were rounded to 8"
    )


def test_filters_are_counted_as_papers_do_too() -> None:
    target = Target("filters", 0.4, 0.386, "filters=40%", "filters are removed in whole numbers", 0.522)
    assert asked_and_reached(target).endswith(
        ": filters are removed in whole numbers; 52.2 % of the MACs with fractional channel counts, as papers count"
    )


def test_stages_have_columns_for_what_some_stage_has() -> None:
    report = example.pipeline()
    table = [dict(zip(stage_heading(report), row, strict=True)) for row in stage_rows(report)]
    assert [(row["ONNX file"], row["latency"]) for row in table] == [
        ("1.10 MB", "1.93 ms"), ("525 kB", "1.31 ms (1.5x)"), ("160 kB", "0.740 ms (2.6x)"), ("-", "-"),
    ]  # fmt: skip
    assert stage_note(report).startswith("Latency of stages: batch 1, CPU, 1 thread, measured interleaved")
    plain = example.example()
    assert stage_heading(plain) == ["stage", "MACs", "parameters", "top-1 [95 %]", "n", "time", "note"]
    assert stage_note(plain) == ""
