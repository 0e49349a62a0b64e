"""Reports to test with: a CIFAR ResNet-20 pruned to half its MACs, and variants of that run for edge cases.

The values are realistic; layers and costs add up, the training curves follow a formula.
"""

import math
from dataclasses import replace

from compressor.report import (
    Difference,
    Epoch,
    Fidelity,
    Frozen,
    Latency,
    Layer,
    Profile,
    Report,
    Score,
    Stage,
    Target,
    Verification,
    compare,
    verdict,
)

EPOCHS = 30
N = 10_000


def scores(top1: float, n: int = N, top5: float | None = None) -> list[Score]:
    """Of a classifier: top-1 with Wilson's interval at 95 %, and top-5."""
    z = 1.96
    centre = (top1 + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(top1 * (1 - top1) / n + z * z / (4 * n * n))
    found = [Score("top1", "top-1", top1, "%", 2, n, centre - half, centre + half)]
    return found if top5 is None else [*found, Score("top5", "top-5", top5, "%", 2, n)]


def psnr(value: float, half: float = 0.2, n: int = 100) -> Score:
    """Of a network that restores images: in dB, with an interval of `half` to both sides."""
    return Score("psnr", "PSNR", value, "dB", 2, n, value - half, value + half)


def loss(value: float, n: int = N) -> Score:
    """A score without a unit and without an interval, of which less is better."""
    return Score("loss", "cross-entropy", value, "", 4, n, more_is_better=False)


def fidelity(agreement: float, kl: float, n: int, inputs: str) -> Fidelity:
    """Of a classifier."""
    return Fidelity(
        [
            Score("agreement", "same top-1 prediction", agreement, "%", 2, n),
            Score("kl", "mean KL divergence", kl, "nats", 3, n, more_is_better=False),
        ],
        n,
        inputs,
    )


def conv(name: str, out: int, into: int, out_after: int, into_after: int, side: int, group: str) -> Layer:
    """A 3x3 convolution whose output is `side` x `side`."""
    params, params_after = 9 * out * into, 9 * out_after * into_after
    return Layer(
        name,
        "Conv2d",
        [out, into, 3, 3],
        [out_after, into_after, 3, 3],
        params * side * side,
        params_after * side * side,
        params,
        params_after,
        group,
    )


def resnet20_layers() -> list[Layer]:
    """Residual streams of 13, 25 and 51 channels; inside the blocks about half of the channels remain."""
    streams, inner = {1: (16, 13), 2: (32, 25), 3: (64, 51)}, {1: [12, 9, 11], 2: [21, 20, 17], 3: [45, 42, 27]}
    layers = [conv("conv1", 16, 3, 13, 3, 32, "residual stream 1")]
    width, width_after = streams[1]
    for stage, (out, out_after) in streams.items():
        side = 64 >> stage
        for block, kept in enumerate(inner[stage]):
            name = f"layer{stage}.{block}"
            layers.append(conv(f"{name}.conv1", out, width, kept, width_after, side, f"{name}.conv1"))
            layers.append(conv(f"{name}.conv2", out, out, out_after, kept, side, f"residual stream {stage}"))
            width, width_after = out, out_after
    layers.append(Layer("linear", "Linear", [10, 64], [10, 51], 640, 510, 650, 520, "frozen: output of the network"))
    return layers


def profile(layers: list[Layer], after: bool, peak: int, scores: list[Score], latency: list[Latency]) -> Profile:
    """The sums over the layers."""
    macs = sum(layer.macs_after if after else layer.macs for layer in layers)
    params = sum(layer.params_after if after else layer.params for layer in layers)
    return Profile(macs, params, 4 * params, 4 * params + 21_407, peak, scores, latency)


def timed(batch: int, median: float, provider: str = "cpu", threads: int = 1) -> Latency:
    """The median of 50 runs."""
    return Latency(batch, median, 1.06 * median, 50, 10, provider, threads)


def training() -> list[Epoch]:
    """A fine-tuning that converges; its loss has two named terms."""
    epochs = []
    for epoch in range(1, EPOCHS + 1):
        share = epoch / EPOCHS
        wobble = 0.012 * math.sin(7 * epoch) * (1 - share)
        left = math.exp(-4 * share)
        losses = {"cross_entropy": 0.21 + 0.9 * left + 2 * wobble, "distillation": 0.34 + 1.3 * left - 3 * wobble}
        lr = 0.05 * (1 + math.cos(math.pi * share)) / 2
        held_out = Score("top1", "top-1", 0.874 - 0.22 * left + 2 * wobble, "%", 2, 2_000)
        epochs.append(Epoch(epoch, lr, losses, held_out, 41.3, 1089.6))
    return epochs


def example() -> Report:
    """The complete run: data, training, two batch sizes on the CPU."""
    layers = resnet20_layers()
    before = profile(
        layers, False, 131_072, scores(0.8796, top5=0.9933), [timed(1, 1.93), timed(32, 41.7), timed(1, 1.31, "cuda")]
    )
    after = profile(
        layers, True, 106_496, scores(0.8710, top5=0.9926), [timed(1, 1.31), timed(32, 23.9), timed(1, 1.33, "cuda")]
    )
    verification = Verification(2.4e-7, 1e-4, {"1": 3.1e-7, "2": 4.4e-7, "3": 4.0e-7}, 1e-4)
    cut = after.macs, after.params
    return Report(
        name="resnet20-half",
        verdict=verdict(before, after, verification),
        model="checkpoints/resnet20.pt",
        arch="examples/cifar/resnet.py:resnet20",
        data="imagefolder:data/cifar10",
        input_shape=[3, 32, 32],
        method="pgmpf",
        settings={
            "rate": 0.5,
            "epochs": EPOCHS,
            "lr": 0.05,
            "batch_size": 128,
            "residual": "coupled",
            "round_to": 1,
            "keep": None,
            "amp": False,
            "floor": 1e-5,
            "drop": 0.1,
        },
        seed=0,
        target=Target("macs", 0.5, 1 - after.macs / before.macs, "--rate 0.5"),
        baseline=before,
        compressed=after,
        change=compare(before, after),
        stages=[
            Stage("original", before.macs, before.params, before.scores, 0.0),
            Stage("cut", *cut, scores(0.3127), 212.4, "soft filters removed for good"),
            Stage("recalibrated", *cut, scores(0.7385), 3.2, "batch norm statistics from 2,048 images"),
            Stage("fine-tuned", *cut, scores(0.8712), 1239.0),
            Stage("ONNX", *cut, after.scores, 9.7, "ONNX Runtime, float32"),
        ],
        epochs=training(),
        layers=layers,
        frozen=[Frozen("linear", "its output is the output of the network: 10 classes")],
        fidelity=fidelity(0.9231, 0.0874, N, "test images"),
        verification=verification,
        warnings=["no faster on CUDA at batch 1: 0.98x; the network is too small to fill the GPU"],
        versions={"compressor": "0.1.0", "torch": "2.11.0", "onnxruntime": "1.23.0", "python": "3.11.9"},
        device="cpu (Intel Xeon, 2 cores)",
        command="compress prune checkpoints/resnet20.pt --arch examples/cifar/resnet.py:resnet20 "
        "--data imagefolder:data/cifar10 --rate 0.5 --method pgmpf --epochs 30 --seed 0",
        created="2026-03-14T09:26:53Z",
        seconds=1464.3,
    )


def pipeline() -> Report:
    """A pipeline of several steps, each with its own file and latency; quantization does not change the MACs."""
    report = example()
    before, cut = report.baseline, (report.compressed.macs, report.compressed.params)
    stages = [
        Stage("original", before.macs, before.params, before.scores, 0.0, "", 1_100_295, before.latency),
        Stage("prune", *cut, scores(0.8710), 1455.2, "magnitude, 30 epochs", 525_407, [timed(1, 1.31), timed(32, 23.9)]),
        Stage("int8", *cut, scores(0.8694), 21.3, "512 images seen", 160_112, [timed(1, 0.74), timed(32, 14.2)]),
        Stage("check", *cut, [], 0.2),
    ]
    return replace(report, name="resnet20-pipeline", stages=stages)


def without_data() -> Report:
    """A run without data: no scores, no training, no latency; agreement on random inputs only."""
    report = example()
    before = replace(report.baseline, scores=[], latency=[], size_bytes=None, peak_activation_bytes=None)
    after = replace(report.compressed, scores=[], latency=[], peak_activation_bytes=None)
    return replace(
        report,
        name="resnet20-blind",
        verdict=verdict(before, after, report.verification),
        data=None,
        baseline=before,
        compressed=after,
        change=compare(before, after),
        stages=[replace(stage, scores=[]) for stage in report.stages[:2]],
        epochs=[],
        fidelity=fidelity(0.41, 1.93, 64, "random inputs"),
        warnings=["accuracy was not measured: give images with --data"],
    )


def restoration() -> Report:
    """A network that restores images: PSNR with an interval of the difference, and SSIM."""
    report = example()
    ssim = [Score("ssim", "SSIM", value, "", 4, 100) for value in (0.8123, 0.8071)]
    before = replace(report.baseline, scores=[psnr(28.72), ssim[0]])
    after = replace(report.compressed, scores=[psnr(28.41), ssim[1]])
    change = compare(before, after, {"psnr": Difference(28.41 - 28.72, -0.36, -0.26)})
    cut = after.macs, after.params
    return replace(
        report,
        name="imdn-half",
        verdict=verdict(before, after, report.verification, change.scores),
        task="restore",
        baseline=before,
        compressed=after,
        change=change,
        stages=[
            Stage("original", before.macs, before.params, before.scores, 0.0),
            Stage("cut", *cut, [psnr(9.2)], 4.0),
            Stage("ONNX", *cut, after.scores, 9.7),
        ],
        epochs=[replace(epoch, held_out=psnr(20 + epoch.epoch / 4)) for epoch in report.epochs],
        fidelity=Fidelity([replace(psnr(41.3), name="fidelity_psnr", label="PSNR")], 100, "test images"),
    )


def bare() -> Report:
    """Only the required fields of a report."""
    return replace(
        without_data(),
        stages=[],
        layers=[],
        frozen=[],
        settings={},
        fidelity=None,
        verification=Verification(None, 1e-4, {}, 1e-4),
        warnings=[],
        versions={},
    )


NASTY = '<script>alert("|x|")</script> `a` & *b* $x$ [bold]{{ 7*7 }}'


def nasty() -> Report:
    """Every text of the user contains markup of Markdown, HTML, LaTeX and rich."""
    report = example()
    return replace(
        report,
        name=NASTY,
        model=NASTY,
        arch=NASTY,
        data=NASTY,
        method=NASTY,
        settings={NASTY: NASTY},
        target=replace(report.target, text=NASTY, note=NASTY),
        stages=[replace(stage, name=f"{stage.name} {NASTY}", note=NASTY) for stage in report.stages],
        epochs=[replace(epoch, losses={NASTY: 1.0}) for epoch in report.epochs],
        layers=[replace(layer, name=f"{i}{NASTY}", kind=NASTY, group=NASTY) for i, layer in enumerate(report.layers)],
        frozen=[Frozen(NASTY, NASTY)],
        fidelity=replace(report.fidelity, inputs=NASTY) if report.fidelity else None,
        warnings=[NASTY],
        versions={NASTY: NASTY},
        device=NASTY,
        command=NASTY,
        created=NASTY,
    )


def deep(layers: int = 200) -> Report:
    """A network of many layers with long names, all of them pruned."""
    name = "backbone.features.encoder.stage{0}.block{1}.attention.projection.convolution.depthwise"
    return replace(
        example(),
        name="a-deep-network-with-a-name-that-is-long-enough-to-wrap-on-a-telephone",
        layers=[conv(name.format(i // 20, i % 20), 64, 64, 20 + i % 40, 30, 8, f"group {i}") for i in range(layers)],
        frozen=[Frozen(name.format(i, 0), "its channels are reshaped into heads") for i in range(40)],
        warnings=[f"layer {i} is at its floor of one channel" for i in range(30)],
    )
