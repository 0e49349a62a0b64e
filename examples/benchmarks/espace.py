"""Low-rank factorization, spatial masks, and both: MACs, accuracy, and latency in ONNX Runtime, in total and per layer.

    python examples/benchmarks/espace.py vgg8.pt --data imagefolder:cifar10 [--times 4,5.5] [--epochs 1] [--out FILE]

The model is a state dict of `examples/cifar/vgg.py:vgg8`. It is compressed as by `compress lowrank --method espace` to 4 and
to 5.5 times fewer MACs, in several ways: by low-rank factorization alone, by masks alone (grids, or whole rows), by both, and
once with scattered positions. `recalibrated` is the top-1 on all test images, in percent, after batch-norm statistics are
re-estimated on 2,048 training images, and `trained` that after --epochs on all training images, of the last epoch, with the
original as teacher. The first two rows are trained for --longer epochs. The learning rate is the default of `compress`;
nothing was tuned.

`ms` is the median latency in ONNX Runtime for one image on one thread, original and compressed interleaved; `layers` has each
convolution alone, which is only changed if its latency decreases. Rows that FILE already contains are skipped.
"""

import argparse
import json
import os
import platform
import shlex
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compressor.checkpoint import load_model
from compressor.data import Data, open_data
from compressor.errors import Infeasible
from compressor.files import write_text
from compressor.methods.lowrank.papers.espace import Espace
from compressor.network.cost import count_macs
from compressor.network.outputs import torch_predict
from compressor.onnx.export import check_onnx, export_onnx
from compressor.onnx.latency import Timing, compare_latency
from compressor.onnx.layer_latency import Clock
from compressor.recovery.recalibrate import recalibrate
from compressor.runs import reporting
from compressor.runs.journal import Journal
from compressor.runs.recover_accuracy import RECALIBRATION_IMAGES
from compressor.tasks.classify import Classify
from compressor.training.goal import parse_rate
from compressor.training.method import Job
from compressor.training.recipe import Recipe
from compressor.training.train import Training, guide, seed_all

NETWORKS = Path(__file__).resolve().parents[1] / "cifar" / "vgg.py"
SHAPE = (3, 32, 32)
CPU = torch.device("cpu")
ROUNDS = 3
Row = tuple[str, float, int]  # way, times fewer MACs, epochs
WAYS: dict[str, dict[str, Any]] = {
    "both, grid": {"mask": "grid"},
    "low rank": {"lowrank": 1.0},
    "both, rows": {"mask": "rows"},
    "masks, grid": {"mask": "grid", "lowrank": 0.0},
    "masks, rows": {"mask": "rows", "lowrank": 0.0},
    "both, places": {"mask": "places", "split": "channel"},
}


class Bench:
    def __init__(self, model: nn.Module, data: Data, clock: Clock) -> None:
        self.model, self.data, self.clock = model, data, clock
        self.macs = count_macs(model, SHAPE)

    def made(self, fewer: float, recipe: Recipe, settings: dict[str, Any]) -> Espace:
        """The network with `fewer` times fewer MACs, recalibrated. Raises Infeasible."""
        seed_all(0)
        goal, task = parse_rate(1 - 1 / fewer), Classify().trained_with(recipe.label_smoothing)
        teacher = guide(recipe, task, self.model, CPU)
        job = Job(self.model, SHAPE, None, goal, task, macs=self.macs, guide=teacher, images=self.data, clock=self.clock)
        method = Espace(job, **settings)
        method.prepare()
        recalibrate(method.model, method.samples(RECALIBRATION_IMAGES))
        return method

    def top1(self, model: nn.Module) -> float:
        test = self.data.batches("test", batch_size=250, device=CPU)
        return round(100 * Classify().measure(torch_predict(model, CPU), test).headline(), 2)

    def row(self, name: str, fewer: float, recipe: Recipe) -> dict[str, object]:
        """The results of one way to compress."""
        about = {"way": name, "asked": fewer, "epochs": recipe.epochs}
        try:
            method = self.made(fewer, recipe, WAYS[name])
        except Infeasible as error:
            return {**about, "infeasible": str(error).splitlines()[0]}
        small = method.model
        found = {"fewer_macs": round(self.macs / count_macs(small, SHAPE), 2), "recalibrated": self.top1(small)}
        before, after = self.latency(small)
        speed = {"ms_original": round(before, 3), "ms": round(after, 3), "faster": round(before / after, 2)}
        Training(method, self.data, recipe, CPU).run(Journal())
        trained = self.top1(method.finish().to(memory_format=torch.contiguous_format))
        return {**about, **found, **speed, "trained": trained, "layers": self.layers(method)}

    def latency(self, small: nn.Module) -> tuple[float, float]:
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder) / "original.onnx", Path(folder) / "small.onnx"]
            for model, file in zip((self.model, small), files, strict=True):
                export_onnx(model, SHAPE, file)
            check_onnx(small, files[1], SHAPE)
            (before,), (after,) = compare_latency(files, SHAPE, Timing((1,), runs=200, seconds=5))
        return before.median_ms, after.median_ms

    def layers(self, method: Espace) -> list[dict[str, object]]:
        """The results of each convolution."""
        rows = reporting.layers(self.model, method.model, SHAPE, method.made())
        return [
            {
                "layer": row.name,
                "shape": row.shape,
                "fewer_macs": round(row.macs / row.macs_after, 2),
                "ms": None if row.ms is None else round(row.ms, 3),
                "ms_after": None if row.ms_after is None else round(row.ms_after, 3),
                "faster": None if not row.ms or not row.ms_after else round(row.ms / row.ms_after, 2),
                "what": row.group,
            }
            for row in rows
            if row.kind == "Conv2d"
        ]


def timed_again(bench: Bench, results: list[dict[str, Any]]) -> None:
    """Measure the latency of all rows again, once per network, because training does not change it: the median of ROUNDS."""
    found: dict[tuple[str, float], tuple[float, float]] = {}
    for row in (row for row in results if "infeasible" not in row):
        key = row["way"], row["asked"]
        if key not in found:
            small = bench.made(row["asked"], Recipe(epochs=0), WAYS[row["way"]]).model
            found[key] = sorted((bench.latency(small) for _ in range(ROUNDS)), key=lambda pair: pair[0] / pair[1])[ROUNDS // 2]
        before, after = found[key]
        row.update(ms_original=round(before, 3), ms=round(after, 3), faster=round(before / after, 2))
        print(*key, found[key], flush=True)


def wanted(times: list[float], epochs: int, longer: int) -> list[Row]:
    """The rows to measure, the most important first."""
    rest = [(name, fewer, epochs) for fewer in times for name in WAYS if "places" not in name or fewer == times[0]]
    return [*((name, times[0], longer) for name in list(WAYS)[:2]), *rest]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("--data", required=True)
    parser.add_argument("--times", default="4,5.5")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--longer", type=int, default=3)
    parser.add_argument("--clock", type=Path, help="file that caches the latency of layers")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    parser.add_argument("--again", action="store_true", help="measure the latencies in --out again, on an idle machine")
    options = parser.parse_args()
    data = open_data(options.data, size=None, channels=3, mean=None, std=None, seed=0, workers=0)
    model = load_model(str(options.model), arch=f"{NETWORKS}:vgg8").model.eval()
    bench, times = Bench(model, data, Clock(options.clock)), [float(fewer) for fewer in options.times.split(",")]
    recipe = Recipe(epochs=options.epochs, amp="bf16", channels_last=True)
    original = {"macs": bench.macs, "top1": bench.top1(model)}
    results = json.loads(options.out.read_text())["results"] if options.out and options.out.exists() else []
    if options.again:
        timed_again(bench, results)
        found = {
            **json.loads(options.out.read_text()),
            "times": f"median of {ROUNDS} rounds, nothing else running",
            "results": results,
        }
        write_text(options.out, json.dumps(found, indent=2) + "\n")
        return
    known = {(row["way"], row["asked"], row["epochs"]) for row in results}
    for way, fewer, epochs in wanted(times, options.epochs, options.longer):
        if (way, fewer, epochs) in known:
            continue
        results.append(row := bench.row(way, fewer, replace(recipe, epochs=epochs)))
        print({name: value for name, value in row.items() if name != "layers"}, flush=True)
        if options.out:
            found = {**about(options, data), "original": original, "results": results}
            write_text(options.out, json.dumps(found, indent=2) + "\n")


def about(options: argparse.Namespace, data: Data) -> dict[str, object]:
    kind, _, folder = options.data.partition(":")
    given = ["--times", options.times, "--epochs", str(options.epochs), "--longer", str(options.longer)]
    command = [options.model.name, "--data", f"{kind}:{Path(folder).name}", *given]
    return {
        "what": "top-1 in percent on all test images; times in ms for one image on one thread of ONNX Runtime",
        "command": shlex.join(["python", "examples/benchmarks/espace.py", *command]),
        "recipe": "SGD, lr 0.02, batches of 128, cosine, bf16, taught by the original; the last epoch counts",
        "images": data.counts,
        "machine": machine(),
        "versions": reporting.versions(),
    }


def machine() -> dict[str, object]:
    listed = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in listed.read_text().splitlines() if line.startswith("model name")]
    return {"cpu": names[0] if names else platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}


if __name__ == "__main__":
    main()
