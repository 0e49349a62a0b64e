"""Images a second: training with `compress` against a plain loop over the same batches, and the loader alone.

Both loops train with SGD, momentum, bf16 autocast and channels-last on a GPU, from images that are kept on it, in
interleaved rounds; `compress` adds its loss terms, checks, schedule and seeds. Values are medians over the rounds; the first
one is a warm-up.
"""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from rows import Value
from setting import ROOT, Setting, measurement, parse
from torch import nn
from torchvision.models import get_model

from compressor.channels import analyse
from compressor.data import Data, open_data
from compressor.runs.journal import Journal
from compressor.tasks.classify import Classify
from compressor.training.goal import parse_rate
from compressor.training.method import Job, Method
from compressor.training.recipe import Recipe
from compressor.training.train import Training, seed_all

sys.path.insert(0, str(ROOT / "examples/cifar"))
from resnet import resnet20  # it lies in that folder

NETWORKS = {"resnet20": 32, "resnet50": 224, "swin_t": 224}
BATCHES = {32: 128, 224: 64}
IMAGES = {32: 12_800, 224: 1_280}  # of one round
ROUNDS = 3
LOADERS = ("32 pixels from memory", "32 pixels from files", "224 pixels from memory", "224 pixels from files")
NAMES = (*(f"train {name}" for name in NETWORKS), *(f"load {name}" for name in LOADERS))
WORKERS = 8


def network(name: str) -> nn.Module:
    seed_all(0)
    return resnet20() if name == "resnet20" else get_model(name, num_classes=10)


def images_of(setting: Setting, side: int, memory_limit: int = 2 * 2**30) -> Data:
    """JPEGs of noise: `IMAGES[side]` for training, from memory or, with `memory_limit=0`, from their files."""
    count = 20 if setting.tiny else IMAGES[side] // 10
    folder = setting.work / f"noise{side}"
    if not folder.exists():
        generator = np.random.default_rng(0)
        for number in range(10):
            place = folder / f"class{number}"
            place.mkdir(parents=True)
            for index in range(count):
                coarse = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(place / f"{index}.jpg")
    workers = 2 if setting.tiny else WORKERS
    return open_data(f"imagefolder:{folder}", held_out=0.01, memory_limit=memory_limit, workers=workers)


def ours(model: nn.Module, data: Data, setting: Setting, batch: int) -> Callable[[], int]:
    device = torch.device(setting.device)
    method = Method(Job(model, data.shape, analyse(model, data.shape), parse_rate(0.5), Classify())).to(device)
    nothing = replace(data, positions={**data.positions, "held_out": data.positions["held_out"][:0]})

    def epoch() -> int:
        Training(method, nothing, Recipe(epochs=1, batch_size=batch, lr=0.02), device, None).run(Journal())
        return data.counts["train"]

    return epoch


def plain(model: nn.Module, data: Data, setting: Setting, batch: int) -> Callable[[], int]:
    device = torch.device(setting.device)
    layout = torch.channels_last if setting.on_gpu else torch.contiguous_format
    model = model.to(device, memory_format=layout)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, nesterov=True, weight_decay=1e-4)

    def epoch() -> int:
        model.train()
        for images, targets, *_ in data.batches("train", batch_size=batch, device=device):
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, enabled=setting.on_gpu):
                loss = F.cross_entropy(model(images.to(memory_format=layout)), targets)
            loss.backward()
            optimizer.step()
        return data.counts["train"]

    return epoch


def train(setting: Setting, name: str) -> dict[str, Value]:
    side = NETWORKS[name]
    data, batch = images_of(setting, side), 8 if setting.tiny else BATCHES[side]
    if setting.tiny:
        data = replace(data, positions={**data.positions, "train": data.positions["train"][:batch]})
    loops = {"compress": ours(network(name), data, setting, batch), "plain": plain(network(name), data, setting, batch)}
    rates: dict[str, list[float]] = {loop: [] for loop in loops}
    peaks: dict[str, float | None] = {}
    for number in range(2 if setting.tiny else ROUNDS + 1):
        for loop, epoch in loops.items():
            setting.synchronize()
            setting.peak_mib()
            began = time.perf_counter()
            images = epoch()
            setting.synchronize()
            peaks[loop] = setting.peak_mib()
            if number:
                rates[loop].append(images / (time.perf_counter() - began))
    medians = {loop: statistics.median(values) for loop, values in rates.items()}
    values: dict[str, Value] = {f"{loop}_images_per_s": round(median, 1) for loop, median in medians.items()}
    values |= {f"{loop}_peak_mib": peak for loop, peak in peaks.items()}
    return values | {"compress_over_plain": medians["compress"] / medians["plain"], "batch_size": batch}


def load(setting: Setting, name: str) -> dict[str, Value]:
    side, device = int(name.split()[0]), torch.device(setting.device)
    data = images_of(setting, side, memory_limit=0 if name.endswith("files") else 2 * 2**30)
    rates = []
    for epoch in range(2 if setting.tiny else ROUNDS + 1):
        began, seen = time.perf_counter(), 0
        for images, *_ in data.batches("train", batch_size=BATCHES[side], device=device, epoch=epoch, seed=0, augment=True):
            seen += len(images)
        setting.synchronize()
        rates.append(seen / (time.perf_counter() - began))
    return {"images_per_s": round(statistics.median(rates[1:]), 1), "first_epoch_images_per_s": round(rates[0], 1)}


def main() -> None:
    setting, names = parse(__doc__ or "", NAMES)
    for name in names:
        kind, _, rest = name.partition(" ")
        with measurement(name) as values:
            values |= train(setting, rest) if kind == "train" else load(setting, rest)


if __name__ == "__main__":
    main()
