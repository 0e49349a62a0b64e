"""The contents of a report: the single source of `report.json`, `report.md`, `report.html` and the terminal tables.

Every value was measured in the run that the report belongs to; what was not measured is `None`, never an estimate.
Units: MACs are multiply-adds for one image; sizes are bytes; latencies are milliseconds for one batch; shares, and scores
with the unit %, are fractions between 0 and 1. Earlier versions of the file are read by version1.py.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

VERSION = 2


@dataclass(frozen=True)
class Score:
    """A score of a network on `n` images that are not used for training or selection; `low`..`high` is its 95 % interval."""

    name: str  # in budgets and JSON: top1, miou, psnr
    label: str  # in reports: top-1, mIoU, PSNR
    value: float
    unit: str  # "%": a share from 0 to 1, printed in per cent; else the unit itself, as dB; "" without one
    places: int  # printed decimals
    n: int
    low: float | None = None
    high: float | None = None
    more_is_better: bool = True

    @property
    def sign(self) -> int:
        """1, or -1 if less is better: what values and differences are multiplied by, so that more is better."""
        return 1 if self.more_is_better else -1


def headline(scores: Sequence[Score]) -> Score | None:
    """The score that verdicts and plots show; None if nothing was measured."""
    return scores[0] if scores else None


def named(scores: Iterable[Score], name: str, unit: str | None = None) -> Score | None:
    """The score of a name, and of a unit if one is given; None if there is none."""
    return next((score for score in scores if score.name == name and unit in (None, score.unit)), None)


@dataclass(frozen=True)
class Difference:
    """Difference of a score, compressed - original; `low`..`high` is its 95 % interval, paired over the same images."""

    value: float
    low: float | None = None
    high: float | None = None


WALL, PROCESSOR = "wall time", "processor time"  # clocks of latencies
UNRELIABLE = 2.0  # a 90th percentile of more than so many medians


@dataclass(frozen=True)
class Latency:
    """Latency of one batch in ONNX Runtime: median and 90th percentile of `runs` runs, after `warmup` runs.

    `clock`: "processor time" (of the one thread that ran it, not affected by other processes) or "wall time".
    """

    batch: int
    median_ms: float
    p90_ms: float
    runs: int
    warmup: int
    provider: str
    threads: int
    clock: str = WALL

    @property
    def reliable(self) -> bool:
        """Whether the runs took about the same time. If not, the machine was busy, and the median means little."""
        return self.p90_ms <= UNRELIABLE * self.median_ms


@dataclass(frozen=True)
class Profile:
    """Cost and scores of a network."""

    macs: int
    params: int
    weight_bytes: int
    size_bytes: int | None = None  # of the ONNX file
    peak_activation_bytes: int | None = None  # largest sum of live activations in a forward pass of one image
    scores: list[Score] = field(default_factory=list)  # headline first; by ONNX Runtime on the exported file, if there is one
    latency: list[Latency] = field(default_factory=list)


@dataclass(frozen=True)
class Stage:
    """The network at one stage of the run: original, cut (pruned), recalibrated, fine-tuned, ONNX."""

    name: str
    macs: int
    params: int
    scores: list[Score]  # the headline first; empty without data
    seconds: float  # since the previous stage
    note: str = ""
    size_bytes: int | None = None  # of its ONNX file, in a pipeline where every step writes one
    latency: list[Latency] = field(default_factory=list)  # of that file; all stages were timed interleaved


@dataclass(frozen=True)
class Epoch:
    """One epoch of training. `losses` are the named loss terms of the method, averaged over the epoch."""

    epoch: int  # counted from 1
    lr: float
    losses: dict[str, float]
    held_out: Score | None  # the headline score on the held-out images
    seconds: float
    images_per_second: float


@dataclass(frozen=True)
class Layer:
    """One layer with weights. Shapes are those of its weight; `macs` are for one image."""

    name: str
    kind: str
    shape: list[int]
    shape_after: list[int]
    macs: int
    macs_after: int
    params: int
    params_after: int
    group: str = ""  # channel group of its output channels, how it was factored, or why it was not compressed
    factors: list[list[int]] = field(default_factory=list)  # weight shapes of the low-rank layers that replace it, in order
    rank: int | None = None  # of those low-rank layers
    ms: float | None = None  # latency of the layer alone in ONNX Runtime, for one image on one thread
    ms_after: float | None = None


@dataclass(frozen=True)
class Frozen:
    """A layer that was not compressed, or not completely, and the reason."""

    name: str
    reason: str


@dataclass(frozen=True)
class Target:
    """Target and achieved reduction, both as the share of the original `quantity` that is removed."""

    quantity: str  # macs, params, size, filters, weights
    asked: float
    reached: float
    text: str  # the target as the user wrote it
    note: str = ""  # why target and result differ, if they do
    macs_at_asked: float | None = None  # share of MACs removed with fractional channel counts, as papers count


@dataclass(frozen=True)
class Fidelity:
    """Agreement of the compressed network with the original, on the same `n` inputs; the headline score first."""

    scores: list[Score]  # as the task compares outputs: the share of equal predictions, a divergence, an error
    n: int
    inputs: str  # which inputs: "test images" or "random inputs"


@dataclass(frozen=True)
class Verification:
    """The checks that must pass before results are published: largest difference divided by largest output."""

    masked: float | None  # compact network against its dense equivalent
    masked_tolerance: float
    onnx: dict[str, float]  # ONNX Runtime against PyTorch, by batch size
    onnx_tolerance: float


@dataclass(frozen=True)
class Teaching:
    """Cost of the teacher's forward passes during training."""

    ms: float  # per batch, median of the first batches
    share: float  # of the training time
    kept: bool  # whether the teacher's outputs were computed once per image and cached


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes an input of `model.onnx`: fitted to `size`, its channels ordered, scaled, normalized.

    `fit` is "cover" (resized to cover `size` / `crop`, and center-cropped to it), "stretch" (resized to `size`), "letterbox"
    (resized with its aspect ratio to fit into `size`, and centred between bars), or "whole" (not resized; `size` is that of one
    image for costs, unless there is a tile).
    """

    size: list[int]  # height and width
    crop: float  # share of the resized image that is kept; an image that already has this size is not changed
    mode: str  # Pillow mode: RGB, or L for grey
    mean: list[float]  # per channel, of pixels from 0 to `max_value`
    std: list[float]
    classes: list[str]  # class name of each output; empty without classes
    fit: str = "cover"
    color: str = "rgb"  # order of the channels: rgb, bgr or grey
    max_value: float = 1.0  # of white
    pad_to: int = 1  # the last row and column are repeated at the bottom and right, up to a multiple of this
    tile: list[int] | None = None  # height and width of overlapping parts in which a larger image is given to the network
    bars: list[int] | None = None  # color of the bars of a letterboxed image: grey, or red, green and blue, from 0 to 255


@dataclass(frozen=True)
class Change:
    """Compressed divided by original; for scores the difference."""

    macs: float
    params: float
    weight_bytes: float
    size_bytes: float | None
    latency: dict[str, float]  # by batch size: original median / compressed median, so above 1 is faster
    scores: dict[str, Difference] = field(default_factory=dict)  # by name, of the scores that both have


@dataclass(frozen=True)
class Report:
    """The report of a run."""

    name: str
    verdict: str  # the result in one line
    model: str
    arch: str
    data: str | None
    input_shape: list[int]  # [channels, height, width] of one image, or of the first input
    method: str
    settings: dict[str, str | float | int | bool | None]  # all settings of the run, including those of the method
    seed: int
    target: Target
    baseline: Profile
    compressed: Profile
    change: Change
    stages: list[Stage]
    epochs: list[Epoch]
    layers: list[Layer]
    frozen: list[Frozen]
    fidelity: Fidelity | None
    verification: Verification
    warnings: list[str]
    versions: dict[str, str]
    device: str
    command: str
    created: str  # ISO 8601, UTC
    seconds: float
    inputs: dict[str, list[int]] = field(default_factory=dict)  # name in model.onnx -> shape of one sample
    teaching: Teaching | None = None  # if a student was trained with a teacher
    preprocessing: Preprocessing | None = None  # if the run had data
    task: str = "classify"
    output: str = "logits"  # what the first output of model.onnx is: logits, map (logits of pixels), image or output
    files: dict[str, str] = field(default_factory=dict)  # name -> SHA-256 of each file that the run published with the report
    times: dict[str, float] = field(default_factory=dict)  # seconds of each part of the run; their sum is `seconds`
    onnx_failure: str | None = None  # why there is no model.onnx, if one was requested
    version: int = VERSION
