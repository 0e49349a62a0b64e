"""Latency of a network before and after: pruned, factored, and both, at batch 1 and 32 (1 and 2 in a tiny run).

    python latency.py --work WORK "prepare resnet18"     compress it three times, and fill the cache of compiled kernels
    python latency.py --work WORK "time resnet18"        time what that left

PyTorch runs in fp16, channels-last, eagerly and compiled with CUDA graphs (`mode="reduce-overhead"`); ONNX Runtime runs the
files that `compress` wrote, in fp32. The runs of the variants are interleaved; values are medians in milliseconds. The
weights are random: latency does not depend on them.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rows import Value, emit
from setting import DIGITS_NET, Setting, Unavailable, measurement, parse
from torch import Tensor, nn

from compressor.checkpoint import load
from compressor.cli import app
from compressor.errors import UsageError
from compressor.onnx.latency import Timing, compare_latency

NETWORKS = ("resnet18", "resnet50", "mobilenet_v2")
VARIANTS = ("original", "pruned", "low rank", "both")
BATCHES, TINY_BATCHES = (1, 32), (1, 2)
TINY = "digitsnet"  # the network of a tiny run
ENGINES = ("PyTorch eager", "ONNX Runtime", "PyTorch compiled")
NAMES = tuple(f"{kind} {name}" for kind in ("prepare", "time") for name in (*NETWORKS, TINY))
RUNS, SECONDS = 100, 4.0


def timings(name: str) -> dict[str, tuple[str, int]]:
    """The rows of a network: the engine and the batch of each, the slowest to begin last."""
    batches = TINY_BATCHES if name == TINY else BATCHES
    return {f"{name} batch {batch}, {engine}": (engine, batch) for engine in ENGINES for batch in batches}


def key(variant: str) -> str:
    """Of a variant's latency in a row."""
    return f"{variant.replace(' ', '_')}_ms"


def folder(setting: Setting, name: str, variant: str) -> Path:
    return setting.work / "latency" / name / variant.replace(" ", "-")


def file(setting: Setting, name: str, variant: str) -> Path:
    """Of a variant, for ONNX Runtime."""
    return folder(setting, name, variant).with_suffix(".onnx")


def shape(name: str) -> tuple[int, int, int]:
    return (1, 8, 8) if name == TINY else (3, 224, 224)


def source(setting: Setting, name: str) -> tuple[str, str | None, dict[str, object]]:
    """The original: a model, the code that builds it, and its arguments."""
    return (str(setting.digits), DIGITS_NET, {"width": 8}) if name == TINY else (f"torchvision:{name}", None, {})


def prepare(setting: Setting, name: str) -> dict[str, Value]:
    """Compress the network on the CPU, without data; then compile all variants once."""
    model, arch, arguments = source(setting, name)
    of_code = [*(["--arch", arch] if arch else []), *(f"--arch-arg={key}={value}" for key, value in arguments.items())]
    network = [model, *of_code, "--input", "x".join(map(str, shape(name)))]
    common = ["--device", "cpu", "--quiet", "--epochs", "0", "--no-onnx"]

    def compress(*arguments: object) -> None:
        status = app([str(argument) for argument in arguments], standalone_mode=False)
        if isinstance(status, int) and status:
            raise RuntimeError(f"{arguments[0]}: exit status {status}")

    torch.manual_seed(0)
    pruned, lowrank, both = (folder(setting, name, variant) for variant in VARIANTS[1:])
    compress("prune", *network, "--rate", 0.5, "--out", pruned, *common)
    compress("lowrank", *network, "--rate", 0.3, "--out", lowrank, *common)
    compress("lowrank", pruned, "--rate", 0.2, "--out", both, *common)
    compress("export", *network, "--out", file(setting, name, "original"))
    for variant in VARIANTS[1:]:
        compress("export", folder(setting, name, variant), "--out", file(setting, name, variant))
    began = time.perf_counter()
    if setting.on_gpu:
        networks = variants(setting, name)
        for batch in BATCHES:
            for network in networks.values():
                compiled(setting, network)(images(setting, name, batch))
    return {"compiling_s": round(time.perf_counter() - began, 1)}


def variants(setting: Setting, name: str) -> dict[str, nn.Module]:
    """The four networks on the device. Raises Unavailable when `prepare` did not get so far."""
    missing = [variant for variant in VARIANTS[1:] if not (folder(setting, name, variant) / "report.json").exists()]
    if missing:
        raise Unavailable(f"not prepared: {', '.join(missing)}")
    dtype = torch.float16 if setting.on_gpu else torch.float32
    networks = [load(*source(setting, name)), *(load(folder(setting, name, variant)) for variant in VARIANTS[1:])]
    placed = [network.eval().to(setting.device, dtype, memory_format=torch.channels_last) for network in networks]
    return dict(zip(VARIANTS, placed, strict=True))


def images(setting: Setting, name: str, batch: int) -> Tensor:
    dtype = torch.float16 if setting.on_gpu else torch.float32
    tensor = torch.rand(batch, *shape(name), dtype=dtype, device=setting.device)
    return tensor.contiguous(memory_format=torch.channels_last)


def compiled(setting: Setting, network: nn.Module) -> Callable[[Tensor], Tensor]:
    if not setting.on_gpu:
        return torch.compile(network, backend="eager", dynamic=False)  # CUDA graphs are a GPU's
    return torch.compile(network, mode="reduce-overhead", dynamic=False)


def medians(setting: Setting, name: str, calls: dict[str, Callable[[Tensor], Tensor]], batch: int) -> dict[str, Value]:
    """Milliseconds of each call, in turns; on a GPU, until the result is there."""
    sample, times = images(setting, name, batch), {variant: list[float]() for variant in calls}
    with torch.inference_mode():
        for call in calls.values():
            for _ in range(1 if setting.tiny else 5):
                call(sample)
        began = time.perf_counter()
        for number in range(3 if setting.tiny else RUNS):
            if number >= 5 and time.perf_counter() - began > SECONDS:
                break
            for variant in list(calls) if number % 2 else list(calls)[::-1]:
                setting.synchronize()
                start = time.perf_counter()
                calls[variant](sample)
                setting.synchronize()
                times[variant].append((time.perf_counter() - start) * 1e3)
    values: dict[str, Value] = {"runs": min(map(len, times.values()))}
    return values | {key(variant): round(statistics.median(found), 4) for variant, found in times.items()}


def on_onnx_runtime(setting: Setting, name: str, batch: int) -> dict[str, Value]:
    files = [file(setting, name, variant) for variant in VARIANTS]
    provider = "cuda" if setting.on_gpu else "cpu"
    try:
        timing = Timing((batch,), provider=provider, runs=3 if setting.tiny else RUNS, seconds=SECONDS)
        found = compare_latency(files, shape(name), timing)
    except UsageError as error:
        raise Unavailable(" ".join(str(error).split())) from None
    values: dict[str, Value] = {}
    for variant, (latency,) in zip(VARIANTS, found, strict=True):
        values |= {key(variant): round(latency.median_ms, 4), "runs": latency.runs}
    return values


def time_all(setting: Setting, name: str) -> None:
    """Emit the rows of a network."""
    try:
        networks = variants(setting, name)
    except Unavailable as error:
        for row in timings(name):
            emit(row, {}, 0.0, "unavailable", str(error))
        return
    for row, (engine, batch) in timings(name).items():
        with measurement(row) as values:
            setting.peak_mib()
            if engine == "ONNX Runtime":
                values |= on_onnx_runtime(setting, name, batch)
            elif engine == "PyTorch eager":
                values |= medians(setting, name, networks, batch)
            else:
                values |= medians(setting, name, {key: compiled(setting, net) for key, net in networks.items()}, batch)
            values["peak_mib"] = setting.peak_mib()


def main() -> None:
    setting, names = parse(__doc__ or "", NAMES)
    for name in names:
        kind, _, network = name.partition(" ")
        if kind == "time":
            time_all(setting, network)
        else:
            with measurement(name) as values:
                values |= prepare(setting, network)


if __name__ == "__main__":
    main()
