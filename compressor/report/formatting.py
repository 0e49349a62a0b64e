"""Formatting of numbers, shared by the page, the Markdown, the terminal and the verdict.

All text is plain ASCII, because it also goes into build logs. 1 MB is 10^6 bytes.
"""

import re
from collections.abc import Mapping, Sequence

from compressor.report.schema import Difference, Latency, Score

# Units in budgets, in upper case.
COUNTS = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9}
BYTES = {**COUNTS, "B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9}
MILLISECONDS = {"US": 1e-3, "MS": 1.0, "S": 1e3}
_STEPS = ["", "k", "M", "G", "T", "P"]


def count(value: int) -> str:
    """Three significant digits and a unit: `40.8 M`. Numbers below a thousand are written in full."""
    number, step = _scaled(value)
    return f"{number} {step}".rstrip()


def size(value: int) -> str:
    """Bytes: `1.08 MB`, `512 B`."""
    number, step = _scaled(value)
    return f"{number} {step}B"


def _scaled(value: int) -> tuple[str, str]:
    if value < 1000:
        return str(value), ""
    scaled, steps = float(value), iter(_STEPS)
    step = next(steps)
    while scaled >= 999.5 and (larger := next(steps, None)):
        scaled, step = scaled / 1000, larger
    return three_digits(scaled), step


def three_digits(value: float) -> str:
    """Three significant digits: `0.0312`, `1.08`, `10.8`, `108`; all digits of larger ones: `1080`."""
    return f"{value:.0f}" if value >= 999.5 else f"{value:#.3g}".rstrip(".")


def share(value: float) -> str:
    """A share between 0 and 1: `50.2 %`."""
    return f"{100 * value:.1f} %"


def change(ratio: float) -> str:
    """After over before, as the relative change with its sign: `-50.2 %`."""
    return f"{_signed(100 * (ratio - 1), 1)} %"


def points(difference: float) -> str:
    """A difference of two shares, in percentage points: `-0.86`."""
    return _signed(100 * difference, 2)


def _signed(value: float, decimals: int) -> str:
    """A value that rounds to zero has no sign."""
    text = f"{value:+.{decimals}f}"
    return text if float(text) else text[1:]


def times(ratio: float) -> str:
    """A ratio: `1.5x`; with two decimals near and below one: `0.98x`."""
    decimals = 2 if ratio < 1.095 else 1 if ratio < 9.95 else 0
    return f"{ratio:.{decimals}f}x"


def milliseconds(value: float) -> str:
    """`1.31 ms`, `412 ms`, `1.20 s`."""
    return f"{three_digits(value / 1000)} s" if value >= 999.5 else f"{three_digits(value)} ms"


def duration(seconds: float) -> str:
    """`0.4 s`, `42 s`, `3 min 05 s`, `2 h 07 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min"


def percent(value: float) -> str:
    """A share between 0 and 1, with two decimals: `87.10 %`."""
    return f"{100 * value:.2f} %"


def score(one: Score) -> str:
    """`87.10 %`, `28.41 dB`, `0.8123`. Always shown with the number of images."""
    return in_unit(one.value, one)


def in_unit(value: float, of: Score) -> str:
    """A value with the unit and the decimals of a score. With three digits, if it would round to zero."""
    text = f"{scaled(value, of):.{of.places}f}"
    if value and not float(text) and of.unit != "%":
        text = f"{value:.3g}"
    return f"{text} {of.unit}".rstrip()


def scaled(value: float, of: Score) -> float:
    """A value as it is printed: shares in per cent."""
    return 100 * value if of.unit == "%" else value


def interval(of: Score) -> str:
    """The 95 % interval of a score in its unit, with one decimal less: `[86.4, 87.7]`; empty without one."""
    if of.low is None or of.high is None:
        return ""
    places = max(of.places - 1, 0)
    return f"[{scaled(of.low, of):.{places}f}, {scaled(of.high, of):.{places}f}]"


def signed(value: float, of: Score) -> str:
    """A difference of two values of a score, without its unit: `-0.86`."""
    return _signed(scaled(value, of), of.places)


def difference(value: float, of: Score) -> str:
    """A difference of two values of a score: `-0.86 points`, `-0.31 dB`, `-0.0123`."""
    return f"{signed(value, of)} {points_or_unit(of)}".rstrip()


def points_or_unit(of: Score) -> str:
    """The unit of a difference: `points` for shares."""
    return "points" if of.unit == "%" else of.unit


def difference_interval(found: Difference, of: Score) -> str:
    """The 95 % interval of a difference: `[-1.21, -0.51]`; empty without one."""
    return "" if found.low is None or found.high is None else f"[{signed(found.low, of)}, {signed(found.high, of)}]"


def title(label: str) -> str:
    """The label of a score at the start of a line: `Top-1`; others have their own capitals: `mIoU`."""
    return f"{label[:1].upper()}{label[1:]}" if label.islower() else label


def images(n: int) -> str:
    """The number of images that a score was measured on: `n = 10,000`."""
    return f"n = {n:,}"


def timing(latency: Latency) -> str:
    """How a latency was measured: `batch 1, CPU, 4 threads`."""
    threads = "1 thread" if latency.threads == 1 else f"{latency.threads} threads"
    return f"batch {latency.batch}, {latency.provider.upper()}, {threads}"


def unreliable(latency: Latency) -> str:
    """`unreliable latency (p90 3.1x the median)`."""
    return f"unreliable latency (p90 {times(latency.p90_ms / latency.median_ms)} the median)"


def shape(sizes: Sequence[int]) -> str:
    """`64x32x3x3`; `-` for a layer that does not exist."""
    return "x".join(map(str, sizes)) or "-"


def weights(shapes: Sequence[Sequence[int]]) -> str:
    """`8x32x3x1 + 64x8x1x3`: the weight shapes of consecutive layers."""
    return " + ".join(map(shape, shapes))


def inputs(shapes: Mapping[str, Sequence[int]]) -> str:
    """`images 3x224x224`; several are separated by commas."""
    return ", ".join(f"{name} {shape(sizes)}" for name, sizes in shapes.items())


def shorten(text: str, length: int) -> str:
    """Replace the middle of a long name by `...`, because both ends of a layer's name identify it."""
    if len(text) <= length:
        return text
    head = (length - 3) // 2
    return f"{text[:head]}...{text[len(text) - (length - 3 - head) :]}"


def plain(text: str) -> str:
    """A text of a report made safe for build logs and labels, where some CI services execute what looks like a command."""
    return shorten(re.sub(r"[^\w .,/()-]", "?", " ".join(text.split()), flags=re.ASCII), 80)
