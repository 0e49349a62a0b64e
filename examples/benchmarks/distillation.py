"""Compare distillation methods: from a ResNet-56 to a ResNet-20 on few images, and between ResNet-20s.

    python examples/benchmarks/distillation.py resnet56-jpeg.pt resnet20-jpeg.pt --data imagefolder:cifar10
        [--start scratch] [--methods none kd ...] [--lr 0.02] [--seeds 0 1 2] [--images 5000] [--epochs 15] [--out FILE]

Both checkpoints are of `examples/cifar/resnet.py`, named after their networks; the first is the teacher. With `--start
scratch` the student is initialised at random, with `--start checkpoint` it starts from the second file. Every method trains on
the same `--images` training images for the same number of epochs, in the same order, which depends on the seed. `none` trains
with the labels alone. Batch 64, SGD with Nesterov momentum, weight decay 5e-4, a cosine schedule from 0.05 (from 0.01 for the
checkpoint), bf16. `top1` is of the last epoch, on all test images; nothing was selected by it. `seconds` is the time of
training alone, `earlier` that of preparing the teacher.

Runs that the file already contains are skipped, so the work can be split over several calls and processes.
"""

import argparse
import json
import os
import platform
import re
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from compressor.checkpoint import load_model
from compressor.data import Data, open_data
from compressor.files import write_text
from compressor.methods import catalogue
from compressor.methods.distill.branches import fresh
from compressor.network.cost import count_params
from compressor.network.outputs import torch_predict
from compressor.report import Epoch
from compressor.runs.journal import Journal
from compressor.tasks.classify import Classify
from compressor.training.goal import parse_rate
from compressor.training.method import Job, Method
from compressor.training.recipe import Recipe
from compressor.training.train import Training, seed_all

CPU = torch.device("cpu")
ARCH = Path(__file__).parents[1] / "cifar/resnet.py"
RATES = {"scratch": 0.05, "checkpoint": 0.01}


class Told(Journal):
    """Prints the result of each epoch, because the runs are long."""

    def epoch_ended(self, epoch: Epoch, epochs: int) -> None:
        print(f"  {epoch.epoch}/{epochs} {epoch.losses} held out {held_out(epoch)} {epoch.seconds:.0f} s", flush=True)


def held_out(epoch: Epoch) -> float | None:
    """The score on the held-out images after an epoch."""
    return epoch.held_out and epoch.held_out.value


def few(data: Data, images: int) -> Data:
    """`data` with `images` training images, the same for every seed, and 1,000 of the held-out images."""
    positions = data.positions["train"]
    chosen = positions[torch.randperm(len(positions), generator=torch.Generator().manual_seed(0))[:images]]
    return replace(data, positions={**data.positions, "train": chosen, "held_out": data.positions["held_out"][::5]})


def made(name: str, settings: dict[str, Any], job: Job) -> Method:
    """The method, or for `none` one that only trains."""
    return Method(job) if name == "none" else catalogue.create(catalogue.find(name, "distill"), job, settings)


def row(arguments: argparse.Namespace, data: Data, name: str, seed: int) -> dict[str, Any]:
    files = (arguments.teacher, arguments.student)
    teacher, student = (load_model(file, arch=f"{ARCH}:{Path(file).stem.split('-')[0]}").model for file in files)
    seed_all(seed)
    if arguments.start == "scratch":
        fresh(student)
    needs = name != "none" and catalogue.find(name, "distill").teacher_is == "needed"
    settings = {key: float(value) for key, value in (pair.split("=") for pair in arguments.set)}
    goal = parse_rate(0.5)
    job = Job(student, data.shape, None, goal, Classify(), images=data, teacher=teacher if needs else None)
    method = made(name, settings, job)
    recipe = Recipe(
        epochs=arguments.epochs,
        batch_size=64,
        lr=arguments.lr or RATES[arguments.start],
        weight_decay=5e-4,
        amp="bf16",
        channels_last=True,
        seed=seed,
    )
    began = time.perf_counter()
    if (first := method.first()) is not None:
        Training(first, data, replace(recipe, epochs=max(1, round(recipe.epochs * method.earlier))), CPU).run(Told())
    between = time.perf_counter()
    method.prepare()
    history = Training(method, data, recipe, CPU).run(Told())
    seconds = time.perf_counter() - between
    small = method.finish().float().eval()
    reached = Classify().measure(torch_predict(small, CPU), data.batches("test", batch_size=250, device=CPU))
    return {
        "start": arguments.start,
        "method": name,
        "settings": settings,
        "lr": recipe.lr,
        "seed": seed,
        "images": data.counts["train"],
        "epochs": recipe.epochs,
        "top1": reached.headline(),
        "n": reached.n,
        "held_out": [held_out(epoch) for epoch in history],
        "losses": history[-1].losses,
        "trained_params": sum(p.numel() for p in method.parameters()),
        "params": count_params(small),
        "seconds": seconds,
        "earlier": between - began,
    }


def add(out: Path, found: dict[str, Any]) -> None:
    with FileLock(out.with_suffix(".lock")):
        written = json.loads(out.read_text()) if out.exists() else {"commands": [], "rows": []}
        arguments = [re.sub(r"[^:\s]*/", "", argument) for argument in sys.argv[1:]]  # without directories
        command = shlex.join(["python", "examples/benchmarks/distillation.py", *arguments])
        written["commands"] = list(dict.fromkeys([*written["commands"], command]))
        written |= {"torch": torch.__version__, "python": platform.python_version(), "threads": torch.get_num_threads()}
        written["rows"].append(found)
        write_text(out, json.dumps(written, indent=1) + "\n")


def known(out: Path) -> set[tuple[Any, ...]]:
    rows = json.loads(out.read_text())["rows"] if out.exists() else []
    names = ("start", "method", "lr", "seed", "images", "epochs")
    return {(*(row.get(name, RATES[row["start"]]) for name in names), str(row["settings"])) for row in rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", metavar="TEACHER")
    parser.add_argument("student", metavar="STUDENT")
    parser.add_argument("--data", required=True)
    parser.add_argument("--start", choices=list(RATES), default="scratch")
    parser.add_argument("--methods", nargs="+", default=["none", "kd"])
    parser.add_argument("--set", nargs="*", default=[])
    parser.add_argument("--lr", type=float, help="learning rate; by default that of --start")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    data = few(open_data(arguments.data), arguments.images)
    settings = str({key: float(value) for key, value in (pair.split("=") for pair in arguments.set)})
    for seed in arguments.seeds:
        for name in arguments.methods:
            lr = arguments.lr or RATES[arguments.start]
            if (arguments.start, name, lr, seed, arguments.images, arguments.epochs, settings) in known(arguments.out):
                continue
            print(arguments.start, name, seed, flush=True)
            found = row(arguments, data, name, seed)
            print(f"  {found['top1']:.4f} in {found['seconds']:.0f} s", flush=True)
            add(arguments.out, found)


if __name__ == "__main__":
    main()
