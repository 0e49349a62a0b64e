"""Accuracy recovered after pruning, before any training.

    python examples/benchmarks/recovery.py MODEL... --data imagefolder:cifar10 [--seeds 0,1,2] [--images 512] [--out FILE]

MODEL is a checkpoint of `examples/cifar/resnet.py`, named after its network (resnet56.pt, resnet20-jpeg.pt). Each is pruned in
three ways:

    halved   the inner convolution of every block loses the half of its filters with the smallest L2 norm
    coupled  `compress prune --rate 0.5` with defaults: half of the MACs
    scatter  the same with `--residual scatter`

and each pruned network is recovered in these ways:

    absorbed               `absorb`, from batch norms alone
    recalibrated           batch-norm statistics re-estimated on training images
    absorbed+recalibrated  one after the other, with the first seed
    refitted               `refit`: least squares on the same images, unlabelled
    refitted+recalibrated  one after the other

The accuracy is top-1 in percent on all test images. The seeds determine the training images; nothing else is random. Seconds
are those of the recovery alone, on a machine that may have been busy.
"""

import argparse
import copy
import json
import os
import platform
import shlex
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import torch
from absorb import absorb
from torch import nn

import compressor
from compressor.channels import Verified, analyse, remove
from compressor.checkpoint import load_model
from compressor.data import Batch, Data, open_data
from compressor.methods.prune.filters import norms
from compressor.methods.prune.papers.magnitude import Magnitude
from compressor.methods.widths import choose, hold, uniform
from compressor.network.cost import count_macs
from compressor.network.outputs import torch_predict
from compressor.recovery.recalibrate import recalibrate
from compressor.recovery.repair import refit
from compressor.tasks.classify import Classify
from compressor.training.goal import parse_rate, parse_target
from compressor.training.method import Job

NETWORKS = Path(__file__).resolve().parents[1] / "cifar" / "resnet.py"
SHAPE = (3, 32, 32)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Found = dict[str, dict[str, list[float]]]  # repair -> top1 and seconds -> one entry per seed


def halved(model: nn.Module) -> Verified:
    channels = hold(analyse(model, SHAPE), ["conv1", "*.conv2"])
    ranked = uniform(channels, norms(model, channels))
    half = parse_target("filters=50%")
    return remove(model, channels, lambda held: choose(held, ranked, half), SHAPE)


def magnitude(model: nn.Module, residual: str) -> Verified:
    channels = analyse(model, SHAPE, residual)
    method = Magnitude(Job(model, SHAPE, channels, parse_rate(0.5), Classify()), largest=True)
    method.remove()
    return method.removed


CUTS: dict[str, Callable[[nn.Module], Verified]] = {
    "halved": halved,
    "coupled": lambda model: magnitude(model, "coupled"),
    "scatter": lambda model: magnitude(model, "scatter"),
}


def repairs(model: nn.Module, cut: Verified, batches: list[Batch]) -> dict[str, Callable[[nn.Module], object]]:
    """The ways to recover the pruned network. The one named a+b continues from a."""

    def recalibrating(small: nn.Module) -> object:
        return recalibrate(small, batches)

    return {
        "absorbed": lambda small: absorb(model, small, cut.cut, SHAPE),
        "absorbed+recalibrated": recalibrating,
        "recalibrated": recalibrating,
        "refitted": lambda small: refit(model, small, cut.cut, batches, SHAPE),
        "refitted+recalibrated": recalibrating,
    }


def top1(model: nn.Module, test: list[Batch]) -> float:
    """In percent."""
    return round(100 * Classify().measure(torch_predict(model, DEVICE), test).headline(), 2)


def recover(model: nn.Module, cut: Verified, data: Data, test: list[Batch], seeds: list[int], images: int) -> Found:
    """Top-1 after each repair and its seconds, one entry per seed."""
    found: Found = {}
    for seed in seeds:
        chosen = data.batches("train", batch_size=128, device=DEVICE, seed=seed, augment=False, limit=images)
        made = {"": cut.model}
        spent = {"": 0.0}
        for name, repair in repairs(model, cut, list(chosen)).items():
            if name.startswith("absorbed") and seed != seeds[0]:  # it uses no images, so seeds do not matter
                continue
            before = name.rpartition("+")[0]
            small = made[name] = copy.deepcopy(made[before])
            began = time.perf_counter()
            repair(small)
            spent[name] = spent[before] + time.perf_counter() - began
            result = found.setdefault(name, {"top1": [], "seconds": []})
            result["top1"].append(top1(small, test))
            result["seconds"].append(round(spent[name], 1))
            print(f"    seed {seed}  {name:22}{result['top1'][-1]:6.2f}  {spent[name]:5.1f} s", flush=True)
    return found


def rows(file: Path, data: Data, seeds: list[int], images: int) -> Iterator[dict[str, object]]:
    """One row per way of pruning one network."""
    test = list(data.batches("test", batch_size=100, device=DEVICE))
    network = file.stem.partition("-")[0]
    model = load_model(str(file), arch=f"{NETWORKS}:{network}").model.eval().to(DEVICE)
    dense = top1(model, test)
    print(f"{file.stem}: dense {dense}", flush=True)
    for name, make in CUTS.items():
        cut = make(model)
        macs = round(count_macs(cut.model, SHAPE) / count_macs(model, SHAPE), 4)
        as_cut = top1(cut.model, test)
        print(f"  {name}: {macs:.1%} of the MACs, as cut {as_cut}", flush=True)
        found = recover(model, cut, data, test, seeds, images)
        yield {"model": file.stem, "cut": name, "macs_left": macs, "dense": dense, "as_cut": as_cut, "repaired": found}


def machine() -> dict[str, object]:
    listed = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in listed.read_text().splitlines() if line.startswith("model name")]
    return {"cpu": names[0] if names else platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    parser.add_argument("--data", required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    data = open_data(options.data, size=None, channels=3, mean=None, std=None, seed=0, workers=0)
    results = []
    for row in chain.from_iterable(rows(model, data, seeds, options.images) for model in options.models):
        results.append(row)
        if options.out:
            options.out.write_text(
                json.dumps({**about(options, seeds, data), "results": results}, indent=2) + "\n", encoding="utf-8"
            )


def about(options: argparse.Namespace, seeds: list[int], data: Data) -> dict[str, object]:
    return {
        "what": "top-1 in percent on all test images, and seconds of the repair; one entry a seed",
        "command": shlex.join(["python", "examples/benchmarks/recovery.py", *command(options)]),
        "seeds": seeds,
        "unlabelled_images": options.images,
        "test_images": data.counts["test"],
        "device": str(DEVICE),
        "machine": machine(),
        "versions": {"python": platform.python_version(), "compressor": compressor.__version__, "torch": torch.__version__},
    }


def command(options: argparse.Namespace) -> list[str]:
    """The arguments, without directories of this machine."""
    kind, _, folder = options.data.partition(":")
    choice = ["--seeds", options.seeds, "--images", str(options.images)]
    return [*(model.name for model in options.models), "--data", f"{kind}:{Path(folder).name}", *choice]


if __name__ == "__main__":
    main()
