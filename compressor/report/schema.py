"""The contents of a report: the single source of `report.json`, `report.md`, `report.html` and the terminal tables.

Every value was measured in the run that the report belongs to; what was not measured is `None`, never an estimate.
Units: MACs are multiply-adds for one image; sizes are bytes; latencies are milliseconds for one batch; accuracies and
shares are fractions between 0 and 1.
"""

from dataclasses import dataclass, field

VERSION = 1


@dataclass(frozen=True)
class Accuracy:
    """Top-1 (and top-5) on `n` images that are not used for training or selection; `low`..`high` is Wilson's 95 % interval."""

    top1: float
    low: float
    high: float
    n: int
    top5: float | None = None
    loss: float | None = None


@dataclass(frozen=True)
class Latency:
    """Latency of one batch in ONNX Runtime: median and 90th percentile of `runs` runs, after `warmup` runs."""

    batch: int
    median_ms: float
    p90_ms: float
    runs: int
    warmup: int
    provider: str
    threads: int


@dataclass(frozen=True)
class Profile:
    """Cost and accuracy of a network."""

    macs: int
    params: int
    weight_bytes: int
    size_bytes: int | None = None  # of the ONNX file
    peak_activation_bytes: int | None = None  # largest sum of live activations in a forward pass of one image
    accuracy: Accuracy | None = None  # measured with ONNX Runtime on the exported file, if there is one
    latency: list[Latency] = field(default_factory=list)


@dataclass(frozen=True)
class Stage:
    """The network at one stage of the run: original, cut (pruned), recalibrated, fine-tuned, ONNX."""

    name: str
    macs: int
    params: int
    accuracy: Accuracy | None
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
    train_top1: float | None
    held_out_top1: float | None
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
    """Agreement of the compressed network with the original, on the same `n` inputs."""

    agreement: float  # share of inputs with the same top-1 prediction
    mean_kl: float  # mean KL(original ‖ compressed) of the softmax outputs, nats
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
    """How an image becomes an input of `model.onnx`: resized to cover `size` / `crop`, center-cropped to `size`, normalized."""

    size: list[int]  # height and width
    crop: float  # share of the resized image that is kept; an image that already has this size is not changed
    mode: str  # Pillow mode: RGB, or L for grey
    mean: list[float]  # per channel, of pixels from 0 to 1
    std: list[float]
    classes: list[str]  # class name of each output


@dataclass(frozen=True)
class Change:
    """Compressed divided by original; for accuracy the difference in top-1 (compressed - original)."""

    macs: float
    params: float
    weight_bytes: float
    size_bytes: float | None
    top1: float | None
    latency: dict[str, float]  # by batch size: original median / compressed median, so above 1 is faster


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
    onnx_failure: str | None = None  # why there is no model.onnx, if one was requested
    version: int = VERSION
