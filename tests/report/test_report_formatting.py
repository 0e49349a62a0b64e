"""Numbers as people read them."""

import pytest

from compressor.report import Difference, Score, formatting


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.00 k"),
        (268_346, "268 k"),
        (999_499, "999 k"),
        (999_500, "1.00 M"),
        (4_089_184_256, "4.09 G"),
        (10**19, "10000 P"),
    ],
)
def test_counts_have_three_digits(value: int, text: str) -> None:
    assert formatting.count(value) == text


@pytest.mark.parametrize(("value", "text"), [(512, "512 B"), (1_080_000, "1.08 MB"), (1_048_576, "1.05 MB")])
def test_a_megabyte_is_a_million_bytes(value: int, text: str) -> None:
    assert formatting.size(value) == text


@pytest.mark.parametrize(("ratio", "text"), [(0.498, "-50.2 %"), (1.25, "+25.0 %"), (1.0, "0.0 %"), (0.9999, "0.0 %")])
def test_changes_carry_their_sign(ratio: float, text: str) -> None:
    assert formatting.change(ratio) == text


@pytest.mark.parametrize(("value", "text"), [(-0.0086, "-0.86"), (0.011, "+1.10"), (-0.00001, "0.00")])
def test_points_carry_their_sign(value: float, text: str) -> None:
    assert formatting.points(value) == text


@pytest.mark.parametrize(("value", "text"), [(0.981, "0.98x"), (1.04, "1.04x"), (1.473, "1.5x"), (12.3, "12x")])
def test_ratios_near_one_keep_the_digits_that_tell_them_from_one(value: float, text: str) -> None:
    assert formatting.times(value) == text


@pytest.mark.parametrize(("value", "text"), [(0.0312, "0.0312 ms"), (1.306, "1.31 ms"), (412.3, "412 ms"), (1200.0, "1.20 s")])
def test_latencies_have_three_digits(value: float, text: str) -> None:
    assert formatting.milliseconds(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.42, "0.4 s"), (9.96, "10 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (3599.6, "1 h 00 min"), (7630, "2 h 07 min")],
)
def test_durations_read_like_a_clock(seconds: float, text: str) -> None:
    assert formatting.duration(seconds) == text


def test_long_names_keep_both_ends() -> None:
    assert formatting.shorten("layer1.0.conv1", 14) == "layer1.0.conv1"
    assert formatting.shorten("backbone.encoder.block7.conv1", 16) == "backbo...7.conv1"


def test_inputs_are_named_and_separated_by_commas() -> None:
    assert formatting.inputs({"images": [3, 8, 8]}) == "images 3x8x8"
    assert formatting.inputs({"input0": [3, 8, 8], "ids": [16]}) == "input0 3x8x8, ids 16"


TOP1 = Score("top1", "top-1", 0.871, "%", 2, 10, 0.8643, 0.8774)
PSNR = Score("psnr", "PSNR", 28.414, "dB", 2, 10, 28.25, 28.64)
SSIM = Score("ssim", "SSIM", 0.81234, "", 4, 10)


@pytest.mark.parametrize(
    ("score", "texts"),
    [
        (TOP1, ("87.10 %", "[86.4, 87.7]", "-0.86 points", "-0.86")),
        (PSNR, ("28.41 dB", "[28.2, 28.6]", "-0.01 dB", "-0.01")),
        (SSIM, ("0.8123", "", "-0.0086", "-0.0086")),
    ],
)
def test_scores_are_written_in_their_unit(score: Score, texts: tuple[str, ...]) -> None:
    lost = -0.0086
    told = (
        formatting.score(score),
        formatting.interval(score),
        formatting.difference(lost, score),
        formatting.signed(lost, score),
    )
    assert told == texts


def test_an_interval_of_a_difference_has_signs() -> None:
    assert formatting.difference_interval(Difference(-0.0086, -0.0121, 0.0005), TOP1) == "[-1.21, +0.05]"
    assert formatting.difference_interval(Difference(-0.0086), TOP1) == ""


def test_a_value_that_would_round_to_zero_keeps_three_digits() -> None:
    kl = Score("kl", "mean KL divergence", 0.0000226851, "nats", 3, 10)
    assert (formatting.score(kl), formatting.in_unit(0.0, kl)) == ("2.27e-05 nats", "0.000 nats")


@pytest.mark.parametrize(
    ("label", "text"), [("top-1", "Top-1"), ("mIoU", "mIoU"), ("PSNR", "PSNR"), ("cross-entropy", "Cross-entropy")]
)
def test_labels_with_capitals_of_their_own_keep_them(label: str, text: str) -> None:
    assert formatting.title(label) == text
