"""What a reader wants to know first: the verdict, what was before and is after, and whether the checks passed.

The page, the Markdown and the terminal all print the rows that are made here, so they cannot disagree.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from compressor.report import formatting
from compressor.report.schema import Accuracy, Change, Latency, Layer, Profile, Report, Stage, Target, Teaching, Verification

FASTER = 1.05  # a smaller gain is lost in the noise of timing
SMALLER = 0.01  # a smaller change of a file is one of names in it
NOT_MEASURED = "not measured"

Tone = Literal["good", "bad", "plain"]
_SPEED_TONES: dict[str, Tone] = {"faster": "good", "no faster": "plain", "slower": "bad"}


@dataclass(frozen=True)
class Row:
    """One figure before and after, ready to print.

    `detail` says how it was measured; the spreads stand beside their figures (a 95 % interval, a 90th percentile);
    `left` is after over before.
    """

    name: str
    detail: str
    before: str
    after: str
    change: str = ""
    tone: Tone = "plain"
    before_spread: str = ""
    after_spread: str = ""
    left: float | None = None

    @property
    def label(self) -> str:
        """Name and detail in one."""
        return f"{self.name}, {self.detail}" if self.detail else self.name


@dataclass(frozen=True)
class Check:
    """A check that ran: the largest difference over the largest output, and what was allowed."""

    name: str
    difference: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """A difference that is not a number fails."""
        return self.difference <= self.tolerance


def compare(baseline: Profile, compressed: Profile) -> Change:
    """What changed. Where a batch size was timed in several ways, its entry is of the one listed first."""
    speedups: dict[str, float] = {}
    for before, after in timings(baseline, compressed):
        if before:
            speedups.setdefault(str(before.batch), before.median_ms / after.median_ms)
    return Change(
        macs=compressed.macs / baseline.macs,
        params=compressed.params / baseline.params,
        weight_bytes=compressed.weight_bytes / baseline.weight_bytes,
        size_bytes=compressed.size_bytes / baseline.size_bytes if compressed.size_bytes and baseline.size_bytes else None,
        top1=compressed.accuracy.top1 - baseline.accuracy.top1 if compressed.accuracy and baseline.accuracy else None,
        latency=speedups,
    )


def timings(baseline: Profile, compressed: Profile) -> list[tuple[Latency | None, Latency]]:
    """Before (None where it was not timed in the same way) and after; the smallest batch first."""
    before = {_setup(latency): latency for latency in baseline.latency}
    pairs = [(before.get(_setup(after)), after) for after in compressed.latency]
    return sorted(pairs, key=lambda pair: pair[1].batch)


def _setup(latency: Latency) -> tuple[int, str, int]:
    return latency.batch, latency.provider, latency.threads


def verdict(baseline: Profile, compressed: Profile, verification: Verification) -> str:
    """The result in one line. What was not measured and what was not gained is said as plainly as the rest.

    40.8 M -> 20.3 M MACs (-50.2 %), top-1 87.96 % -> 87.10 % (-0.86, n = 10,000),
    CPU 1.93 ms -> 1.31 ms at batch 1 (1.5x), checks passed
    """
    return ", ".join(
        [
            _cost_verdict(baseline, compressed),
            _accuracy_verdict(baseline.accuracy, compressed.accuracy),
            _latency_verdict(baseline, compressed),
            checks_verdict(verification),
        ]
    )


def _cost_verdict(baseline: Profile, compressed: Profile) -> str:
    """MACs; or the size of the ONNX file, where that alone has changed."""
    before, after = baseline.size_bytes, compressed.size_bytes
    if baseline.macs == compressed.macs and before and after and abs(after / before - 1) > SMALLER:
        return f"{formatting.size(before)} -> {formatting.size(after)} ONNX file ({formatting.change(after / before)})"
    macs = f"{formatting.count(baseline.macs)} -> {formatting.count(compressed.macs)} MACs"
    return f"{macs} ({formatting.change(compressed.macs / baseline.macs)})"


def _accuracy_verdict(before: Accuracy | None, after: Accuracy | None) -> str:
    if after is None:
        return "accuracy not measured (no data)"
    n = formatting.images(after.n)
    if before is None:
        return f"top-1 {formatting.percent(after.top1)} ({n}; the original was not measured)"
    if before.n != after.n:
        n = f"n = {before.n:,} and {after.n:,}"
    change = formatting.points(after.top1 - before.top1)
    return f"top-1 {formatting.percent(before.top1)} -> {formatting.percent(after.top1)} ({change}, {n})"


def _latency_verdict(baseline: Profile, compressed: Profile) -> str:
    timed = timings(baseline, compressed)
    if not timed:
        return "latency not measured"
    before, after = timed[0]
    provider, where = after.provider.upper(), f"at batch {after.batch}"
    if before is None:
        return f"{provider} {formatting.milliseconds(after.median_ms)} {where} (the original was not measured)"
    ratio = before.median_ms / after.median_ms
    medians = f"{provider} {formatting.milliseconds(before.median_ms)} -> {formatting.milliseconds(after.median_ms)}"
    if ratio >= FASTER:
        return f"{medians} {where} ({formatting.times(ratio)})"
    return f"{medians}, {speed(ratio)} {where}: {formatting.times(ratio)}"


def speed(ratio: float) -> str:
    """`faster`, `no faster` or `slower`."""
    if ratio >= FASTER:
        return "faster"
    return "no faster" if ratio * FASTER > 1 else "slower"


def checks(verification: Verification) -> list[Check]:
    """The checks that ran."""
    found = [
        Check(f"ONNX Runtime against PyTorch, batch {batch}", difference, verification.onnx_tolerance)
        for batch, difference in verification.onnx.items()
    ]
    if verification.masked is None:
        return found
    masked = Check("compact network against the dense one it stands for", verification.masked, verification.masked_tolerance)
    return [masked, *found]


def checks_verdict(verification: Verification) -> str:
    """`checks passed`, `CHECKS FAILED` or `not checked`."""
    done = checks(verification)
    if not done:
        return "not checked"
    return "checks passed" if all(check.passed for check in done) else "CHECKS FAILED"


def asked_and_reached(target: Target) -> str:
    """`asked for 50.0 % of the MACs removed (macs=50%), reached 50.2 %`, and why the two differ."""
    asked = f"asked for {formatting.share(target.asked)} of the {quantity(target.quantity)} removed"
    note = f": {target.note}" if target.note else ""
    papers = ""
    if target.macs_at_asked is not None:
        papers = (
            f"; counted as papers do, with widths that are not whole, {formatting.share(target.macs_at_asked)} of the MACs go"
        )
    return f"{asked} ({target.text}), reached {formatting.share(target.reached)}{note}{papers}"


def quantity(name: str) -> str:
    """What a target is about, in words."""
    return {"macs": "MACs", "params": "parameters", "size": "ONNX file's size", "rank": "ranks"}.get(name, name)


def rows(report: Report) -> list[Row]:
    """Everything measured before and after."""
    return [*cost_rows(report), *accuracy_rows(report), *latency_rows(report)]


def cost_rows(report: Report) -> list[Row]:
    """What is counted and needs no clock."""
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


def accuracy_rows(report: Report) -> list[Row]:
    """Top-1, and top-5 where it was measured."""
    before, after = report.baseline.accuracy, report.compressed.accuracy
    measured = [accuracy for accuracy in (before, after) if accuracy]
    if not measured:
        return [Row("Top-1", "no data", NOT_MEASURED, NOT_MEASURED)]
    n = " and ".join(dict.fromkeys(f"{accuracy.n:,}" for accuracy in measured))
    row = Row(
        "Top-1",
        f"n = {n}",
        formatting.percent(before.top1) if before else NOT_MEASURED,
        formatting.percent(after.top1) if after else NOT_MEASURED,
        before_spread=formatting.interval(before) if before else "",
        after_spread=formatting.interval(after) if after else "",
    )
    if before and after:
        change = f"{formatting.points(after.top1 - before.top1)} points"
        left = after.top1 / before.top1 if before.top1 else None
        row = replace(row, change=change, tone=_accuracy_tone(before, after), left=left)
    found = [row]
    if before and after and before.top5 is not None and after.top5 is not None:
        top5 = formatting.percent(before.top5), formatting.percent(after.top5)
        found.append(Row("Top-5", f"n = {n}", *top5, f"{formatting.points(after.top5 - before.top5)} points"))
    return found


def _accuracy_tone(before: Accuracy, after: Accuracy) -> Tone:
    """Intervals that overlap do not tell which network is better."""
    if after.high < before.low:
        return "bad"
    return "good" if after.low > before.high else "plain"


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
    return replace(
        row,
        before=formatting.milliseconds(before.median_ms),
        before_spread=f"(p90 {formatting.milliseconds(before.p90_ms)})",
        change=f"{formatting.times(ratio)} {how}" if how == "faster" else f"{how}: {formatting.times(ratio)}",
        tone=_SPEED_TONES[how],
        left=1 / ratio,
    )


def notes(report: Report) -> list[str]:
    """What a reader must know about the rows: what the numbers in brackets are, how the time was taken, fidelity."""
    found = [f"Fidelity: {fidelity(report)}."]
    if report.baseline.accuracy or report.compressed.accuracy:
        found.append("In brackets: Wilson's 95 % interval of the top-1, in per cent.")
    if report.compressed.latency:
        after = report.compressed.latency[0]
        found.append(f"Latency: ONNX Runtime, median of {after.runs} runs after {after.warmup} to warm up, whole batch.")
    return found


def fidelity(report: Report) -> str:
    """How often both networks answer alike, and how far their probabilities are apart."""
    if report.fidelity is None:
        return NOT_MEASURED
    measured = report.fidelity
    alike = f"{formatting.percent(measured.agreement)} of {measured.n:,} {measured.inputs}"
    return f"same top-1 answer as the original on {alike}; mean KL divergence {measured.mean_kl:.3g} nats"


def stage_heading(report: Report) -> list[str]:
    """The names of the columns of `stage_rows`; files and times have one where some stage has them."""
    size = ["ONNX file"] if any(stage.size_bytes is not None for stage in report.stages) else []
    latency = ["latency"] if _stage_setup(report) else []
    return ["stage", "MACs", "parameters", *size, *latency, "top-1 [95 %]", "n", "time", "note"]


def stage_rows(report: Report) -> list[list[str]]:
    """Every stage as text, its name first and its note last."""
    return [[*_stage_cost(report, stage), *_stage_accuracy(stage), stage.note] for stage in report.stages]


def stage_note(report: Report) -> str:
    """What a reader must know about the times of the stages; empty where there are none."""
    if not (setup := _stage_setup(report)):
        return ""
    return f"Latency of stages: {formatting.timing(setup)}, measured in turns; in brackets how many times as fast as the first."


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


def _stage_accuracy(stage: Stage) -> list[str]:
    """Top-1 with its interval, number of images, and the time of the stage."""
    top1, n = "-", "-"
    if stage.accuracy:
        top1 = f"{formatting.percent(stage.accuracy.top1)} {formatting.interval(stage.accuracy)}"
        n = f"{stage.accuracy.n:,}"
    return [top1, n, formatting.duration(stage.seconds)]


def _stage_setup(report: Report) -> Latency | None:
    """How the stages were timed, at the smallest batch; None where none was."""
    return min((latency for stage in report.stages for latency in stage.latency), key=lambda one: one.batch, default=None)


def _timed(stage: Stage, setup: Latency) -> Latency | None:
    """What `stage` takes where all else is as in `setup`."""
    return next((latency for latency in stage.latency if _setup(latency) == _setup(setup)), None)


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
    once = ", each image once" if cost.kept else ""
    return f"; the teacher took {formatting.milliseconds(cost.ms)} a batch, {formatting.share(cost.share)} of the time{once}"


def weights_after(layer: Layer) -> str:
    """The shape of a layer's weights, or those of the chain that took its place."""
    return formatting.weights(layer.factors or [layer.shape_after])


def changed_layers(report: Report) -> list[Layer]:
    """The layers that lost something, in the order of the network."""
    return [
        layer
        for layer in report.layers
        if (layer.shape, layer.macs, layer.params) != (layer.shape_after, layer.macs_after, layer.params_after)
    ]
