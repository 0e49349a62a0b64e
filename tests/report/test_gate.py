"""Budgets: their syntax, errors in it, and the check of a report against them."""

from dataclasses import replace

import example
import pytest

from compressor.errors import UsageError
from compressor.report import Difference, Latency, Profile, Report, Score, budgets, gate, summary
from compressor.report.budgets import Budget, Limit
from compressor.report.finding import Finding

RUN = example.example()


def judged(text: str, report: Report = RUN, baseline: Report | None = None) -> Finding:
    (finding,) = gate.check(report, [Budget.parse(text)], baseline).findings
    return finding


def earlier(**compressed: object) -> Report:
    """The example report with other values of the compressed network."""
    return replace(RUN, compressed=replace(RUN.compressed, **compressed))


def with_latency(report: Report, before: list[Latency], after: list[Latency]) -> Report:
    return replace(
        report, baseline=replace(report.baseline, latency=before), compressed=replace(report.compressed, latency=after)
    )


# How a budget is written ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("macs<=40M", Limit(40e6)),
        ("params <= 5e6", Limit(5e6)),
        ("size<=10MB", Limit(10e6)),
        ("weights<=.5 kb", Limit(500)),
        ("latency<=5ms", Limit(5)),
        ("latency<=250us", Limit(0.25)),
        ("top1>=90%", Limit(0.9, None, "%")),
        ("psnr>=30dB", Limit(30, None, "dB")),
        ("psnr >= original - 0.3 dB", Limit(-0.3, "original", "dB")),
        ("loss<=original+0.05", Limit(0.05, "original")),
        ("drop<=1", Limit(1)),
        ("drop<=1%", Limit(0.01, None, "%")),
        ("drop.high<=0.3dB", Limit(0.3, None, "dB")),
        ("macs<=50%", Limit(-0.5, "original")),
        ("macs<=original-50%", Limit(-0.5, "original")),
        ("size<=baseline + 2 %", Limit(0.02, "baseline")),
        ("top1>=baseline", Limit(0.0, "baseline")),
        ("top1>=original-1.5%", Limit(-0.015, "original", "%")),
    ],
)
def test_limits_are_understood(text: str, limit: Limit) -> None:
    found = Budget.parse(text).limit
    assert (found.amount, found.beside, found.unit) == (pytest.approx(limit.amount), limit.beside, limit.unit)


@pytest.mark.parametrize(
    ("text", "level", "batch", "plain"),
    [
        ("macs <= 50%", "error", None, "macs<=50%"),
        ("latency<=5ms", "warn", None, "latency<=5ms"),
        (" error: latency@8 <= 20 ms ", "error", 8, "latency@8<=20ms"),
        ("warn:top1>=90%", "warn", None, "top1>=90%"),
        ("off: drop<=1", "off", None, "drop<=1"),
    ],
)
def test_a_level_and_a_batch_may_be_given(text: str, level: str, batch: int | None, plain: str) -> None:
    budget = Budget.parse(text)
    assert (budget.level, budget.batch, budget.text) == (level, batch, plain)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("", "invalid syntax; write it like macs<=50%"),
        ("macs", "invalid syntax"),
        ("latency@x<=5ms", "invalid syntax"),
        ("macs<=5\n::error::x", "invalid syntax"),
        ("macc<=50%", "'macc' is not one of macs, params, size, weights, latency, drop; did you mean 'macs'?"),
        ("drops<=1", "did you mean 'drop'?"),
        ("wran: macs<=50%", "the level 'wran' is not one of off, warn, error; did you mean 'warn'?"),
        ("params<=5MB", "the unit 'MB' is not one of K, M, G, %; did you mean 'M'?"),
        ("latency<=5", "a unit is missing, one of us, ms, s, %; write it like latency<=5ms."),
        ("top1=90%", "top1 needs <= or >=; write it like top1>=90%."),
        ("drop>=1", "drop needs <=; write it like drop<=1."),
        ("macs.low<=5M", "only .low and .high of a score are bounds of its interval; write it like macs<=50%."),
        ("top1.mean>=90%", "only .low and .high of a score"),
        ("macs=50%", "macs needs <="),
        ("macs@8<=5M", "only latency takes a batch size"),
        ("macs<=orginal", "'orginal' is neither a value nor one of original, baseline; did you mean 'original'?"),
        ("macs<=baseline+2", "the limit is invalid.\nWrite a value, as in macs<=50%, or macs<=baseline+2%."),
        ("top1>=-1%", "or top1>=baseline-2%."),
        ("drop<=original+1%", "drop already compares with the original; write it like drop<=1."),
        ("macs<=0%", "the limit is out of range"),
        ("macs<=baseline-100%", "the limit is out of range"),
        ("params<=1e999", "the limit is out of range"),
        ("top1>=101%", "the limit is out of range"),
    ],
)
def test_budgets_that_make_no_sense_are_told(text: str, answer: str) -> None:
    with pytest.raises(UsageError) as caught:
        Budget.parse(text)
    told = str(caught.value)
    assert told.startswith("budget ") and answer in told
    assert len(told.splitlines()) <= 2


def test_options_are_short_for_budgets() -> None:
    found = budgets.collect(
        ["top1>=90%", "macs<=60%"],
        max_drop="1.0",
        min_cut="0.4",
        max_latency="5ms",
        max_size="10MB",
        max_params="5M",
        max_macs="40M",
    )
    texts = [budget.text for budget in found]  # duplicates are listed once
    assert texts == ["top1>=90%", "macs<=60%", "drop<=1.0", "latency<=5ms", "size<=10MB", "params<=5M", "macs<=40M"]
    assert budgets.collect(min_cut="35%")[0].text == "macs<=65%"


def test_no_worse_asks_for_what_the_baseline_measured() -> None:
    def texts(baseline: Report) -> list[str]:
        return [f"{budget.level}: {budget.text}" for budget in budgets.collect(no_worse="2%", baseline=baseline)]

    counted = ["error: macs<=baseline+2%", "error: params<=baseline+2%", "error: size<=baseline+2%"]
    assert texts(RUN) == [*counted, "warn: latency<=baseline+2%", "error: top1>=baseline-2%"]
    assert texts(example.without_data()) == counted


@pytest.mark.parametrize(
    ("texts", "given", "answer"),
    [
        ([], {}, "no budget was given: add one, for example --max-drop 1"),
        ([], {"min_cut": "40"}, "--min-cut is the minimum fraction of the MACs removed, such as 0.4 or 40%; found '40'"),
        ([], {"no_worse": "2", "baseline": RUN}, "--no-worse is a percentage, such as 2%; found '2'"),
        ([], {"no_worse": "2%"}, "--no-worse compares with a baseline: add --baseline with an earlier run"),
        (["macs<=baseline"], {}, "a budget refers to a baseline, but none was given"),
        (["macs<=50%"], {"baseline": RUN}, "--baseline is given, but no budget refers to it"),
    ],
)
def test_what_does_not_fit_together_is_told(texts: list[str], given: dict[str, str], answer: str) -> None:
    with pytest.raises(UsageError, match=answer):
        budgets.collect(texts, **given)


# What is found --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("macs<=50%", "ok      macs 20.2 M <= 50 % of the original (40.6 M): 49.7 %"),
        ("params<=100K", "missed  params 126 k <= 100 k: over by 26.3 k"),
        ("size<=10MB", "ok      size 527 kB <= 10.0 MB"),
        ("off: weights<=4KB", "off     weights 505 kB <= 4.00 kB: over by 501 kB"),
        ("latency<=5ms", "ok      latency 1.31 ms <= 5.00 ms: median of 50 runs, batch 1, CPU, 1 thread"),
        (
            "latency@32<=50%",
            "warn    latency@32 23.9 ms <= 50 % of the original (41.7 ms): 57.3 %, over by 3.05 ms, "
            "median of 50 runs, batch 32, CPU, 1 thread, p90 25.3 ms",
        ),
        (
            "top1>=90%",
            "missed  top1 87.10 % >= 90.00 %: short by 2.90 points, 95 % interval [86.4, 87.7], n = 10,000",
        ),
        (
            "top1>=original-1%",
            "ok      top1 87.10 % >= original (87.96 %) - 1 %: -0.86 points, 95 % interval [86.4, 87.7], n = 10,000",
        ),
        ("drop<=1", "ok      drop 0.86 points <= 1.00 points: 87.96 % -> 87.10 %, n = 10,000"),
        ("agreement>=95%", "missed  agreement 92.31 % >= 95.00 %: short by 2.69 points, 10,000 test images"),
        ("kl<=0.1", "ok      kl 0.087 nats <= 0.100 nats: 10,000 test images"),
        ("top1.low>=86%", "ok      top1.low 86.43 % >= 86.00 %: 95 % interval [86.4, 87.7], n = 10,000"),
    ],
)
def test_one_line_tells_what_was_asked_and_found(text: str, line: str) -> None:
    assert judged(text).line == line


def test_a_baseline_is_compared_with() -> None:
    baseline = earlier(macs=19_000_000, scores=example.scores(0.875, 5000))
    found = judged("macs<=baseline+2%", baseline=baseline)
    assert found.line == "missed  macs 20.2 M <= baseline (19.0 M) + 2 %: +6.1 %, over by 772 k"
    assert judged("macs<=baseline+7%", baseline=baseline).met
    found = judged("top1>=baseline-0.5%", baseline=baseline)  # points, and on other images
    assert found.met
    assert found.limit == pytest.approx(0.87)
    assert found.line.endswith("n = 10,000, baseline n = 5,000")
    assert judged("drop<=baseline+0.5%", baseline=baseline).met


def test_what_meets_its_limit_exactly_is_met() -> None:
    report = earlier(scores=example.scores(0.8696), macs=RUN.baseline.macs // 2)
    assert RUN.baseline.scores[0].value - 0.8696 > 0.01  # in floats
    for text in ("drop<=1", "top1>=original-1%", "macs<=50%", "macs<=20275520"):
        assert judged(text, report).met
    assert not judged("macs<=20275519", report).met


def test_a_baseline_is_scaled_by_the_time_that_the_original_took() -> None:
    now = with_latency(RUN, [example.timed(1, 4.0)], [example.timed(1, 2.0)])  # a machine half as fast
    then = with_latency(RUN, [example.timed(1, 2.0)], [example.timed(1, 1.0)])
    found = judged("latency<=baseline+5%", now, then)
    assert found.met
    assert found.limit == pytest.approx(2.1)
    assert "latency 2.00 ms <= baseline (2.00 ms) + 5 %: 0.0 %" in found.line
    assert found.line.endswith("baseline latency scaled by 2.00, the ratio of the originals' latencies")
    other = replace(then, baseline=replace(then.baseline, macs=1))
    found = judged("latency<=baseline+5%", now, other)
    assert not found.met
    assert found.limit == pytest.approx(1.05)
    assert found.line.endswith("baseline latency not scaled: the originals differ or were not timed in the same way")


def test_a_latency_is_compared_with_one_of_the_same_kind() -> None:
    found = judged("latency<=baseline+5%", baseline=with_latency(RUN, [], [example.timed(1, 9.0, threads=4)]))
    assert found.line == ("warn    latency<=baseline+5%: the baseline was not measured in the same way; use another --baseline")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("top1>=90%", "missed  top1>=90%: not measured; rerun with --data"),
        ("warn: drop<=1", "warn    drop<=1: not measured; rerun with --data"),
        ("latency<=5ms", "warn    latency<=5ms: not measured; rerun the compression"),
        ("size<=50%", "missed  size<=50%: the original was not measured; it needs model.onnx: rerun without --no-onnx"),
        ("off: top1>=90%", "off     top1>=90%: not measured; rerun with --data"),
    ],
)
def test_what_was_not_measured_is_missed(text: str, line: str) -> None:
    assert judged(text, example.without_data()).line == line


def test_an_unreliable_latency_is_not_measured() -> None:
    quiet, busy = Latency(1, 2.0, 4.0, 50, 10, "cpu", 1), Latency(1, 2.0, 4.2, 50, 10, "cpu", 1)
    told = "not measured; unreliable latency (p90 2.1x the median): measure on a machine that is not busy"
    assert judged("latency<=5ms", with_latency(RUN, [], [quiet])).met
    assert judged("error: latency<=5ms", with_latency(RUN, [], [busy])).line == f"missed  latency<=5ms: {told}"
    report = with_latency(RUN, [busy], [quiet])
    assert judged("error: latency<=120%", report).status == "missed"
    assert summary.compare(report.baseline, report.compressed).latency == {}
    verdict = summary.verdict(report.baseline, report.compressed, report.verification)
    assert "CPU 2.00 ms -> 2.00 ms at batch 1: unreliable latency (p90 2.1x the median)" in verdict
    (row,) = summary.latency_rows(report)
    assert row.change == "unreliable" and row.left is None


def test_a_batch_that_was_not_timed_is_told_with_those_that_were() -> None:
    line = judged("error: latency@8<=20ms").line
    assert line == "missed  latency@8<=20ms: not measured; use latency@N with a batch size that was timed: 1, 32"


def test_the_verdict_counts_and_only_errors_fail() -> None:
    def verdict(*texts: str) -> tuple[bool, str]:
        checked = gate.check(RUN, budgets.collect(texts))
        return checked.passed, checked.verdict

    assert verdict("macs<=50%") == (True, "PASS: 1 of 1 budgets met")
    assert verdict("macs<=50%", "latency<=1ms", "off: macs<=1") == (True, "PASS: 1 of 2 budgets met, 1 warning, 1 off")
    found = verdict("macs<=1%", "macs<=2%", "warn: macs<=3%", "warn: macs<=4%")
    assert found == (False, "FAIL: 0 of 4 budgets met, 2 missed, 2 warnings")


def test_a_strangers_words_cannot_give_orders_to_a_build() -> None:
    spoilt = Latency(1, 2.0, 2.1, 50, 10, "cpu\n::set-output name=x::##[error]\x1b[31m", 1)
    line = judged("latency<=1ms", with_latency(RUN, [], [spoilt])).line
    assert line.isascii() and line.isprintable()
    assert "::" not in line and "##[" not in line


def test_a_network_that_costs_nothing_divides_nothing() -> None:
    report = replace(RUN, baseline=Profile(0, 0, 0), compressed=Profile(0, 0, 0))
    assert judged("macs<=50%", report).line == "ok      macs 0 <= 50 % of the original (0)"


# Scores of any task ---------------------------------------------------------------------------------------------------

DENOISER = example.restoration()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("psnr>=30dB", "missed  psnr 28.41 dB >= 30.00 dB: short by 1.59 dB, 95 % interval [28.2, 28.6], n = 100"),
        ("psnr>=28.4", "ok      psnr 28.41 dB >= 28.40 dB: 95 % interval [28.2, 28.6], n = 100"),
        (
            "psnr>=original-0.3db",
            "missed  psnr 28.41 dB >= original (28.72 dB) - 0.3 dB: -0.31 dB, short by 0.0100 dB, "
            "95 % interval [28.2, 28.6], n = 100",
        ),
        ("psnr.low>=28dB", "ok      psnr.low 28.21 dB >= 28.00 dB: 95 % interval [28.2, 28.6], n = 100"),
        ("ssim>=0.8", "ok      ssim 0.8071 >= 0.8000: n = 100"),
        ("drop<=0.35dB", "ok      drop 0.31 dB <= 0.35 dB: 28.72 dB -> 28.41 dB, 95 % interval [0.26, 0.36], n = 100"),
        (
            "drop.high<=0.35",
            "missed  drop.high 0.36 dB <= 0.35 dB: over by 0.0100 dB, 28.72 dB -> 28.41 dB, "
            "95 % interval [0.26, 0.36], n = 100",
        ),
        ("drop<=1%", "missed  drop<=1%: drop is in dB; write it like drop<=1dB"),
        ("psnr>=90%", "missed  psnr>=90%: psnr is in dB; write it like psnr>=28.41dB"),
        ("ssim>=80%", "missed  ssim>=80%: ssim has no unit; write it like ssim>=0.8071"),
        ("warn: psnr<=30dB", "warn    psnr<=30dB: psnr needs >=; write it like psnr>=28.41dB"),
        ("miou>=70%", "missed  miou>=70%: not measured; the report has psnr, ssim, fidelity_psnr"),
        ("ssim.low>=0.8", "missed  ssim.low>=0.8: measured without a 95 % interval; use ssim"),
    ],
)
def test_any_score_can_have_a_budget_in_its_unit(text: str, line: str) -> None:
    assert judged(text, DENOISER).line == line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("top1>=0.9", "missed  top1>=0.9: a unit is missing; write it like top1>=87.10%"),
        ("top1<=90%", "missed  top1<=90%: top1 needs >=; write it like top1>=87.10%"),
        ("drop<=1dB", "missed  drop<=1dB: drop is in %; write it like drop<=1"),
        ("off: psnr>=30dB", "off     psnr>=30dB: not measured; the report has top1, top5, agreement, kl"),
        (
            "agreement>=original-1%",
            "missed  agreement>=original-1%: agreement already compares with the original; write it like agreement>=92.31%",
        ),
        ("drop.high<=1", "missed  drop.high<=1: measured without a 95 % interval; use drop"),
    ],
)
def test_a_budget_that_does_not_fit_the_scores_is_missed_with_a_hint(text: str, line: str) -> None:
    assert judged(text).line == line


def test_more_of_a_loss_is_worse() -> None:
    report = replace(
        RUN,
        baseline=replace(RUN.baseline, scores=[example.loss(0.4)]),
        compressed=replace(RUN.compressed, scores=[example.loss(0.43)]),
        change=replace(RUN.change, scores={"loss": Difference(0.03, 0.01, 0.05)}),
    )
    assert judged("loss<=original+0.05", report).line.startswith("ok      loss 0.4300 <= original (0.4000) + 0.05: +0.0300")
    assert judged("loss>=0.5", report).line == "missed  loss>=0.5: loss needs <=; write it like loss<=0.4300"
    assert judged("drop.high<=0.04", report).line.startswith(
        "missed  drop.high 0.0500 <= 0.0400: over by 0.0100, 0.4000 -> 0.4300"
    )
    assert not judged("drop<=0.02", report).met and judged("drop<=0.03", report).met


def test_a_gain_is_a_drop_below_zero() -> None:
    report = earlier(scores=example.scores(0.8896))
    report = replace(report, change=replace(RUN.change, scores={"top1": Difference(0.01, 0.004, 0.016)}))
    assert judged("drop<=0", report).value == pytest.approx(-0.01)
    found = judged("drop.high<=0", report)
    assert found.met and found.value == pytest.approx(-0.004)
    assert found.line.endswith("87.96 % -> 88.96 %, 95 % interval [-1.60, -0.40], n = 10,000")


def test_no_worse_takes_the_headline_score_in_its_unit() -> None:
    found = budgets.collect(no_worse="2%", baseline=DENOISER)
    assert found[-1].text == "psnr>=baseline-0.5682"  # 2 % of 28.41 dB
    assert judged("psnr>=baseline-0.5682", DENOISER, DENOISER).met
    report = replace(RUN, compressed=replace(RUN.compressed, scores=[example.loss(0.43)]))
    assert budgets.collect(no_worse="2%", baseline=report)[-1].text == "loss<=baseline+0.0086"


def test_a_baseline_with_another_score_was_not_measured() -> None:
    found = judged("psnr>=baseline-0.1dB", DENOISER, RUN)
    assert found.line == "missed  psnr>=baseline-0.1dB: the baseline was not measured; use another --baseline"


def test_a_unit_cannot_give_orders_to_a_build() -> None:
    score = Score("psnr", "PSNR", 28.4, "dB\n::error::x\x1b[31m", 2, 10)
    report = replace(RUN, compressed=replace(RUN.compressed, scores=[score]))
    for text in ("psnr>=30", "psnr>=30%", "drop<=1", "psnr<=3"):
        line = judged(text, report).line
        assert line.isascii() and line.isprintable() and "::" not in line
