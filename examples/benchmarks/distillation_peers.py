"""Compare distillation with torchdistill 1.1.5: the same losses on the same batches from the same weights, epochs interleaved.

    pip install --no-deps torchdistill==1.1.5
    python examples/benchmarks/distillation_peers.py resnet56-jpeg.pt --data imagefolder:cifar10
        [--images 2000] [--epochs 6] [--rounds 1] [--note TEXT] [--out FILE]

The teacher is a ResNet-56, the checkpoint, the student a ResNet-20 with random weights; both are of
`examples/cifar/resnet.py`.

    ours     `compressor.training.train.Training` of the paper's class, as `compress distill` runs it
    theirs   their `DistillationBox` from a configuration: their forward hooks at both heads, their `WeightedSumLoss` of their
             terms, their optimizer, their scheduler after each step, and their processing before and after an epoch and a
             step. None of their modules contains the loop over the batches; it is written here as in their example for
             ImageNet, without logging and checkpoints

The losses are those that both have: KD, KD of standardised logits, DIST (they have no DKD), with equal weights and
temperatures. Both read the batches of `Data.batches`, so that images have the same order and augmentation; their data loader
is not used. Batch 64, SGD with Nesterov momentum 0.9, weight decay 5e-4, a cosine schedule from 0.05, float32, channels last,
one thread. Round r has seed r, which determines the student's weights and the order. Their box leaves the teacher in the mode
in which it gets it; here that is `eval`.

First both take one step on the same 64 images: `one_step` is its loss, the largest change of a weight, and the differences of
loss and weights between the two sides. Then whole epochs follow, interleaved in one process: ours, theirs, ours, ... `seconds`
is wall time, `cpu_seconds` the CPU time of this process, which other programs on the machine disturb less. The ratio is
ours / theirs, of medians over all epochs. `top1` is of the last epoch, on all test images.
"""

import argparse
import copy
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchdistill.core.distillation import DistillationBox

from compressor.checkpoint import load_model
from compressor.data import Data, open_data
from compressor.files import write_text
from compressor.methods import catalogue
from compressor.methods.catalogue import Value
from compressor.methods.distill.branches import fresh
from compressor.network.outputs import torch_predict
from compressor.report import Epoch
from compressor.runs.journal import Journal
from compressor.tasks.classify import Classify
from compressor.training.goal import parse_rate
from compressor.training.method import Job
from compressor.training.recipe import Recipe
from compressor.training.train import Training, seed_all

sys.path.insert(0, str(Path(__file__).parents[1] / "cifar"))
from resnet import resnet20  # in examples/cifar

ARCH = Path(__file__).parents[1] / "cifar/resnet.py"
CPU, BATCH = torch.device("cpu"), 64
HEAD = "linear"  # of teacher and student: the module that outputs the logits
SIDES = ("ours", "theirs")


@dataclass(frozen=True)
class Loss:
    """One loss as configured on both sides: our method and its settings, their terms and weights."""

    method: str
    settings: Mapping[str, Value]
    terms: Mapping[str, Mapping[str, Any]]


def their_term(key: str, weight: float = 1.0, **settings: float) -> dict[str, Any]:
    """A term that compares the logits of student and teacher, as recorded by their hooks."""
    places = {
        f"{who}_module_{what}": value for who in ("student", "teacher") for what, value in (("path", HEAD), ("io", "output"))
    }
    return {"criterion": {"key": key, "kwargs": {**places, **settings}}, "weight": weight}


LABELS = {
    "criterion": {"key": "CrossEntropyLoss", "kwargs": {}},
    "criterion_wrapper": {
        "key": "SimpleLossWrapper",
        "kwargs": {"input": {"is_from_teacher": False, "module_path": HEAD, "io": "output"}, "target": {"uses_label": True}},
    },
    "weight": 1.0,
}
LOSSES = {
    "kd": Loss(
        "kd",
        {"cross_entropy": 0.1, "kd": 0.9, "temperature": 4.0},
        {"kd": their_term("KDLoss", alpha=0.1, beta=0.9, temperature=4.0)},
    ),
    "kd of standardised logits": Loss(
        "kd",
        {"cross_entropy": 0.1, "kd": 9.0, "temperature": 2.0, "standardise": True},
        {"kd": their_term("LogitStdKDLoss", alpha=0.1, beta=9.0, temperature=2.0)},
    ),
    "dist": Loss(
        "dist",
        {"cross_entropy": 1.0, "inter": 2.0, "intra": 2.0, "temperature": 4.0},
        {"labels": LABELS, "dist": their_term("DISTLoss", beta=2.0, gamma=2.0, tau=4.0)},
    ),
}


class Theirs:
    """A student in their box, trained with `recipe`."""

    def __init__(self, loss: Loss, teacher: nn.Module, student: nn.Module, data: Data, recipe: Recipe) -> None:
        self.data, self.recipe = data, recipe
        teacher, self.student = (copy.deepcopy(m).to(memory_format=torch.channels_last) for m in (teacher.eval(), student))
        asked = {"forward_proc": "forward_batch_only", "forward_hook": {"output": [HEAD]}}
        sgd = {"lr": recipe.lr, "momentum": recipe.momentum, "nesterov": True, "weight_decay": recipe.weight_decay}
        steps = recipe.epochs * len(self.batches(0))
        configuration = {
            "num_epochs": recipe.epochs,
            "teacher": {**asked, "requires_grad": False},
            "student": asked,
            "optimizer": {"key": "SGD", "kwargs": sgd},
            "scheduler": {"key": "CosineAnnealingLR", "kwargs": {"T_max": steps}, "scheduling_step": 1},
            "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": loss.terms}},
        }
        self.box = DistillationBox(teacher, self.student, {}, configuration, CPU, None, False, 1)

    def batches(self, epoch: int) -> Any:
        return self.data.batches("train", batch_size=self.recipe.batch_size, device=CPU, epoch=epoch, seed=self.recipe.seed)

    def epoch(self, epoch: int) -> float:
        """Train for one epoch. Returns the average loss of an image."""
        total = 0.0
        self.box.pre_epoch_process(epoch=epoch)
        for batch in self.batches(epoch):
            loss = self.box.forward_process(batch.inputs.to(memory_format=torch.channels_last), batch.targets)
            self.box.post_forward_process(loss=loss)
            total += loss.item() * len(batch.inputs)
            if not torch.isfinite(loss):
                raise ValueError(f"their loss is {loss}")
        self.box.post_epoch_process()
        return total / self.data.counts["train"]


@dataclass
class Clock:
    """Wall time and CPU time of each epoch of each side."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {side: [] for side in SIDES})
    cpu_seconds: dict[str, list[float]] = field(default_factory=lambda: {side: [] for side in SIDES})

    def __post_init__(self) -> None:
        self.began = time.perf_counter(), time.process_time()

    def lap(self, side: str) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        self.seconds[side].append(wall - self.began[0])
        self.cpu_seconds[side].append(cpu - self.began[1])
        self.began = wall, cpu


class Turns(Journal):
    """Watches our training, and runs an epoch of theirs after each epoch of ours."""

    def __init__(self, theirs: Theirs) -> None:
        super().__init__()
        self.theirs, self.clock = theirs, Clock()
        self.losses: dict[str, list[float]] = {side: [] for side in SIDES}

    def epoch_ended(self, epoch: Epoch, epochs: int) -> None:
        self.clock.lap("ours")
        self.losses["ours"].append(sum(epoch.losses.values()))
        self.losses["theirs"].append(self.theirs.epoch(epoch.epoch - 1))
        self.clock.lap("theirs")


def few(data: Data, images: int) -> Data:
    """`data` with `images` training images, in a fixed random order, and no held-out images."""
    positions = data.positions["train"]
    chosen = positions[torch.randperm(len(positions), generator=torch.Generator().manual_seed(0))[:images]]
    return replace(data, positions={**data.positions, "train": chosen, "held_out": data.positions["held_out"][:0]})


def new(seed: int) -> nn.Module:
    """A student with random weights."""
    seed_all(seed)
    return fresh(resnet20())


def taught(loss: Loss, teacher: nn.Module, data: Data, epochs: int, seed: int) -> tuple[Turns, dict[str, nn.Module]]:
    """Train both sides. Returns the records and the two students."""
    recipe = Recipe(epochs=epochs, batch_size=BATCH, lr=0.05, weight_decay=5e-4, amp="none", channels_last=True, seed=seed)
    student = new(seed)
    job = Job(student, data.shape, None, parse_rate(0.5), Classify(), images=data, teacher=teacher)
    method = catalogue.create(catalogue.find(loss.method, "distill"), job, loss.settings)
    method.prepare()
    training, theirs = Training(method, data, recipe, CPU), Theirs(loss, teacher, student, data, recipe)
    turns = Turns(theirs)
    training.run(turns)
    return turns, {"ours": method.finish(), "theirs": theirs.student}


def one_step(loss: Loss, teacher: nn.Module, data: Data, seed: int) -> dict[str, float]:
    """The size of one step from equal weights, and the differences between both sides after it."""
    turns, students = taught(loss, teacher, few(data, BATCH), 1, seed)
    (ours,), (theirs,) = (turns.losses[side] for side in SIDES)
    return {
        "loss": theirs,
        "loss_difference": abs(ours - theirs),
        "weights_moved": farthest(students["theirs"], new(seed)),
        "weights_difference": farthest(students["ours"], students["theirs"]),
    }


def farthest(one: nn.Module, other: nn.Module) -> float:
    """The largest difference between two networks' parameters."""
    with torch.no_grad():
        return max(float((a - b).abs().max()) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test(model: nn.Module, data: Data) -> float:
    return Classify().measure(torch_predict(model.eval(), CPU), data.batches("test", batch_size=250, device=CPU)).headline()


def row(name: str, teacher: nn.Module, data: Data, asked: argparse.Namespace, seed: int) -> dict[str, Any]:
    loss = LOSSES[name]
    step = one_step(loss, teacher, data, seed)
    turns, students = taught(loss, teacher, few(data, asked.images), asked.epochs, seed)
    return {
        "loss": name,
        "seed": seed,
        "one_step": step,
        "losses": turns.losses,
        "seconds": turns.clock.seconds,
        "cpu_seconds": turns.clock.cpu_seconds,
        "top1": {side: test(students[side], data) for side in SIDES},
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """For each loss, over all rounds: medians of the times and their ratios, means of the accuracies."""
    found = {}
    for name in dict.fromkeys(row["loss"] for row in rows):
        some = [row for row in rows if row["loss"] == name]
        line: dict[str, Any] = {"epochs_timed": sum(len(row["seconds"]["ours"]) for row in some)}
        for unit in ("seconds", "cpu_seconds"):
            line[unit] = {side: statistics.median(s for row in some for s in row[unit][side]) for side in SIDES}
            line[f"{unit}_ratio"] = line[unit]["ours"] / line[unit]["theirs"]
        line["top1"] = {side: statistics.mean(row["top1"][side] for row in some) for side in SIDES}
        line["loss_difference"] = max(row["one_step"]["loss_difference"] for row in some)
        found[name] = line
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("--data", required=True, help="imagefolder:DIR")
    parser.add_argument("--images", type=int, default=2000, help="training images of one epoch")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--note", default="", help="what else ran on the machine, for the record")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    data = open_data(asked.data)
    teacher = load_model(str(asked.teacher), arch=f"{ARCH}:resnet56").model
    kind, _, folder = asked.data.partition(":")
    options = {
        "--data": f"{kind}:{Path(folder).name}",
        "--images": asked.images,
        "--epochs": asked.epochs,
        "--rounds": asked.rounds,
    }
    words = [asked.teacher.name, *(str(word) for pair in options.items() for word in pair)]
    figures: dict[str, Any] = {
        "what": "seconds of one epoch, ours / theirs; top-1 of the last epoch on all test images; average losses of each epoch",
        "command": shlex.join(["python", "examples/benchmarks/distillation_peers.py", *words]),
        "note": asked.note,
        "machine": {"cpu": platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in ("torch", "torchdistill")}},
        "losses": {name: {"method": loss.method, "settings": dict(loss.settings)} for name, loss in LOSSES.items()},
        "test_images": data.counts["test"],
        "rows": [],
    }
    for seed in range(asked.rounds):
        for name in LOSSES:
            figures["rows"].append(row(name, teacher, data, asked, seed))
            figures["summary"] = summary(figures["rows"])
            print(json.dumps(figures["rows"][-1]), flush=True)
            write_text(asked.out, json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures["summary"], indent=1))


if __name__ == "__main__":
    main()
