"""What a report holds: the one truth behind `report.json`, `report.md`, `report.html` and the terminal tables.

Every figure here was measured in the run the report belongs to; what was not measured is `None`, never a guess.
Units: MACs are multiply-adds for one image; sizes are bytes; latencies are milliseconds for one batch; accuracies and
shares are fractions between 0 and 1.
"""

from dataclasses import dataclass, field

VERSION = 1


@dataclass(frozen=True)
class Accuracy:
    """Top-1 (and top-5) of `n` images never used for training or choosing; `low`..`high` is Wilson's 95 % interval."""

    top1: float
    low: float
    high: float
    n: int
    top5: float | None = None
    loss: float | None = None


@dataclass(frozen=True)
class Latency:
    """ONNX Runtime's time for one batch, after `warmup` runs: median and 90th percentile of `runs` runs."""

    batch: int
    median_ms: float
    p90_ms: float
    runs: int
    warmup: int
    provider: str
    threads: int


@dataclass(frozen=True)
class Profile:
    """What a network costs and how good it is."""

    macs: int
    params: int
    weight_bytes: int
    size_bytes: int | None = None  # of the ONNX file
    peak_activation_bytes: int | None = None  # largest sum of live activations in one forward of one image
    accuracy: Accuracy | None = None  # measured through ONNX Runtime on the written file where there is one
    latency: list[Latency] = field(default_factory=list)


@dataclass(frozen=True)
class Stage:
    """The network at one point of the run: original, cut, recalibrated, fine-tuned, ONNX."""

    name: str
    macs: int
    params: int
    accuracy: Accuracy | None
    seconds: float  # since the previous stage
    note: str = ""
    size_bytes: int | None = None  # of its ONNX file, where several steps each wrote one
    latency: list[Latency] = field(default_factory=list)  # of that file; all of a report were timed in turns


@dataclass(frozen=True)
class Epoch:
    """One epoch of training. `losses` are the method's named terms, averaged over the epoch."""

    epoch: int  # counted from 1
    lr: float
    losses: dict[str, float]
    train_top1: float | None
    held_out_top1: float | None
    seconds: float
    images_per_second: float


@dataclass(frozen=True)
class Layer:
    """One layer with weights. Shapes are of its weight; `macs` for one image."""

    name: str
    kind: str
    shape: list[int]
    shape_after: list[int]
    macs: int
    macs_after: int
    params: int
    params_after: int
    group: str = ""  # the coupled group its output channels belong to, how it was factored, or why it was left as it was
    factors: list[list[int]] = field(default_factory=list)  # weights of the chain that took its place, in order
    rank: int | None = None  # of that chain
    ms: float | None = None  # that ONNX Runtime takes for the layer alone, for one image on one thread
    ms_after: float | None = None


@dataclass(frozen=True)
class Frozen:
    """Channels that could not be cut, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Target:
    """What was asked and what was reached, both as the share of the original `quantity` that is gone."""

    quantity: str  # macs, params, size, filters, weights
    asked: float
    reached: float
    text: str  # the request as the user wrote it
    note: str = ""  # why the two differ, when they do
    macs_at_asked: float | None = None  # share of the MACs gone if each layer gave exactly the filters asked, as papers count


@dataclass(frozen=True)
class Fidelity:
    """How close the compressed network's answers are to the original's, on the same `n` inputs."""

    agreement: float  # share of equal top-1 predictions
    mean_kl: float  # mean KL(original ‖ compressed) of the softmax outputs, nats
    n: int
    inputs: str  # which inputs: "test images" or "random inputs"


@dataclass(frozen=True)
class Verification:
    """The checks that had to pass before anything was published: largest difference over largest output."""

    masked: float | None  # compact against masked
    masked_tolerance: float
    onnx: dict[str, float]  # ONNX Runtime against torch, by batch size
    onnx_tolerance: float


@dataclass(frozen=True)
class Teaching:
    """What the teacher's answers took of the training."""

    ms: float  # of one batch, the median of the first
    share: float  # of the time of training
    kept: bool  # whether each image was answered once, and the answer kept


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes an input of `model.onnx`: resized to cover `size` / `crop`, center-cropped to `size`, normalized."""

    size: list[int]  # height and width
    crop: float  # share of the resized image that is kept; an image that has the size already stays as it is
    mode: str  # as Pillow calls it: RGB, or L for grey
    mean: list[float]  # per channel, of pixels from 0 to 1
    std: list[float]
    classes: list[str]  # what each output stands for


@dataclass(frozen=True)
class Change:
    """Compressed over original; for accuracy the difference in top-1 (compressed - original)."""

    macs: float
    params: float
    weight_bytes: float
    size_bytes: float | None
    top1: float | None
    latency: dict[str, float]  # by batch size: original median / compressed median, so above 1 is faster


@dataclass(frozen=True)
class Report:
    """A whole run."""

    name: str
    verdict: str  # one line: the result in a nutshell
    model: str
    arch: str
    data: str | None
    input_shape: list[int]  # [channels, height, width] of one image, or of the first input
    method: str
    settings: dict[str, str | float | int | bool | None]  # everything that was decided, the method's own settings too
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
    teaching: Teaching | None = None  # where a student learned from a teacher
    preprocessing: Preprocessing | None = None  # where data were given
    version: int = VERSION
