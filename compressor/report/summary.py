"""The summary of a report: the verdict, the metrics before and after, and whether the checks passed.

The page, the Markdown and the terminal all print these rows, so they cannot disagree.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from compressor.report import formatting
from compressor.report.schema import (
    PROCESSOR,
    Change,
    Difference,
    Latency,
    Layer,
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

FASTER = 1.05  # a smaller speedup is within measurement noise
SMALLER = 0.01  # a smaller change in file size comes from names stored in it
SEVERAL = 4  # scores, of which the one with the largest loss is named
NOT_MEASURED = "not measured"

Tone = Literal["good", "bad", "plain"]
_SPEED_TONES: dict[str, Tone] = {"faster": "good", "no faster": "plain", "slower": "bad"}


@dataclass(frozen=True)
class Row:
    """One metric before and after, formatted.

    `detail` describes how it was measured; the spreads are printed next to their values (a 95 % interval, a 90th percentile);
    `left` is after over before, of quantities that have a zero.
    """

    name: str
    detail: str
    before: str
    after: str
    change: str = ""
    tone: Tone = "plain"
    before_spread: str = ""
    after_spread: str = ""
    change_spread: str = ""
    left: float | None = None

    @property
    def label(self) -> str:
        """Name and detail."""
        return f"{self.name}, {self.detail}" if self.detail else self.name


@dataclass(frozen=True)
class Check:
    """A check that was run: the largest difference divided by the largest output, and the tolerance."""

    name: str
    difference: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """A NaN fails."""
        return self.difference <= self.tolerance


def compare(baseline: Profile, compressed: Profile, differences: Mapping[str, Difference] | None = None) -> Change:
    """The changes. If a batch size was timed with several providers or threads, its entry is the one listed first; latencies
    that are not reliable have none.

    `differences`: differences of scores by name, with intervals that are paired over the images.
    """
    speedups: dict[str, float] = {}
    for before, after in timings(baseline, compressed):
        if before and _unreliable(before, after) is None:
            speedups.setdefault(str(before.batch), before.median_ms / after.median_ms)
    scores: dict[str, Difference] = {}
    for first, last in paired(baseline.scores, compressed.scores):
        if first and last:
            plain = Difference(last.value - first.value)
            scores[last.name] = _moved((differences or {}).get(last.name, plain), plain.value)
    return Change(
        macs=compressed.macs / baseline.macs,
        params=compressed.params / baseline.params,
        weight_bytes=compressed.weight_bytes / baseline.weight_bytes,
        size_bytes=compressed.size_bytes / baseline.size_bytes if compressed.size_bytes and baseline.size_bytes else None,
        latency=speedups,
        scores=scores,
    )


def _moved(found: Difference, value: float) -> Difference:
    """The same interval around another value: the same network may be measured with PyTorch and with ONNX Runtime."""
    if found.low is None or found.high is None:
        return Difference(value)
    by = value - found.value
    return Difference(value, found.low + by, found.high + by)


def paired(baseline: Sequence[Score], compressed: Sequence[Score]) -> list[tuple[Score | None, Score | None]]:
    """Before and after of each score, by its name and unit; None where it was not measured. The headline first."""
    after = [(named(baseline, score.name, score.unit), score) for score in compressed]
    return [*after, *((score, None) for score in baseline if named(compressed, score.name, score.unit) is None)]


def timings(baseline: Profile, compressed: Profile) -> list[tuple[Latency | None, Latency]]:
    """Before (None if it was not timed in the same way) and after; the smallest batch first."""
    before = {_setup(latency): latency for latency in baseline.latency}
    pairs = [(before.get(_setup(after)), after) for after in compressed.latency]
    return sorted(pairs, key=lambda pair: pair[1].batch)


def _unreliable(before: Latency | None, after: Latency) -> Latency | None:
    """Of the two, the one that is not reliable."""
    return next((latency for latency in (after, before) if latency is not None and not latency.reliable), None)


def _setup(latency: Latency) -> tuple[int, str, int]:
    return latency.batch, latency.provider, latency.threads


def verdict(
    baseline: Profile,
    compressed: Profile,
    verification: Verification,
    differences: Mapping[str, Difference] | None = None,
) -> str:
    """The result in one line, including what was not measured and what did not improve; `differences` as in `compare`.

    40.8 M -> 20.3 M MACs (-50.2 %), top-1 87.96 % -> 87.10 % (-0.86, n = 10,000),
    CPU 1.93 ms -> 1.31 ms at batch 1 (1.5x), checks passed
    """
    return ", ".join(
        [
            _cost_verdict(baseline, compressed),
            _score_verdict(baseline, compressed, differences or {}),
            _latency_verdict(baseline, compressed),
            checks_verdict(verification),
        ]
    )


def _cost_verdict(baseline: Profile, compressed: Profile) -> str:
    """MACs; or the size of the ONNX file, if only that has changed."""
    before, after = baseline.size_bytes, compressed.size_bytes
    if baseline.macs == compressed.macs and before and after and abs(after / before - 1) > SMALLER:
        return f"{formatting.size(before)} -> {formatting.size(after)} ONNX file ({formatting.change(after / before)})"
    macs = f"{formatting.count(baseline.macs)} -> {formatting.count(compressed.macs)} MACs"
    return f"{macs} ({formatting.change(compressed.macs / baseline.macs)})"


def _score_verdict(baseline: Profile, compressed: Profile, differences: Mapping[str, Difference]) -> str:
    """The headline score."""
    after = headline(compressed.scores)
    if after is None:
        return "scores not measured (no data)"
    before, n = named(baseline.scores, after.name, after.unit), formatting.images(after.n)
    if before is None:
        return f"{after.label} {formatting.score(after)} ({n}; the original was not measured)"
    if before.n != after.n:
        n = f"n = {before.n:,} and {after.n:,}"
    found = _difference(before, after, differences)
    change = f"{formatting.signed(found.value, after)} {formatting.difference_interval(found, after)}".rstrip()
    return f"{after.label} {formatting.score(before)} -> {formatting.score(after)} ({change}, {n})"


def _difference(before: Score, after: Score, differences: Mapping[str, Difference]) -> Difference:
    """The difference of the two values, with the interval of the one in `differences`."""
    paired = differences.get(after.name, Difference(0.0))
    return replace(paired, value=after.value - before.value)


def _latency_verdict(baseline: Profile, compressed: Profile) -> str:
    timed = timings(baseline, compressed)
    if not timed:
        return "no ONNX file" if compressed.size_bytes is None else "latency not measured"
    before, after = timed[0]
    provider, where = after.provider.upper(), f"at batch {after.batch}"
    if before is None:
        return f"{provider} {formatting.milliseconds(after.median_ms)} {where} (the original was not measured)"
    ratio = before.median_ms / after.median_ms
    medians = f"{provider} {formatting.milliseconds(before.median_ms)} -> {formatting.milliseconds(after.median_ms)}"
    if noisy := _unreliable(before, after):
        return f"{medians} {where}: {formatting.unreliable(noisy)}"
    if ratio >= FASTER:
        return f"{medians} {where} ({formatting.times(ratio)})"
    return f"{medians}, {speed(ratio)} {where}: {formatting.times(ratio)}"


def speed(ratio: float) -> str:
    """`faster`, `no faster` or `slower`."""
    if ratio >= FASTER:
        return "faster"
    return "no faster" if ratio * FASTER > 1 else "slower"


def checks(verification: Verification) -> list[Check]:
    """The checks that were run."""
    found = [
        Check(f"ONNX Runtime against PyTorch, batch {batch}", difference, verification.onnx_tolerance)
        for batch, difference in verification.onnx.items()
    ]
    if verification.masked is None:
        return found
    masked = Check("compact network against its dense equivalent", verification.masked, verification.masked_tolerance)
    return [masked, *found]


def checks_verdict(verification: Verification) -> str:
    """`checks passed`, `CHECKS FAILED` or `not checked`."""
    done = checks(verification)
    if not done:
        return "not checked"
    return "checks passed" if all(check.passed for check in done) else "CHECKS FAILED"


def asked_and_reached(target: Target) -> str:
    """`target: 50.0 % of the MACs removed (macs=50%), reached 50.2 %`, and why the two differ."""
    asked = f"target: {formatting.share(target.asked)} of the {quantity(target.quantity)} removed"
    note = f": {target.note}" if target.note else ""
    papers = ""
    if target.macs_at_asked is not None:
        papers = f"; {formatting.share(target.macs_at_asked)} of the MACs with fractional channel counts, as papers count"
    return f"{asked} ({target.text}), reached {formatting.share(target.reached)}{note}{papers}"


def quantity(name: str) -> str:
    """The quantity of a target, in words."""
    return {"macs": "MACs", "params": "parameters", "size": "ONNX file's size", "rank": "ranks"}.get(name, name)


def rows(report: Report) -> list[Row]:
    """Everything measured before and after."""
    return [*cost_rows(report), *score_rows(report), *latency_rows(report)]


def cost_rows(report: Report) -> list[Row]:
    """The metrics that are counted: all but scores and latency."""
    before, after = report.baseline, report.compressed
    peaks = before.peak_activation_bytes, after.peak_activation_bytes
    return [
        _cost("MACs", "one image", before.macs, after.macs, formatting.count),
        _cost("Parameters", "", before.params, after.params, formatting.count),
        _cost("ONNX file", "", before.size_bytes, after.size_bytes, formatting.size),
        _cost("Weights", "", before.weight_bytes, after.weight_bytes, formatting.size),
        _cost("Peak activations", "one image", *peaks, formatting.size),
    ]


def _cost(name: str, detail: str, before: int | None, after: int | None, written: Callable[[int], str]) -> Row:
    texts = [NOT_MEASURED if value is None else written(value) for value in (before, after)]
    row = Row(name, detail, texts[0], texts[1])
    if not before or after is None:
        return row
    left = after / before
    tone: Tone = "good" if left < 1 else "bad" if left > 1 else "plain"
    return replace(row, change=formatting.change(left), tone=tone, left=left)


def score_rows(report: Report) -> list[Row]:
    """Every score, the headline first."""
    pairs = paired(report.baseline.scores, report.compressed.scores)
    found = [_score(before, after, report.change.scores) for before, after in pairs]
    return found or [Row("Scores", "no data", NOT_MEASURED, NOT_MEASURED)]


def _score(before: Score | None, after: Score | None, differences: Mapping[str, Difference]) -> Row:
    measured = [score for score in (before, after) if score]
    n = " and ".join(dict.fromkeys(f"{score.n:,}" for score in measured))
    row = Row(
        formatting.title(measured[-1].label),
        f"n = {n}",
        formatting.score(before) if before else NOT_MEASURED,
        formatting.score(after) if after else NOT_MEASURED,
        before_spread=formatting.interval(before) if before else "",
        after_spread=formatting.interval(after) if after else "",
    )
    if before is None or after is None:
        return row
    found = _difference(before, after, differences)
    return replace(
        row,
        change=formatting.difference(found.value, after),
        change_spread=formatting.difference_interval(found, after),
        tone=_score_tone(before, after, found),
        left=after.value / before.value if after.unit == "%" and before.value else None,
    )


def _score_tone(before: Score, after: Score, change: Difference) -> Tone:
    """Plain if the interval of the difference includes 0; without one, if the intervals of both scores overlap."""
    if change.low is not None and change.high is not None:
        fell, rose = change.high < 0, change.low > 0
    elif before.low is None or before.high is None or after.low is None or after.high is None:
        return "plain"
    else:
        fell, rose = after.high < before.low, after.low > before.high
    if not (fell or rose):
        return "plain"
    return "good" if rose == after.more_is_better else "bad"


def latency_rows(report: Report) -> list[Row]:
    """Every batch size and provider that was timed."""
    timed = timings(report.baseline, report.compressed)
    return [_latency(*pair) for pair in timed] or [Row("Latency", "", NOT_MEASURED, NOT_MEASURED)]


def _latency(before: Latency | None, after: Latency) -> Row:
    row = Row(
        "Latency",
        formatting.timing(after),
        NOT_MEASURED,
        formatting.milliseconds(after.median_ms),
        after_spread=f"(p90 {formatting.milliseconds(after.p90_ms)})",
    )
    if before is None:
        return row
    ratio = before.median_ms / after.median_ms
    how = speed(ratio)
    row = replace(
        row,
        before=formatting.milliseconds(before.median_ms),
        before_spread=f"(p90 {formatting.milliseconds(before.p90_ms)})",
    )
    if _unreliable(before, after):
        return replace(row, change="unreliable", tone=_SPEED_TONES["slower"])
    return replace(
        row,
        change=f"{formatting.times(ratio)} {how}" if how == "faster" else f"{how}: {formatting.times(ratio)}",
        tone=_SPEED_TONES[how],
        left=1 / ratio,
    )


def notes(report: Report) -> list[str]:
    """The notes below the rows: agreement with the original, the numbers in brackets, how latency was measured."""
    found = [f"Agreement with the original: {fidelity(report)}."]
    scores = score_rows(report)
    if any(row.before_spread or row.after_spread for row in scores):
        paired = "; that of a change is paired over the images" if any(row.change_spread for row in scores) else ""
        found.append(f"In brackets: 95 % confidence interval{paired}.")
    if worst := _worst(report):
        found.append(worst)
    if report.compressed.latency:
        after = report.compressed.latency[0]
        clock = f"{after.clock} per batch" + (" (of the thread that runs the network)" if after.clock == PROCESSOR else "")
        found.append(f"Latency: ONNX Runtime, {clock}, median of {after.runs} runs after {after.warmup} warm-up runs.")
    return found


def _worst(report: Report) -> str:
    """Of several scores that are shares, the one that lost most: a mean can hide what happens to one class; else empty."""
    shares = [score for score in report.compressed.scores if score.unit == "%" and score.more_is_better]
    losses = [(report.change.scores[score.name].value, score) for score in shares if score.name in report.change.scores]
    if len(losses) < SEVERAL or not losses or (worst := min(losses, key=lambda loss: loss[0]))[0] >= 0:
        return ""
    change, score = worst
    interval = formatting.difference_interval(report.change.scores[score.name], score)
    return f"Largest loss: {score.label} {formatting.difference(change, score)}{f' {interval}' if interval else ''}."


def fidelity(report: Report) -> str:
    """The scores that compare the outputs with those of the original."""
    if report.fidelity is None or not report.fidelity.scores:
        return NOT_MEASURED
    told = (
        f"{score.label} {formatting.score(score)} {formatting.interval(score)}".rstrip() for score in report.fidelity.scores
    )
    return f"{', '.join(told)} (n = {report.fidelity.n:,} {report.fidelity.inputs})"


def stage_heading(report: Report) -> list[str]:
    """The names of the columns of `stage_rows`; ONNX file and latency only if some stage has them."""
    size = ["ONNX file"] if any(stage.size_bytes is not None for stage in report.stages) else []
    latency = ["latency"] if _stage_setup(report) else []
    shown = stage_scores(report)
    score = shown[0][1].label if shown else "score"
    interval = " [95 %]" if any(formatting.interval(score) for _, score in shown) else ""
    return ["stage", "MACs", "parameters", *size, *latency, f"{score}{interval}", "n", "time", "note"]


def stage_scores(report: Report) -> list[tuple[Stage, Score]]:
    """The stages for which the headline score was measured, which is that of the last one."""
    of = headline([score for stage in reversed(report.stages) for score in stage.scores[:1]])
    if of is None:
        return []
    found = ((stage, named(stage.scores, of.name, of.unit)) for stage in report.stages)
    return [(stage, score) for stage, score in found if score]


def stage_rows(report: Report) -> list[list[str]]:
    """Every stage as text, its name first and its note last."""
    scores = {id(stage): score for stage, score in stage_scores(report)}
    return [[*_stage_cost(report, row), *_stage_score(row, scores.get(id(row))), row.note] for row in report.stages]


def stage_note(report: Report) -> str:
    """The note on the latencies of the stages; empty if there are none."""
    if not (setup := _stage_setup(report)):
        return ""
    return f"Latency of stages: {formatting.timing(setup)}, measured interleaved; in brackets the speedup over the first stage."


def _stage_cost(report: Report, stage: Stage) -> list[str]:
    cost = [stage.name, formatting.count(stage.macs), formatting.count(stage.params)]
    if any(other.size_bytes is not None for other in report.stages):
        cost.append("-" if stage.size_bytes is None else formatting.size(stage.size_bytes))
    if setup := _stage_setup(report):
        first, own = (_timed(other, setup) for other in (report.stages[0], stage))
        cost.append("-" if own is None else formatting.milliseconds(own.median_ms))
        if first and own and first is not own:
            cost[-1] += f" ({formatting.times(first.median_ms / own.median_ms)})"
    return cost


def _stage_score(stage: Stage, score: Score | None) -> list[str]:
    """The score with its interval, the number of images, and the time of the stage."""
    time = formatting.duration(stage.seconds)
    if score is None:
        return ["-", "-", time]
    return [f"{formatting.score(score)} {formatting.interval(score)}".rstrip(), f"{score.n:,}", time]


def _stage_setup(report: Report) -> Latency | None:
    """The latency setup of the stages, at the smallest batch; None if no stage was timed."""
    return min((latency for stage in report.stages for latency in stage.latency), key=lambda one: one.batch, default=None)


def _timed(stage: Stage, setup: Latency) -> Latency | None:
    """The latency of `stage` measured with the same setup as `setup`."""
    return next((latency for latency in stage.latency if _setup(latency) == _setup(setup)), None)


def duration(report: Report) -> str:
    """`42 s (export 20 s, training 15 s, rest 7.0 s)`: the longest part first, without those of less than a hundredth."""
    total = formatting.duration(report.seconds)
    longest = sorted(report.times.items(), key=lambda part: part[1], reverse=True)
    parts = [f"{name} {formatting.duration(seconds)}" for name, seconds in longest if seconds >= report.seconds / 100]
    return f"{total} ({', '.join(parts)})" if parts else total


def training(report: Report) -> str:
    """`30 epochs in 12 min 04 s, 2,210 images per second`; empty without training."""
    if not report.epochs:
        return ""
    seconds = sum(epoch.seconds for epoch in report.epochs)
    images = sum(epoch.images_per_second * epoch.seconds for epoch in report.epochs)
    pace = f", {images / seconds:,.0f} images per second" if seconds else ""
    epochs = "1 epoch" if len(report.epochs) == 1 else f"{len(report.epochs)} epochs"
    return f"{epochs} in {formatting.duration(seconds)}{pace}{_teaching(report.teaching)}"


def _teaching(cost: Teaching | None) -> str:
    if cost is None:
        return ""
    once = ", computed once per image and cached" if cost.kept else ""
    return f"; teacher: {formatting.milliseconds(cost.ms)} per batch, {formatting.share(cost.share)} of the time{once}"


def weights_after(layer: Layer) -> str:
    """The shape of a layer's weights, or of the low-rank layers that replace it."""
    return formatting.weights(layer.factors or [layer.shape_after])


def changed_layers(report: Report) -> list[Layer]:
    """The layers whose shape, MACs or parameters changed, in network order."""
    return [
        layer
        for layer in report.layers
        if (layer.shape, layer.macs, layer.params) != (layer.shape_after, layer.macs_after, layer.params_after)
    ]
