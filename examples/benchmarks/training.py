"""Throughput of the training loop: images per second, compared with plain PyTorch loops over the same network and images.

    python examples/benchmarks/training.py --data imagefolder:cifar10 [--device cpu] [--out examples/benchmarks/training.json]

Three loops train a ResNet-20 for one epoch on the same images, interleaved, in several rounds in one process:

    ours        `Training`, the loop of `compress`: progress, loss terms, schedule, seeds and state kept as in `compress prune`
    plain       a minimal loop of ten lines, over the same batches
    dataloader  the same loop over torchvision's ImageFolder, transforms v2 and a DataLoader, as in most scripts

Results are medians over the rounds; the first round of each is a warm-up and does not count.
"""

import argparse
import json
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision.transforms import v2

import compressor
from compressor.channels import analyse
from compressor.data import Data, open_data
from compressor.runs.journal import Journal
from compressor.tasks.classify import Classify
from compressor.training.goal import parse_rate
from compressor.training.method import Job, Method
from compressor.training.recipe import Recipe
from compressor.training.train import Training, seed_all

sys.path.insert(0, str(Path(__file__).parents[1] / "cifar"))
from resnet import resnet20  # in examples/cifar

BATCH, RATE = 128, 0.02


def ours(data: Data, device: torch.device) -> Callable[[], int]:
    model = resnet20()
    method = Method(Job(model, data.shape, analyse(model, data.shape), parse_rate(0.5), Classify())).to(device)

    def epoch() -> int:
        recipe = Recipe(epochs=1, batch_size=BATCH, lr=RATE, amp="none", channels_last=False)
        nothing = replace(data, positions={**data.positions, "held_out": data.positions["held_out"][:0]})
        Training(method, nothing, recipe, device, None).run(Journal())
        return data.counts["train"]

    return epoch


def plain(data: Data, device: torch.device) -> Callable[[], int]:
    model = resnet20().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, nesterov=True, weight_decay=1e-4)

    def epoch() -> int:
        model.train()
        seen = 0
        for images, targets, *_ in data.batches("train", batch_size=BATCH, device=device):
            optimizer.zero_grad()
            F.cross_entropy(model(images), targets).backward()
            optimizer.step()
            seen += len(images)
        return seen

    return epoch


def dataloader(data: Data, device: torch.device, folder: Path) -> Callable[[], int]:
    transform = v2.Compose(
        [
            v2.RandomCrop(32, padding=4),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(data.mean, data.std),
        ]
    )
    images = Subset(torchvision.datasets.ImageFolder(folder / "train", transform), data.positions["train"].tolist())
    loader = DataLoader(images, BATCH, shuffle=True, num_workers=2, pin_memory=device.type == "cuda")
    model: nn.Module = resnet20().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, nesterov=True, weight_decay=1e-4)

    def epoch() -> int:
        model.train()
        seen = 0
        for batch, targets in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(batch.to(device)), targets.to(device)).backward()
            optimizer.step()
            seen += len(batch)
        return seen

    return epoch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="imagefolder:DIR")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, default=6400, help="training images of one epoch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    seed_all(0)
    data = open_data(options.data)
    data = replace(data, positions={**data.positions, "train": data.positions["train"][: options.images]})
    folder = Path(options.data.rpartition(":")[2])
    loops = {"ours": ours(data, device), "plain": plain(data, device), "dataloader": dataloader(data, device, folder)}
    rates: dict[str, list[float]] = {name: [] for name in loops}
    for number in range(options.rounds + 1):
        for name, epoch in loops.items():
            began = time.perf_counter()
            seen = epoch()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if number:
                rates[name].append(seen / (time.perf_counter() - began))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    for name, median in medians.items():
        print(f"{name:12s} {median:9.1f} images/s   ours / {name}: {medians['ours'] / median:.3f}")
    result = {
        "command": shlex.join(["python", "examples/benchmarks/training.py", *sys.argv[1:]]),
        "images_per_second": rates,
        "median": medians,
        "ours_over_plain": medians["ours"] / medians["plain"],
        "ours_over_dataloader": medians["ours"] / medians["dataloader"],
        "seed": 0,
        "batch_size": BATCH,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "threads": torch.get_num_threads(),
        "versions": {"compressor": compressor.__version__, "torch": torch.__version__, "python": platform.python_version()},
    }
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
