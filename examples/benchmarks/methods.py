"""Compare the methods of soft filter pruning on CIFAR-10, with the same start, images, epochs and seed.

    python examples/benchmarks/methods.py resnet20-jpeg.pt DIR [--epochs 10] [--images 5000] [--out FILE]

DIR is CIFAR-10 as folders, `train/` and `test/`. 40 % of the filters are pruned. The recipe is that of the papers for a
pretrained network (SGD, learning rate 0.01, divided by five at 30, 60 and 80 % of training, weight decay 5e-4, batches of
128), for fewer epochs. The baseline `dense` is the unpruned network, trained in the same way. All results are of the last
epoch; "before" and "after" are the accuracy on held-out images before and after weak filters are zeroed or shrunk at the end
of an epoch.
Rows that the file already contains are skipped.
"""

import argparse
import dataclasses
import json
import shlex
import statistics
import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "cifar"))
import resnet

from compressor.channels import analyse
from compressor.checkpoint import load_model
from compressor.data import Data, open_data
from compressor.files import write_text
from compressor.methods import catalogue
from compressor.methods.prune.filters import FilterPruning
from compressor.network.outputs import torch_predict
from compressor.recovery.recalibrate import recalibrate
from compressor.runs.journal import Journal
from compressor.tasks.classify import Classify
from compressor.training.goal import parse_target
from compressor.training.method import Job, Method, Progress
from compressor.training.recipe import Recipe
from compressor.training.train import Training, seed_all

METHODS = "dense,hfp,sfp,asfp,asrfp,ghfp,pgmpf"
CHOSEN = 2000  # held-out images, for the curves
CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("data", help="CIFAR-10 as folders of images")
    parser.add_argument("--arch", default="resnet20")
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--residuals", default="coupled,scatter")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--images", type=int, default=5000, help="training images")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--amp", default="bf16")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    asked = parser.parse_args()
    data = fewer(open_data(f"imagefolder:{asked.data}"), asked.images)
    rows = json.loads(asked.out.read_text()) if asked.out.exists() else []
    done = {key(row) for row in rows}
    for seed in map(int, asked.seeds.split(",")):
        for residual in asked.residuals.split(","):
            for method in asked.methods.split(","):
                setting = {
                    "checkpoint": asked.checkpoint.name,
                    "method": method,
                    "residual": "none" if method == "dense" else residual,
                    "seed": seed,
                    "epochs": asked.epochs,
                    "images": asked.images,
                    "lr": asked.lr,
                    "amp": asked.amp,
                }
                if key(setting) in done:
                    continue
                row = {**setting, **run(setting, asked, data), "command": shlex.join(["python", *sys.argv])}
                rows = [*(json.loads(asked.out.read_text()) if asked.out.exists() else []), row]
                done.add(key(row))
                write_text(asked.out, json.dumps(rows, indent=1))
                print(
                    json.dumps({name: row[name] for name in ("method", "residual", "seed", "top1", "recalibrated")}), flush=True
                )


def key(row: dict[str, object]) -> str:
    names = ("checkpoint", "method", "residual", "seed", "epochs", "images", "lr", "amp")
    return json.dumps([row[name] for name in names])


def fewer(data: Data, images: int) -> Data:
    """The same data with `images` training images, and CHOSEN held-out images, used for the curves only."""
    generator = torch.Generator().manual_seed(0)

    def some(positions: torch.Tensor, count: int) -> torch.Tensor:
        return positions[torch.randperm(len(positions), generator=generator)[:count]]

    train, held_out = some(data.positions["train"], images), some(data.positions["held_out"], CHOSEN)
    return dataclasses.replace(data, positions={**data.positions, "train": train, "held_out": held_out})


def run(setting: dict[str, object], asked: argparse.Namespace, data: Data) -> dict[str, object]:
    """Train one method. Accuracies are shares, of the pruned network after the last epoch."""
    loaded = load_model(str(asked.checkpoint), arch=f"{resnet.__file__}:{asked.arch}")
    model = loaded.model.eval()
    residual = "coupled" if setting["method"] == "dense" else str(setting["residual"])
    channels = analyse(model, data.shape, residual)  # type: ignore[arg-type]  # one of the two
    job = Job(model, data.shape, channels, parse_target("filters=40%"), Classify(), images=data)
    seed_all(int(str(setting["seed"])))
    entry = None if setting["method"] == "dense" else catalogue.find(str(setting["method"]), "prune")
    method = Method(job) if entry is None else catalogue.create(entry, job, {})
    method.prepare()
    before = watch(method, data)
    recipe = Recipe(
        epochs=asked.epochs,
        lr=asked.lr,
        weight_decay=5e-4,
        schedule="step",
        milestones=(0.3, 0.6, 0.8),
        gamma=0.2,
        amp=asked.amp,
        channels_last=True,
        seed=int(str(setting["seed"])),
    )
    epochs = Training(method, data, recipe, CPU).run(Journal(None))
    small = method.finish().float().eval()
    kept = method.removed.mask if isinstance(method, FilterPruning) and method.removed is not None else channels.all_kept()
    measured = test(small, data)
    recalibrate(small, data.batches("train", batch_size=128, device=CPU, augment=False, limit=2048))
    return {
        "macs_gone": 1 - channels.macs.total(kept) / channels.macs.total(channels.all_kept()),
        "params_gone": 1 - channels.params.total(kept) / channels.params.total(channels.all_kept()),
        "top1": measured,
        "recalibrated": test(small, data),
        "before": before,
        "after": [epoch.held_out and epoch.held_out.value for epoch in epochs],
        "losses": [epoch.losses["cross_entropy"] for epoch in epochs],
        "epoch_seconds": [round(epoch.seconds, 1) for epoch in epochs],
        "median_epoch_seconds": round(statistics.median(epoch.seconds for epoch in epochs), 1),
    }


def test(model: nn.Module, data: Data) -> float:
    return Classify().measure(torch_predict(model, CPU), data.batches("test", batch_size=500, device=CPU)).headline()


def watch(method: Method, data: Data) -> list[float]:
    """A list that collects the held-out accuracy before `end_epoch` of each epoch."""
    seen: list[float] = []
    end_epoch = method.end_epoch

    def watched(progress: Progress) -> None:
        seen.append(Classify().measured(method.model, data.batches("held_out", batch_size=500, device=CPU)).headline())
        end_epoch(progress)

    method.end_epoch = watched  # type: ignore[method-assign]
    return seen


if __name__ == "__main__":
    main()
