"""Latency of a network before and after: pruned, factored, and both, at batch 1 and 32.

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
from setting import Setting, Unavailable, measurement, parse
from torch import Tensor, nn

from compressor.checkpoint import load
from compressor.cli import app
from compressor.errors import UsageError
from compressor.onnx.latency import compare_latency

NETWORKS = ("resnet18", "resnet50", "mobilenet_v2")
VARIANTS = ("original", "pruned", "low rank", "both")
BATCHES = (1, 32)
ENGINES = ("PyTorch eager", "ONNX Runtime", "PyTorch compiled")
NAMES = (*(f"prepare {name}" for name in NETWORKS), *(f"time {name}" for name in NETWORKS))
RUNS, SECONDS = 100, 4.0


def timings(name: str) -> list[str]:
    """The rows of a network."""
    return [f"{name} batch {batch}, {engine}" for engine in ENGINES for batch in BATCHES]


def key(variant: str) -> str:
    """Of a variant's latency in a row."""
    return f"{variant.replace(' ', '_')}_ms"


def folder(setting: Setting, name: str, variant: str) -> Path:
    return setting.work / "latency" / name / variant.replace(" ", "-")


def side(setting: Setting) -> int:
    return 32 if setting.tiny else 224


def prepare(setting: Setting, name: str) -> dict[str, Value]:
    """Compress the network on the CPU, without data; then compile all variants once."""
    shape, original = f"3x{side(setting)}x{side(setting)}", folder(setting, name, "original")
    original.mkdir(parents=True, exist_ok=True)
    model = f"torchvision:{name}"
    common = ["--input", shape, "--device", "cpu", "--quiet", "--epochs", "0"]

    def compress(*arguments: object) -> None:
        status = app([str(argument) for argument in arguments], standalone_mode=False)
        if isinstance(status, int) and status:
            raise RuntimeError(f"{arguments[0]}: exit status {status}")

    torch.manual_seed(0)
    compress("export", model, "--input", shape, "--out", original / "model.onnx")
    pruned, lowrank, both = (folder(setting, name, variant) for variant in VARIANTS[1:])
    compress("prune", model, "--rate", 0.5, "--out", pruned, *common)
    compress("lowrank", model, "--rate", 0.3, "--out", lowrank, *common)
    compress("lowrank", pruned, "--rate", 0.2, "--out", both, *common)
    began = time.perf_counter()
    if setting.on_gpu:
        networks = variants(setting, name)
        for batch in BATCHES:
            for network in networks.values():
                compiled(setting, network)(images(setting, batch))
    return {"compiling_s": round(time.perf_counter() - began, 1)}


def variants(setting: Setting, name: str) -> dict[str, nn.Module]:
    """The four networks on the device. Raises Unavailable when `prepare` did not get so far."""
    missing = [variant for variant in VARIANTS[1:] if not (folder(setting, name, variant) / "report.json").exists()]
    if missing:
        raise Unavailable(f"not prepared: {', '.join(missing)}")
    dtype = torch.float16 if setting.on_gpu else torch.float32
    sources = [f"torchvision:{name}", *(str(folder(setting, name, variant)) for variant in VARIANTS[1:])]
    networks = [load(source).eval().to(setting.device, dtype, memory_format=torch.channels_last) for source in sources]
    return dict(zip(VARIANTS, networks, strict=True))


def images(setting: Setting, batch: int) -> Tensor:
    dtype = torch.float16 if setting.on_gpu else torch.float32
    tensor = torch.rand(batch, 3, side(setting), side(setting), dtype=dtype, device=setting.device)
    return tensor.contiguous(memory_format=torch.channels_last)


def compiled(setting: Setting, network: nn.Module) -> Callable[[Tensor], Tensor]:
    if not setting.on_gpu:
        return torch.compile(network, backend="eager", dynamic=False)  # CUDA graphs are a GPU's
    return torch.compile(network, mode="reduce-overhead", dynamic=False)


def medians(setting: Setting, calls: dict[str, Callable[[Tensor], Tensor]], batch: int) -> dict[str, Value]:
    """Milliseconds of each call, in turns; on a GPU, until the result is there."""
    sample, times = images(setting, batch), {variant: list[float]() for variant in calls}
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
    files = [folder(setting, name, variant) / "model.onnx" for variant in VARIANTS]
    provider = "cuda" if setting.on_gpu else "cpu"
    shape = (3, side(setting), side(setting))
    try:
        found = compare_latency(
            files, shape, batches=[batch], provider=provider, runs=3 if setting.tiny else RUNS, seconds=SECONDS
        )
    except UsageError as error:
        raise Unavailable(" ".join(str(error).split())) from None
    values: dict[str, Value] = {}
    for variant, (latency,) in zip(VARIANTS, found, strict=True):
        values |= {key(variant): round(latency.median_ms, 4), "runs": latency.runs}
    return values


def time_all(setting: Setting, name: str) -> None:
    """Emit the rows of a network, the slowest to begin last."""
    try:
        networks = variants(setting, name)
    except Unavailable as error:
        for row in timings(name):
            emit(row, {}, 0.0, "unavailable", str(error))
        return
    for engine in ENGINES:
        for batch in (1, 2) if setting.tiny else BATCHES:
            row = f"{name} batch {batch if not setting.tiny or batch == 1 else 32}, {engine}"
            with measurement(row) as values:
                setting.peak_mib()
                if engine == "ONNX Runtime":
                    values |= on_onnx_runtime(setting, name, batch)
                elif engine == "PyTorch eager":
                    values |= medians(setting, networks, batch)
                else:
                    values |= medians(setting, {key: compiled(setting, net) for key, net in networks.items()}, batch)
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
