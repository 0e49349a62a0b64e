"""Compare accuracy at equal MACs: our default and Torch-Pruning 1.6.1, with and without fine-tuning.

    pip install torch-pruning==1.6.1
    python examples/benchmarks/peers.py DIR resnet20-jpeg.pt resnet18.pt [--out examples/benchmarks/peers.json]

DIR is CIFAR-10 as folders, `train/` and `test/`. The first checkpoint is a CIFAR ResNet-20; the second is torchvision's
ResNet-18 for images of 32 pixels, which is first trained here if the file does not exist. For each network, rate and seed:

    ours             `magnitude`, coupled, widths rounded as by default; then re-estimated by least squares as in a run
    TP magnitude     group L2 norm, TP Taylor  group Taylor on the same images; each ranked inside layers and over all layers,
                     and of the two the one that is better on held-out images

Theirs is brought to our MACs by bisection of its ratio. In ResNet-20 it prunes only the first convolution of each block,
because it does not support the padding in the shortcuts. All sides re-estimate batch-norm statistics, score and refit on the
same few training images, and are fine-tuned by the same loop on the same images in the same order. A seed determines these
images. All results are top-1 on test images, after the last epoch. Rows that the file already contains are skipped.
"""

import argparse
import copy
import dataclasses
import json
import os
import platform
import shlex
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import get_model

from compressor.channels import analyse
from compressor.checkpoint import load_model
from compressor.data import Batch, Data, open_data
from compressor.files import write_text
from compressor.methods import catalogue
from compressor.methods.prune.filters import FilterPruning
from compressor.network.cost import count_macs
from compressor.network.outputs import torch_predict
from compressor.recovery.recalibrate import recalibrate
from compressor.recovery.repair import refit
from compressor.runs.journal import Journal
from compressor.tasks.classify import Classify
from compressor.training.goal import parse_rate
from compressor.training.method import Job, Method
from compressor.training.recipe import Recipe
from compressor.training.train import Training, seed_all

CPU = torch.device("cpu")
RESNET20 = Path(__file__).parents[1] / "cifar/resnet.py"
GOAL_STEPS = 8  # of bisection


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("resnet20", type=Path)
    parser.add_argument("resnet18", type=Path)
    parser.add_argument("--sides", default="ours,TP magnitude,TP taylor")
    parser.add_argument("--networks", default="resnet20,resnet18")
    parser.add_argument("--rates", default="0.5,0.7")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--few", type=int, default=512, help="images for scores, least squares and batch-norm statistics")
    parser.add_argument("--images", type=int, default=20000, help="training images for fine-tuning")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--test", type=int, default=10000, help="test images")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    asked = parser.parse_args()
    warnings.filterwarnings("ignore", module="torch_pruning")
    data = open_data(f"imagefolder:{asked.data}", size=32)
    for part, count in (("test", asked.test), ("held_out", asked.test // 2)):  # equally many of each class
        positions = data.positions[part]
        data.positions[part] = positions[torch.arange(count) * len(positions) // count]
    if "resnet18" in asked.networks and not asked.resnet18.exists():
        train_resnet18(data, asked.resnet18)
    for seed in map(int, asked.seeds.split(",")):
        for rate in map(float, asked.rates.split(",")):
            for network in asked.networks.split(","):
                place = {"network": network, "rate": rate, "seed": seed, "images": asked.images, "epochs": asked.epochs}
                done = {row["side"] for row in read(asked.out) if place.items() <= row.items()}
                compare(place, asked, data, [side for side in asked.sides.split(",") if side not in done])


def read(out: Path) -> list[dict[str, object]]:
    return json.loads(out.read_text())["rows"] if out.exists() else []


def keep(out: Path, row: dict[str, object]) -> None:
    names = ("torch", "torchvision", "torch-pruning")
    figures = {
        "command": shlex.join(["python", "examples/benchmarks/peers.py", *sys.argv[1:]]),
        "machine": {"cpu": platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "versions": {name: version(name) for name in names},
        "rows": [*read(out), row],
    }
    write_text(out, json.dumps(figures, indent=1))
    print(json.dumps(row), flush=True)


def train_resnet18(data: Data, path: Path) -> None:
    """Ten epochs from scratch."""
    seed_all(0)
    model = get_model("resnet18", num_classes=10)
    recipe = Recipe(epochs=10, lr=0.1, weight_decay=5e-4, warmup=1, amp="bf16", channels_last=True)
    fine_tune(model, data, recipe)
    torch.save(model.state_dict(), path)


def opened(network: str, asked: argparse.Namespace) -> nn.Module:
    if network == "resnet20":
        return load_model(str(asked.resnet20), arch=f"{RESNET20}:resnet20").model.eval()
    return load_model(str(asked.resnet18), arch="torchvision:resnet18", arch_args={"num_classes": 10}).model.eval()


def compare(place: dict[str, object], asked: argparse.Namespace, data: Data, sides: list[str]) -> None:
    if not sides:
        return
    network, rate, seed = str(place["network"]), float(str(place["rate"])), int(str(place["seed"]))
    few = list(data.batches("train", batch_size=128, device=CPU, seed=seed, augment=False, limit=asked.few))
    model = opened(network, asked)
    positions = data.positions["train"]
    chosen = positions[torch.randperm(len(positions), generator=torch.Generator().manual_seed(seed))[: asked.images]]
    training = dataclasses.replace(data, positions={**data.positions, "train": chosen})
    recipe = Recipe(epochs=asked.epochs, amp="bf16", channels_last=True, seed=seed)
    full = count_macs(model, data.shape)

    def row(side: str, small: nn.Module, cut: float, recalibrated: float, **more: object) -> dict[str, object]:
        gone = 1 - count_macs(small, data.shape) / full
        params = 1 - sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in model.parameters())
        measured = {"side": side, "macs_gone": gone, "params_gone": params, "cut": cut, "recalibrated": recalibrated}
        return {**place, "few": asked.few, "test": asked.test, **measured, **more}

    goal = parse_rate(rate)
    job = Job(model, data.shape, analyse(model, data.shape), goal, Classify())
    method = catalogue.create(catalogue.find("magnitude", "prune"), job, {})
    assert isinstance(method, FilterPruning)
    method.prepare()
    assert method.removed is not None
    small = method.model.eval()
    wanted = count_macs(small, data.shape) / full
    if "ours" in sides:
        cut = test(small, data)
        repaired = copy.deepcopy(small)
        refit(model, repaired, method.removed.cut, few, data.shape)
        anew = copy.deepcopy(repaired)
        recalibrate(anew, few)
        repaired = max(repaired, anew, key=lambda network: held_out(network, data))  # as a run does
        recalibrate(small, few)
        mine = row("ours", repaired, cut, test(small, data), dense=test(model, data), repaired=test(repaired, data))
        taught = copy.deepcopy(repaired)
        fine_tune(repaired, training, recipe)
        fine_tune(taught, training, recipe, teacher=model)
        tuned = {"fine_tuned": test(repaired, data), "fine_tuned_with_teacher": test(taught, data)}
        chosen = {"held_out": held_out(repaired, data), "held_out_with_teacher": held_out(taught, data)}
        keep(asked.out, {**mine, **tuned, **chosen})
    for importance in ("magnitude", "taylor"):
        if (side := f"TP {importance}") in sides:
            small, cut, ranked = theirs(model, network, importance, wanted, few, data)
            recalibrated = test(small, data)
            fine_tune(small, training, recipe)
            keep(asked.out, row(side, small, cut, recalibrated, ranked=ranked, fine_tuned=test(small, data)))


def test(model: nn.Module, data: Data) -> float:
    return Classify().measure(torch_predict(model, CPU), data.batches("test", batch_size=500, device=CPU)).headline()


def held_out(model: nn.Module, data: Data) -> float:
    return Classify().measured(model, data.batches("held_out", batch_size=500, device=CPU)).headline()


def fine_tune(model: nn.Module, data: Data, recipe: Recipe, teacher: nn.Module | None = None) -> None:
    """Train `model` in place, with the training loop of this package."""
    channels = analyse(model, data.shape)
    method = Method(Job(model, data.shape, channels, parse_rate(0.5), Classify(), guide=teacher))
    seed_all(recipe.seed)
    Training(method, data, recipe, CPU).run(Journal(None))
    model.load_state_dict(method.model.state_dict())
    model.eval()


def theirs(
    model: nn.Module, network: str, importance: str, wanted: float, few: list[Batch], data: Data
) -> tuple[nn.Module, float, str]:
    """The network pruned to the share `wanted` of its MACs and recalibrated; its accuracy before that; its ranking."""
    found = []
    for ranked in ("inside layers", "over all layers"):
        low, high, best = 0.0, 1.0, None
        for _ in range(GOAL_STEPS):
            ratio = (low + high) / 2
            try:
                small = prune(model, network, importance, ratio, ranked == "over all layers", few, data)
                share = count_macs(small, data.shape) / count_macs(model, data.shape)
            except Exception:  # a whole layer was removed
                share, small = 0.0, None
            low, high = (ratio, high) if share > wanted else (low, ratio)
            if small is not None and (best is None or abs(share - wanted) < abs(best[0] - wanted)):
                best = share, small
        assert best is not None
        small = best[1].eval()
        before = test(small, data)
        recalibrate(small, few)
        found.append((held_out(small, data), ranked, small, before))
    _, ranked, small, before = max(found, key=lambda entry: entry[0])
    return small, before, ranked


def prune(
    model: nn.Module, network: str, importance: str, ratio: float, over_all: bool, few: list[Batch], data: Data
) -> nn.Module:
    import torch_pruning as tp

    small = copy.deepcopy(model)
    for parameter in small.parameters():
        parameter.requires_grad_(True)
    ignored = [module for name, module in small.named_modules() if isinstance(module, nn.Linear) or (
        network == "resnet20" and isinstance(module, nn.Conv2d) and not name.endswith(".conv1"))]  # fmt: skip
    scores = tp.importance.GroupMagnitudeImportance(p=2) if importance == "magnitude" else tp.importance.GroupTaylorImportance()
    pruner = tp.pruner.BasePruner(
        small, torch.randn(1, *data.shape), importance=scores, pruning_ratio=ratio, ignored_layers=ignored,
        global_pruning=over_all, max_pruning_ratio=0.95,
    )  # fmt: skip
    if importance == "taylor":
        for batch in few:
            F.cross_entropy(small(batch.inputs), batch.targets).backward()
    pruner.step()
    small.zero_grad()
    return small


if __name__ == "__main__":
    main()
