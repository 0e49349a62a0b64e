"""Recovery of a pruned network: ResNet-56 without 70 % of its MACs, trained for equal time with labels, KD, DKD and HSAKD.

    python examples/benchmarks/distillation_recovery.py resnet56-jpeg.pt --data imagefolder:cifar10
        [--methods none kd dkd hsakd] [--minutes 5] [--seeds 0] [--out FILE]

The checkpoint is of `examples/cifar/resnet.py`. It is pruned by `magnitude`, as by `compress prune --rate 0.7`, and
re-estimated by least squares on 512 training images; the original network is the teacher. Each method then trains for four
epochs on as many training images as the given time allows, according to its throughput on 20 batches. Time is CPU time on one
thread, so that other work on the machine does not count. HSAKD's training of the teacher's heads comes first and is reported
as `earlier`, in seconds. Batch 64, SGD with Nesterov momentum, weight decay 1e-4, a cosine schedule from 0.01, bf16. `top1` is
of the last epoch, on all test images.
"""

import argparse
import copy
import json
import platform
import re
import shlex
import sys
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compressor.channels import analyse
from compressor.checkpoint import load_model
from compressor.data import Data, open_data
from compressor.files import write_text
from compressor.methods import catalogue
from compressor.methods.prune.filters import FilterPruning
from compressor.network.cost import count_macs
from compressor.network.outputs import torch_predict
from compressor.recovery.recalibrate import recalibrate
from compressor.recovery.repair import refit
from compressor.runs.journal import Journal
from compressor.runs.recover_accuracy import RECALIBRATION_IMAGES, REPAIR_IMAGES
from compressor.tasks.classify import Classify
from compressor.training.goal import parse_rate
from compressor.training.method import Job, Method
from compressor.training.recipe import Recipe
from compressor.training.train import Loss, Training, seed_all

CPU = torch.device("cpu")
ARCH = Path(__file__).parents[1] / "cifar/resnet.py"
EPOCHS, PILOT, BATCH = 4, 20, 64
AS_THEY_ARE: dict[str, Any] = {"batch_size": 128, "device": CPU, "augment": False}


def cut(model: nn.Module, data: Data) -> nn.Module:
    """The network without 70 % of its MACs, re-estimated by least squares."""
    seed_all(0)
    goal = parse_rate(0.7)
    job = Job(model, data.shape, analyse(model, data.shape), goal, Classify(), macs=count_macs(model, data.shape), images=data)
    method = catalogue.create(catalogue.find("magnitude", "prune"), job, {})
    assert isinstance(method, FilterPruning)
    method.prepare()
    assert method.removed is not None
    small = method.finish()
    refit(model, small, method.removed.cut, data.batches("train", limit=REPAIR_IMAGES, **AS_THEY_ARE), data.shape)
    recalibrate(small, data.batches("train", limit=RECALIBRATION_IMAGES, **AS_THEY_ARE))
    return small.eval()


def test(model: nn.Module, data: Data) -> float:
    return Classify().measure(torch_predict(model, CPU), data.batches("test", batch_size=250, device=CPU)).headline()


def some(data: Data, images: int, seed: int) -> Data:
    """`data` with `images` training images and no held-out images, because nothing is selected."""
    positions = data.positions["train"]
    chosen = positions[torch.randperm(len(positions), generator=torch.Generator().manual_seed(seed))[:images]]
    return replace(data, positions={**data.positions, "train": chosen, "held_out": positions[:0]})


def made(name: str, small: nn.Module, teacher: nn.Module, data: Data) -> Method:
    """The method, or for `none` one that only trains."""
    job = Job(copy.deepcopy(small).requires_grad_(True), data.shape, None, parse_rate(0.7), Classify(), images=data)
    if name == "none":
        return Method(job)
    return catalogue.create(catalogue.find(name, "distill"), replace(job, teacher=teacher, trained=True), {})


def recipe(seed: int) -> Recipe:
    return Recipe(epochs=EPOCHS, batch_size=BATCH, lr=0.01, weight_decay=1e-4, amp="bf16", channels_last=True, seed=seed)


def pace(method: Method, data: Data) -> float:
    """Images per second of CPU time, without the first batches."""
    method.first()
    method.prepare()
    training, loss = Training(method, data, recipe(0), CPU), Loss(method)
    method.train()
    began = time.process_time()
    for number, batch in enumerate(islice(data.batches("train", batch_size=BATCH, device=CPU), PILOT + 3)):
        if number == 3:
            began = time.process_time()
        (laid_out,) = training._laid_out([batch])
        training._backward(loss, laid_out, 1.0)
    return PILOT * BATCH / (time.process_time() - began)


def row(name: str, seed: int, small: nn.Module, teacher: nn.Module, data: Data, seconds: float) -> dict[str, Any]:
    speed = pace(made(name, small, teacher, data), data)
    share = some(data, min(len(data.positions["train"]), int(speed * seconds / EPOCHS)), seed)
    seed_all(seed)
    method = made(name, small, teacher, share)
    began = time.process_time()
    if (first := method.first()) is not None:
        before = replace(recipe(seed), epochs=max(1, round(EPOCHS * method.earlier)))
        Training(first, share, before, CPU).run(Journal(None))
    between = time.process_time()
    method.prepare()
    Training(method, share, recipe(seed), CPU).run(Journal(None))
    return {
        "method": name,
        "seed": seed,
        "top1": test(method.finish().float().eval(), data),
        "n": data.counts["test"],
        "images": share.counts["train"],
        "epochs": EPOCHS,
        "seconds": time.process_time() - between,
        "earlier": between - began,
        "budget_s": seconds,
        "macs_left": count_macs(small, data.shape) / count_macs(teacher, data.shape),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--methods", nargs="+", default=["none", "kd", "dkd", "hsakd"])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = open_data(arguments.data)
    teacher = load_model(arguments.model, arch=f"{ARCH}:resnet56").model
    small = cut(teacher, data)
    told = [re.sub(r"[^:\s]*/", "", argument) for argument in sys.argv[1:]]  # without directories
    found: dict[str, Any] = {
        "command": shlex.join(["python", "examples/benchmarks/distillation_recovery.py", *told]),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "teacher_top1": test(teacher, data),
        "cut_top1": test(small, data),
        "rows": [],
    }
    for seed in arguments.seeds:
        for name in arguments.methods:
            found["rows"].append(row(name, seed, small, teacher, data, 60 * arguments.minutes))
            print(found["rows"][-1], flush=True)
            write_text(arguments.out, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
