"""Fills the working folder: a trained digits classifier, a ResNet-20, and images. Prints what machine this is."""

import argparse
import os
import platform
import sys
import tarfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rows import Value
from setting import ROOT, Setting, measurement

from compressor.channels import analyse
from compressor.data import open_data
from compressor.demo import DigitsNet
from compressor.runs.journal import Journal
from compressor.tasks.classify import Classify
from compressor.training.goal import parse_rate
from compressor.training.method import Job, Method
from compressor.training.recipe import Recipe
from compressor.training.train import Training, seed_all

sys.path.insert(0, str(ROOT / "examples/cifar"))
from resnet import resnet20  # these lie in that folder
from vgg import VGG

NAMES = ("machine", "prepared")
PACKAGES = "torch torchvision onnx onnxruntime-gpu onnxruntime accelerate tensorly triton typer rich".split()
CHECKPOINTS = {"resnet20": "resnet20-12fca82f.th", "resnet56": "resnet56-4bfd9763.th"}
CLASSES = 10


def machine(values: dict[str, Value], setting: Setting) -> None:
    values |= {"cores": os.cpu_count(), "python": platform.python_version(), "processor": platform.machine()}
    for package in PACKAGES:
        try:
            values[package] = version(package)
        except PackageNotFoundError:
            values[package] = None
    if setting.on_gpu:
        facts = torch.cuda.get_device_properties(0)
        values |= {"gpu": facts.name, "gpu_memory_mib": facts.total_memory // 2**20, "cuda": torch.version.cuda}
        values |= {"cudnn": torch.backends.cudnn.version(), "nccl": ".".join(map(str, torch.cuda.nccl.version()))}
    import onnxruntime

    values["onnxruntime_providers"] = " ".join(onnxruntime.get_available_providers())


def train_digits(setting: Setting) -> float:
    """Train a DigitsNet for two epochs. Returns its top-1 on the held-out images."""
    seed_all(0)
    data, model, device = open_data("digits"), DigitsNet(8 if setting.tiny else 32), torch.device(setting.device)
    method = Method(Job(model, data.shape, analyse(model, data.shape), parse_rate(0.5), Classify())).to(device)
    recipe = Recipe(epochs=2, lr=0.05, weight_decay=5e-4, teacher="none")
    history = Training(method, data, recipe, device).run(Journal())
    torch.save(model.cpu().state_dict(), setting.digits)
    reached = history[-1].held_out
    return reached.value if reached else 0.0


def draw_images(folder: Path, per_class: int) -> None:
    """Noise whose mean is that of its class: something to learn."""
    generator = np.random.default_rng(0)
    for split, count in {"train": per_class, "test": max(per_class // 4, 4)}.items():
        for number in range(CLASSES):
            place = folder / split / f"class{number}"
            place.mkdir(parents=True)
            for index in range(count):
                pixels = generator.normal(50 + 15 * number, 40, (32, 32, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"{index}.jpg")


def take_some(cifar10: Path, folder: Path, per_class: int) -> None:
    for split, count in {"train": per_class, "test": per_class // 4}.items():
        for place in sorted((cifar10 / split).iterdir()):
            (folder / split / place.name).mkdir(parents=True)
            for image in sorted(place.iterdir())[:count]:
                os.link(image, folder / split / place.name / image.name)


def prepare(values: dict[str, Value], setting: Setting, assets: Path | None) -> None:
    values["digits_held_out_top1"] = train_digits(setting)
    archive = assets / "cifar10.tar.gz" if assets else None
    if archive and archive.exists():
        with tarfile.open(archive) as tar:
            tar.extractall(setting.work / "cifar10", filter="data")
        take_some(setting.work / "cifar10", setting.small, 100)
    else:
        draw_images(setting.small, 8 if setting.tiny else 100)
    seed_all(0)
    torch.save(VGG(**setting.vgg_arguments).state_dict(), setting.vgg)
    for name, file in CHECKPOINTS.items():
        if assets and (assets / file).exists():
            (setting.work / f"{name}.pt").write_bytes((assets / file).read_bytes())
            values[name] = file
    if not setting.resnet20.exists():
        seed_all(0)
        torch.save(resnet20().state_dict(), setting.resnet20)
        values["resnet20"] = "random weights"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument(
        "--assets", type=Path, help="cifar10.tar.gz (with train/ and test/ at its top), resnet20-*.th, resnet56-*.th"
    )
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    setting = Setting(options.work.resolve(), options.device, options.tiny)
    with measurement("machine") as values:
        machine(values, setting)
    with measurement("prepared") as values:
        prepare(values, setting, options.assets)


if __name__ == "__main__":
    main()
