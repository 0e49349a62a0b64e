"""Time of pruning during training: epochs of PGMPF and of plain training, and GHFP with and without shrinking.

    python examples/benchmarks/pruning_cost.py DIR [--images 5120] [--epochs 10] [--rounds 3] [--out FILE]

DIR is CIFAR-10 as folders. A random ResNet-20 is trained on one thread. `plain` and `pgmpf` train on the same batches; pgmpf
does not shrink here, so that only the cost of its masks is measured. Each round trains both, interleaved, and the result is
the median of all epochs but the first of each round, in which no filter is masked yet. `ghfp` removes half of the MACs, once
with filters removed during training, once with all of them removed at the end; the result is the time of the whole training.
"""

import argparse
import dataclasses
import json
import os
import platform
import shlex
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "cifar"))
from resnet import resnet20

from compressor.channels import analyse
from compressor.data import Data, open_data
from compressor.files import write_text
from compressor.methods import catalogue
from compressor.methods.prune.filters import FilterPruning
from compressor.runs.journal import Journal
from compressor.tasks.classify import Classify
from compressor.training.goal import parse_rate
from compressor.training.method import Job, Method
from compressor.training.recipe import Recipe
from compressor.training.train import Training, seed_all

CPU = torch.device("cpu")
HELD_OUT = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--images", type=int, default=5120)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    data = open_data(f"imagefolder:{asked.data}")
    positions = {
        **data.positions,
        "train": data.positions["train"][: asked.images],
        "held_out": data.positions["held_out"][:HELD_OUT],
    }
    data = dataclasses.replace(data, positions=positions)
    masks, totals = rounds(asked, data), whole(asked, data)
    plain, pgmpf = (statistics.median(masks[name]) for name in ("plain", "pgmpf"))
    kept, shrunk = (statistics.median(totals[name]) for name in ("at full width", "shrinking"))
    figures = {
        "command": shlex.join(["python", "examples/benchmarks/pruning_cost.py", *sys.argv[1:]]),
        "images": asked.images,
        "epochs": asked.epochs,
        "machine": {"cpu": platform.machine(), "cores": os.cpu_count(), "threads": 1},
        "versions": {"torch": version("torch")},
        "pgmpf": {"plain_epoch_seconds": plain, "pgmpf_epoch_seconds": pgmpf, "ratio": pgmpf / plain, "each": masks},
        "ghfp": {"full_width_seconds": kept, "shrinking_seconds": shrunk, "ratio": shrunk / kept, "each": totals},
    }
    write_text(asked.out, json.dumps(figures, indent=1))
    print(f"PGMPF epoch / plain epoch: {pgmpf / plain:.3f}; GHFP shrinking / at full width: {shrunk / kept:.3f}")


def training(name: str, data: Data, epochs: int, shrink: bool) -> Training:
    seed_all(0)
    model = resnet20()
    job = Job(model, data.shape, analyse(model, data.shape), parse_rate(0.5), Classify())
    method = Method(job) if name == "plain" else catalogue.create(catalogue.find(name, "prune"), job, {})
    method.prepare()
    return Training(method, data, Recipe(epochs=epochs, lr=0.05), CPU, shrink=shrink)


def rounds(asked: argparse.Namespace, data: Data) -> dict[str, list[float]]:
    """Seconds of each epoch except the first of its round."""
    seconds: dict[str, list[float]] = {"plain": [], "pgmpf": []}
    for turn in range(asked.rounds):
        for name in sorted(seconds, reverse=turn % 2 == 0):
            history = training(name, data, 4, shrink=False).run(Journal(None))
            seconds[name] += [epoch.seconds for epoch in history[1:]]
    return seconds


def whole(asked: argparse.Namespace, data: Data) -> dict[str, list[float]]:
    """Seconds of each whole training."""
    seconds: dict[str, list[float]] = {"at full width": [], "shrinking": []}
    for turn in range(asked.rounds):
        for name in sorted(seconds, reverse=turn % 2 == 0):
            run = training("ghfp", data, asked.epochs, shrink=name == "shrinking")
            began = time.perf_counter()
            run.run(Journal(None))
            seconds[name].append(time.perf_counter() - began)
            assert isinstance(run.method, FilterPruning) and run.method.gone.any() == (name == "shrinking")
    return seconds


if __name__ == "__main__":
    main()
