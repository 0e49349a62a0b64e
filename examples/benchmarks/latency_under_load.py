"""The ratio of two latencies on a quiet and on a busy machine: as `compress` measures it, and as medians of wall times.

    python latency_under_load.py [--repetitions 20] [--busy 2] [--out FILE]

A ResNet-18 at 224 pixels and the same network with half of its MACs, timed by `compare_latency` and, in the same rounds of
`take_turns`, by wall time; first alone, then beside processes that are always busy. Run it on a machine that does nothing else.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torchvision.models import resnet18

import compressor
from compressor.files import write_text
from compressor.network.inputs import Inputs
from compressor.onnx.export import export_onnx
from compressor.onnx.latency import Timing, compare_latency, take_turns
from compressor.onnx.runtime import bound_run, open_session
from compressor.runs.reporting import versions

SHAPE = (3, 224, 224)
RESULTS = Path(__file__).with_suffix(".json")
SPIN = "while True: sum(range(100000))"


@contextmanager
def busy(count: int) -> Iterator[None]:
    processes = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def files(folder: Path) -> list[Path]:
    """The original, and half of its MACs."""
    torch.manual_seed(0)
    torch.save(resnet18().state_dict(), folder / "resnet18.pt")
    compressor.prune(str(folder / "resnet18.pt"), rate=0.5, out=folder / "half", inputs=SHAPE, arch="torchvision:resnet18")
    export_onnx(
        compressor.load(folder / "resnet18.pt", arch="torchvision:resnet18"), Inputs.of(SHAPE), folder / "resnet18.onnx"
    )
    return [folder / "resnet18.onnx", folder / "half/model.onnx"]


def wall_ratio(paths: list[Path]) -> float:
    calls: list[Callable[[], None]] = [
        bound_run(open_session(path, "cpu", 1), [tensor.numpy() for tensor in Inputs.of(SHAPE).random(1)], "cpu")
        for path in paths
    ]
    take_turns(calls, 3, 1, 1.0)
    before, after = (statistics.median(times) for times in take_turns(calls, 100, 5, 2.0, time.perf_counter))
    return before / after


def measure(paths: list[Path], repetitions: int) -> dict[str, list[float] | int]:
    ours, unreliable = [], 0
    for _ in range(repetitions):
        (before,), (after,) = compare_latency(paths, SHAPE, Timing((1,)))
        unreliable += not (before.reliable and after.reliable)
        ours.append(round(before.median_ms / after.median_ms, 4))
    return {"ratios": ours, "unreliable": unreliable, "wall_ratios": [round(wall_ratio(paths), 4) for _ in range(repetitions)]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--busy", type=int, default=2, help="processes beside the measurement")
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = files(Path(folder))
        quiet = measure(paths, asked.repetitions)
        with busy(asked.busy):
            loaded = measure(paths, asked.repetitions)
    found = {"script": Path(__file__).name, "busy": asked.busy, "quiet": quiet, "loaded": loaded, "versions": versions()}
    write_text(asked.out, json.dumps(found, indent=2) + "\n")
    middle = statistics.median(quiet["ratios"])  # type: ignore[arg-type]
    for name, rows in (("quiet", quiet), ("loaded", loaded)):
        for key in ("ratios", "wall_ratios"):
            ratios = rows[key]
            print(name, key, f"{min(ratios):.2f} .. {max(ratios):.2f}, quiet median {middle:.2f}")  # type: ignore[arg-type, type-var]


if __name__ == "__main__":
    main()
