"""Quantization with and without pruning: size, latency and accuracy of a ResNet-20's ONNX files, and alternatives to defaults.

    python examples/benchmarks/quantization.py resnet20-jpeg.pt --data imagefolder:cifar10 --work DIR
        [--epochs 2] [--seed 0] [--rounds 5] [--out FILE]

The checkpoint is of `examples/cifar/resnet.py`, named after its network. `compress prune` removes half of its MACs, or, with
widths that are multiples of 16, nearly as many as possible (`CUTS`), and fine-tunes for `--epochs`; `compress quantize` writes
the pruned networks and the original in INT8, calibrated on 512 training images. `top1` is on all test images, with ONNX
Runtime; nothing was selected by it. The latency of all files is measured interleaved on one thread, in `--rounds` rounds: the
result is the median of the rounds' medians, with the smallest and the largest.

`choices` are other ways to quantize the original, compared on held-out images, on which the checkpoint was trained: the
difference of their outputs from those in float32 (`agreement` of the top-1, mean KL divergence), and their latency. Runs that
`--work` already contains are skipped.
"""

import argparse
import json
import platform
import re
import shlex
import statistics
import sys
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic, quantize_static

import compressor
from compressor.checkpoint import load_model
from compressor.data import Data, open_data
from compressor.files import write_text
from compressor.onnx import quantizer
from compressor.onnx.export import export_onnx, quiet
from compressor.onnx.latency import Timing, compare_latency
from compressor.onnx.runtime import onnx_predict
from compressor.report import read_report
from compressor.runs.quantize import LOOKED_AT
from compressor.tasks.classify import Classify
from compressor.training.recipe import Recipe

ARCH = Path(__file__).parents[1] / "cifar/resnet.py"
CUTS: dict[str, tuple[float, int | None]] = {  # name -> --rate and --round-to
    "pruned": (0.5, None),
    "pruned to multiples of 16": (0.39, 16),  # nearly as many as possible with these widths
}
Row = dict[str, Any]


def runs(arguments: argparse.Namespace, arch: str) -> dict[str, Path]:
    """Name -> ONNX file: the original network, the pruned ones, and each of these in INT8."""
    work: Path = arguments.work
    file = work / "float.onnx"
    data = open_data(arguments.data)
    export_onnx(load_model(arguments.model, arch=arch).model, data.shape, file)
    shared: dict[str, Any] = {"arch": arch, "data": arguments.data, "force": True}
    recipe = Recipe(epochs=arguments.epochs, seed=arguments.seed)
    files, models = {"float32": file}, {"": arguments.model}
    for name, (rate, round_to) in CUTS.items():
        if not is_there(place := work / name):
            compressor.prune(arguments.model, rate=rate, round_to=round_to, recipe=recipe, out=place, **shared)
        files[name], models[name] = place / "model.onnx", str(place)
    for name, model in models.items():
        title = f"{name}, INT8".removeprefix(", ")
        if not is_there(place := work / title):
            compressor.quantize(model, seed=arguments.seed, out=place, **shared)
        files[title] = place / "model.onnx"
    return files


def is_there(run: Path) -> bool:
    return (run / "report.json").exists()


def choices(file: Path, data: Data, work: Path, seed: int) -> dict[str, Path]:
    """Name -> the float network of `file`, quantized in another way."""
    ready = work / "ready.onnx"
    quantizer.prepare(file, ready)

    def images() -> Any:
        return data.batches("train", batch_size=LOOKED_AT, device="cpu", augment=False, seed=seed, limit=512)

    def signed(out: Path) -> None:
        quantize_static(
            ready,
            out,
            quantizer.Reader(["images"], images()),
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            extra_options={"CalibStridedMinMax": 1},
        )

    ways: dict[str, Any] = {
        "static": lambda out: quantizer.to_int8(ready, out, images()),
        "static, entropy": lambda out: quantizer.to_int8(ready, out, images(), ranges="entropy"),
        "static, percentile": lambda out: quantizer.to_int8(ready, out, images(), ranges="percentile"),
        "static, weights of 7 bits": lambda out: quantizer.to_int8(ready, out, images(), reduce_range=True),
        "static, signed activations": signed,
        "dynamic, linear layers": lambda out: quantizer.to_int8(ready, out, None),
        "dynamic, convolutions too": lambda out: quantize_dynamic(ready, out, weight_type=QuantType.QUInt8),
        "FP16": lambda out: quantizer.to_fp16(ready, out),
    }
    files = {name: work / f"choice-{i}.onnx" for i, name in enumerate(ways)}
    for name, way in ways.items():
        with quiet():
            way(files[name])
    return files


def timed(files: dict[str, Path], shape: tuple[int, ...], rounds: int) -> dict[str, Row]:
    """Milliseconds by batch size: median, smallest and largest of the rounds' medians."""
    found = [compare_latency(list(files.values()), shape, Timing((1, 32), seconds=2.0 * len(files))) for _ in range(rounds)]
    table: dict[str, Row] = {}
    for i, name in enumerate(files):
        by_batch: dict[str, list[float]] = {}
        for one in found:
            for latency in one[i]:
                by_batch.setdefault(str(latency.batch), []).append(latency.median_ms)
        table[name] = {batch: [statistics.median(ms), min(ms), max(ms)] for batch, ms in by_batch.items()}
    return table


def processor() -> str:
    """The name of the CPU, and whether it has VNNI."""
    text = Path("/proc/cpuinfo").read_text()
    name = re.search(r"model name\s*: (.*)", text)
    return f"{name[1] if name else platform.machine()}, {'with' if 'vnni' in text else 'without'} VNNI"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.work.mkdir(parents=True, exist_ok=True)
    data = open_data(arguments.data)
    made = runs(arguments, f"{ARCH}:{Path(arguments.model).stem.split('-')[0]}")
    others = choices(made["float32"], data, arguments.work, arguments.seed)
    files = made | others
    times = timed(files, data.shape, arguments.rounds)

    def row(name: str, part: Any) -> Row:
        ask, of_float = (onnx_predict(files[which], threads=1) for which in (name, "float32"))
        task = Classify()
        hits, likeness = task.meter(), task.likeness()
        for batch in data.batches(part, batch_size=250, device="cpu"):
            outputs = task.answers(ask, batch)
            task.score(hits, outputs, batch)
            likeness.update(outputs, task.answers(of_float, batch), batch.indices)
        found, (agreement, kl) = hits.compute()[0], likeness.compute(intervals=False)
        told = {"top1": found.value, "low": found.low, "high": found.high, "n": found.n}
        answers = {"agreement": agreement.value, "mean_kl": kl.value}
        return {"name": name, "size_bytes": files[name].stat().st_size, **told, **answers, "ms": times[name]}

    reports = {name: read_report(arguments.work / name) for name in CUTS}
    words = [re.sub(r"[^:\s]*/", "", word) for word in sys.argv[1:]]  # without directories
    written = {
        "command": shlex.join(["python", "examples/benchmarks/quantization.py", *words]),
        "rows": [row(name, "test") for name in made],
        "choices": [row(name, "held_out") for name in others],
        "cuts": {name: {"macs_left": one.change.macs, "params_left": one.change.params} for name, one in reports.items()},
        "epochs": arguments.epochs,
        "seed": arguments.seed,
        "rounds": arguments.rounds,
        "processor": processor(),
        "versions": {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__, "python": platform.python_version()},
    }
    write_text(arguments.out, json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()
