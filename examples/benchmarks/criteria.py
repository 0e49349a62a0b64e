"""Compare pruning criteria: one-shot pruning to half the MACs by each criterion, without training, under equal conditions.

    python examples/benchmarks/criteria.py MODEL --arch examples/cifar/resnet.py:resnet20 --data imagefolder:cifar10
        [--residual coupled|scatter] [--rate 0.5] --out examples/benchmarks/criteria.json

Each criterion prunes the network once; then batch-norm statistics are re-estimated on 2,048 training images, and top-1 is
measured on the held-out part of the training images, which is used for nothing else. Criteria that use images are measured
three times, with the images that seeds 0, 1 and 2 put first. No test image is read.

A method's scores are ranked over the whole network as the method defines. Plain norms and gates are ranked as they are
(`none`), divided by the mean or the largest of their channel group, or by their rank in it (`layer`: the same share of every
group).

Results that --out already contains are not measured again, so a run can be interrupted and resumed.
"""

import argparse
import json
import platform
import shlex
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

import compressor
from compressor.channels import Channels, analyse, apply
from compressor.channels.surgery import plan
from compressor.data import Batch, Data
from compressor.files import write_text
from compressor.methods.catalogue import create, find
from compressor.methods.prune.filters import FilterPruning, norms, over_group, weakest
from compressor.methods.prune.importance import first_order, gates, gather
from compressor.methods.widths import Scores, uniform
from compressor.recovery.recalibrate import recalibrate
from compressor.runs.sources import Images, Source, open_both
from compressor.tasks.classify import Classify
from compressor.training.goal import parse_rate
from compressor.training.method import Job

RECALIBRATION_IMAGES, SEEDS = 2048, (0, 1, 2)
SCALES = {
    "none": lambda channels, scores: scores,
    "mean": lambda channels, scores: over_group(channels, scores, np.mean),
    "largest": lambda channels, scores: over_group(channels, scores, np.max),
    "layer": uniform,
}
METHODS = [  # name, settings
    ("magnitude", {"largest": True}),
    ("lamp", {}),
    ("slimming", {}),
    ("fpgm", {}),
    ("cpmc", {}),
    ("cpmc", {"mean": True}),
    ("cpmc", {"macs": 0.0, "params": 0.0}),
    ("pfgdf", {"keep": "centre"}),
    ("pfgdf", {"keep": "tails"}),
    ("pfgdf", {"keep": "upper"}),
    ("fisher", {}),
    ("fisher", {"by_cost": False}),
    ("taylor", {}),
    ("taylor", {"by_group": True}),
    ("taylor", {"together": False}),
    ("taylor", {"together": False, "by_group": True}),
]
NORMS = {"makers": ("out",), "readers": ("in",), "makers and readers": ("out", "in")}


@dataclass(frozen=True)
class Seeded:
    """The images of `data`, those of training in the order of `seed`."""

    data: Data
    seed: int

    def batches(self, split: str, **how: object) -> Iterable[Batch]:
        return self.data.batches(split, seed=self.seed, **how)


def criteria() -> Iterable[tuple[str, str, object]]:
    """Name, scale, and a function (job, seed) -> scores [atoms]."""
    yield "random", "none", lambda job, seed: np.random.default_rng(seed).random(job.channels.atoms)
    for name, settings in METHODS:
        text = " ".join([name, *(f"{key}={str(value).lower()}" for key, value in settings.items())])
        yield text, "none", lambda job, seed, name=name, settings=settings: by_method(job, name, settings)
    for name, roles in NORMS.items():
        for scale in SCALES:
            yield f"norm of {name}", scale, lambda job, seed, roles=roles: norms(job.model, job.channels, roles)
    for scale in SCALES:
        yield "gate |dL/dm|, as gdp", scale, gate


def by_method(job: Job, name: str, settings: dict[str, object]) -> Scores:
    method = create(find(name, "prune"), job, settings)
    assert isinstance(method, FilterPruning)
    return method.scores(job.channels)


def gate(job: Job, seed: int) -> Scores:
    """Mean over batches of |dL/dm|."""
    batches = job.images.batches("train", batch_size=128, device=torch.device("cpu"), augment=False, limit=1024)
    places = gates(job.channels)
    found = first_order(job.model, job.objective, batches)
    return np.sum([np.abs(gather(job.channels, terms, places)) for terms in found], axis=0)


def measure(job: Job, channels: Channels, scores: Scores, data: Data) -> dict[str, float]:
    """Remaining MACs, and held-out top-1 after recalibration, as shares."""
    mask = weakest(job, channels, scores)
    small = apply(job.model, plan(job.model, channels, mask)).eval()
    device = torch.device("cpu")
    recalibrate(small, data.batches("train", batch_size=128, device=device, seed=99, augment=False, limit=RECALIBRATION_IMAGES))
    macs = channels.macs.total(mask) / channels.macs.total(channels.all_kept())
    return {"macs": macs, "top1": top1(small, data)}


def top1(model: nn.Module, data: Data) -> float:
    return Classify().measured(model, data.batches("held_out", batch_size=500, device="cpu")).headline()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--arch")
    parser.add_argument("--data", required=True)
    parser.add_argument("--residual", choices=["coupled", "scatter"], default="coupled")
    parser.add_argument("--rate", type=float, default=0.5)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.manual_seed(0)
    opened = open_both(Source(options.model, options.arch, {}), Images(options.data), None)
    data, model = opened.data, opened.loaded.model.eval()
    channels = analyse(model, data.shape, options.residual)
    goal = parse_rate(options.rate)
    original = top1(model, data)
    print(f"original: {original:.2%} of {data.counts['held_out']} held-out images", flush=True)
    results = json.loads(options.out.read_text(encoding="utf-8"))["results"] if options.out.exists() else []
    done, known = {(row["criterion"], row["scale"]) for row in results}, {}
    for name, scale, score in criteria():
        if (name, scale) in done:
            continue
        runs = []
        for seed in SEEDS:
            job = Job(model, opened.inputs, channels, goal, Classify(), images=Seeded(data, seed))
            if (name, seed) not in known:
                known[name, seed] = score(job, seed)
            if seed != SEEDS[0] and np.array_equal(known[name, seed], known[name, SEEDS[0]]):
                break  # it does not use images
            runs.append(measure(job, channels, SCALES[scale](channels, known[name, seed]), data))
        accuracies = [run["top1"] for run in runs]
        results.append({"criterion": name, "scale": scale, "top1": statistics.mean(accuracies), "runs": runs})
        spread = f"{min(accuracies):.2%} to {max(accuracies):.2%}" if len(runs) > 1 else ""
        print(f"{name:36} {scale:8} {results[-1]['top1']:.2%}  {spread}", flush=True)
        figures = {
            "what": "held-out top-1 after one cut and batch-norm recalibration, without training",
            "command": shlex.join(
                [
                    "python",
                    "examples/benchmarks/criteria.py",
                    Path(options.model).name,
                    f"--arch={options.arch}",
                    f"--data={options.data.partition(':')[0]}:cifar10",
                ]
            ),
            "residual": options.residual,
            "rate": options.rate,
            "held_out_images": data.counts["held_out"],
            "recalibration_images": RECALIBRATION_IMAGES,
            "seeds": SEEDS,
            "original_top1": original,
            "versions": {
                "python": platform.python_version(),
                "compressor": compressor.__version__,
                "torch": torch.__version__,
            },
            "results": sorted(results, key=lambda row: -row["top1"]),
        }
        write_text(options.out, json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
