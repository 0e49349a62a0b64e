"""The verdict and the rows: before, after, and what was not measured."""

from dataclasses import replace

import example
import pytest

from compressor.report import Change, Difference, Profile, Score, Target, Verification, compare, verdict
from compressor.report.summary import (
    asked_and_reached,
    checks,
    fidelity,
    latency_rows,
    notes,
    rows,
    score_rows,
    stage_heading,
    stage_note,
    stage_rows,
)

GOOD = Verification(2e-7, 1e-4, {"1": 3e-7}, 1e-4)
BEFORE = Profile(40_800_000, 270_000, 1_080_000, 1_100_000, None, example.scores(0.8796), [example.timed(1, 1.93)])
AFTER = Profile(20_300_000, 135_000, 540_000, 550_000, None, example.scores(0.8710), [example.timed(1, 1.31)])


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
    after = replace(AFTER, scores=[], latency=[])
    assert verdict(BEFORE, after, GOOD).endswith("scores not measured (no data), latency not measured, checks passed")


def test_an_original_that_was_not_measured_is_no_zero() -> None:
    before = replace(BEFORE, scores=[], latency=[])
    words = "top-1 87.10 % (n = 10,000; the original was not measured), CPU 1.31 ms at batch 1 (the original was not measured)"
    assert words in verdict(before, AFTER, GOOD)
    report = replace(example.example(), baseline=before, compressed=AFTER)
    assert [(row.before, row.after) for row in rows(report)[-2:]] == [("not measured", "87.10 %"), ("not measured", "1.31 ms")]


def test_accuracies_on_different_images_say_so() -> None:
    before = replace(BEFORE, scores=example.scores(0.8796, 5000))
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
        latency={"1": pytest.approx(1.93 / 1.31)},
        scores={"top1": Difference(pytest.approx(-0.0086))},
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
    report = replace(example.example(), baseline=BEFORE, compressed=replace(AFTER, scores=example.scores(top1)))
    assert score_rows(report)[0].tone == tone


@pytest.mark.parametrize(
    ("interval", "tone"), [((-0.009, -0.001), "bad"), ((-0.009, 0.001), "plain"), ((0.001, 0.002), "good")]
)
def test_the_interval_of_the_difference_decides_where_there_is_one(interval: tuple[float, float], tone: str) -> None:
    change = replace(example.example().change, scores={"top1": Difference(-0.0086, *interval)})
    row = score_rows(replace(example.example(), change=change))[0]  # the intervals of both scores overlap
    assert row.tone == tone


@pytest.mark.parametrize(("after", "tone"), [(0.5, "bad"), (0.3, "good")])
def test_less_may_be_better(after: float, tone: str) -> None:
    before, after_ = (replace(example.loss(value), low=value - 0.01, high=value + 0.01) for value in (0.4, after))
    report = replace(example.example(), baseline=replace(BEFORE, scores=[before]), compressed=replace(AFTER, scores=[after_]))
    assert score_rows(report)[0].tone == tone


def test_scores_of_any_task_are_told_in_their_units() -> None:
    report = example.restoration()
    assert ", PSNR 28.72 dB -> 28.41 dB (-0.31 [-0.36, -0.26], n = 100), " in report.verdict
    first, second = score_rows(report)
    assert (first.label, first.before, first.after) == ("PSNR, n = 100", "28.72 dB", "28.41 dB")
    assert (first.before_spread, first.after_spread) == ("[28.5, 28.9]", "[28.2, 28.6]")
    assert (first.change, first.change_spread, first.tone, first.left) == ("-0.31 dB", "[-0.36, -0.26]", "bad", None)
    assert (second.label, second.before, second.after, second.change) == ("SSIM, n = 100", "0.8123", "0.8071", "-0.0052")
    assert (second.change_spread, second.tone) == ("", "plain")
    assert fidelity(report) == "PSNR 41.30 dB [41.1, 41.5] (n = 100 test images)"
    assert notes(report)[1] == "In brackets: 95 % confidence interval; that of a change is paired over the images."
    assert notes(example.example())[1] == "In brackets: 95 % confidence interval."
    assert stage_heading(report)[3:5] == ["PSNR [95 %]", "n"]
    assert [row[3] for row in stage_rows(report)] == ["28.72 dB [28.5, 28.9]", "9.20 dB [9.0, 9.4]", "28.41 dB [28.2, 28.6]"]


def test_a_score_that_one_network_alone_has_is_not_compared() -> None:
    before = replace(BEFORE, scores=[example.psnr(28.7), example.loss(0.4)])
    after = replace(AFTER, scores=[replace(example.psnr(28.4), unit="%", value=0.284), *example.scores(0.9)])
    assert compare(before, after).scores == {}
    rows_ = score_rows(replace(example.example(), baseline=before, compressed=after))
    assert [(row.name, row.before, row.after, row.change) for row in rows_] == [
        ("PSNR", "not measured", "28.40 %", ""),
        ("Top-1", "not measured", "90.00 %", ""),
        ("PSNR", "28.70 dB", "not measured", ""),
        ("Cross-entropy", "0.4000", "not measured", ""),
    ]


def test_paired_differences_are_taken_and_are_the_differences() -> None:
    paired = Difference(0.8710 - 0.8796, -0.0121, -0.0051)
    assert compare(BEFORE, AFTER, {"top1": paired}).scores == {"top1": paired}
    assert "top-1 87.96 % -> 87.10 % (-0.86 [-1.21, -0.51], n = 10,000)" in verdict(BEFORE, AFTER, GOOD, {"top1": paired})


def test_only_the_interval_of_a_paired_difference_is_taken() -> None:
    """The same network may be measured with PyTorch and with ONNX Runtime: the change is that of the reported scores."""
    found = compare(BEFORE, AFTER, {"top1": Difference(-0.0080, -0.0115, -0.0045)}).scores["top1"]
    assert (found.value, found.low, found.high) == pytest.approx((-0.0086, -0.0121, -0.0051))


def test_accuracy_never_stands_without_its_number_of_images() -> None:
    row = score_rows(example.example())[0]
    assert (row.label, row.after, row.after_spread) == ("Top-1, n = 10,000", "87.10 %", "[86.4, 87.7]")


def test_an_accuracy_of_nothing_has_no_share() -> None:
    before = replace(BEFORE, scores=[Score("top1", "top-1", 0.0, "%", 2, 30, 0.0, 0.1)])
    row = score_rows(replace(example.example(), baseline=before))[0]
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


def test_of_many_scores_the_largest_loss_is_named() -> None:
    """A mean of classes hides what happens to one of them."""
    names = {"miou": (0.6, 0.59), "iou_a": (0.9, 0.91), "iou_b": (0.5, 0.42), "iou_c": (0.4, 0.44)}

    def scores(place: int) -> list[Score]:
        return [Score(name, name, values[place], "%", 2, 20) for name, values in names.items()]

    report = example.example()
    before, after = replace(report.baseline, scores=scores(0)), replace(report.compressed, scores=scores(1))
    differences = {"iou_b": Difference(-0.08, -0.11, -0.05)}
    report = replace(report, baseline=before, compressed=after, change=compare(before, after, differences))
    assert "Largest loss: iou_b -8.00 points [-11.00, -5.00]." in notes(report)
    assert not any("Largest loss" in note for note in notes(example.example()))
