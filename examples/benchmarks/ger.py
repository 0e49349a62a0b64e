"""Compare training of all factors together for the network's output, as in GER, with training of each layer for its own.

    python examples/benchmarks/ger.py vgg8.pt --data imagefolder:cifar10 --out examples/benchmarks/ger.json
        [--times 4,8,16,32,64] [--seeds 0,1,2] [--epochs 10] [--rates 1e-4,3e-4,1e-3,3e-3,1e-2]

vgg8.pt is a state dict of `examples/cifar/vgg.py:vgg8`. Its fully-connected layers get --times fewer parameters:

    svd     by the decomposition alone
    apart   then each layer is trained on the original's input and output of that layer (`--set joint=false`)
    joint   or all are trained together on the original's output

at equal ranks, for equal epochs, on the training images without augmentation or labels. Both are trained with SGD, a momentum
of 0.9, a cosine schedule and no weight decay, at the learning rate of --rates with the best top-1 on held-out images after the
last epoch, with the first seed and the largest of --times (0: diverged). The results are top-1 in percent on all test images,
after the last epoch. The seeds determine the order of the images; nothing else is random. The output of the convolutions is
computed once per image.
"""

import argparse
import json
import platform
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import compressor
from compressor.checkpoint import load_model
from compressor.data import Batch, Batches, Data, open_data
from compressor.errors import UsageError
from compressor.methods.lowrank.papers.ger import Ger
from compressor.methods.output_cache import Remembered
from compressor.network.cost import count_macs
from compressor.runs.journal import Journal
from compressor.tasks.classify import Classify
from compressor.training.goal import parse_target
from compressor.training.method import Job
from compressor.training.recipe import Recipe
from compressor.training.train import Training

ARCH = f"{Path(__file__).resolve().parents[1] / 'cifar' / 'vgg.py'}:vgg8"
CPU = torch.device("cpu")
BATCH = 128


@dataclass(frozen=True)
class Read:
    """Batches with the input of the fully-connected layers in place of images."""

    batches: Batches
    known: Remembered

    @property
    def plan(self) -> object:
        return self.batches.plan

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.batches:
            yield batch._replace(inputs=self.known(batch)[0])


class Features:
    """Data with the output of the convolutions in place of images."""

    def __init__(self, data: Data, convolutions: nn.Module) -> None:
        self.data, self.counts = data, data.counts
        parts = ("train", "held_out", "test")
        self.known = {part: Remembered(lambda images: [convolutions(images).flatten(1)], float("inf")) for part in parts}

    def batches(self, split: str, **how: object) -> Read:
        return Read(self.data.batches(split, **how), self.known[split])


class Bench:
    def __init__(self, model: nn.Module, data: Data, epochs: int) -> None:
        self.epochs, self.features, self.classifier = epochs, Features(data, model.features), model.classifier
        self.inputs = (model.classifier[0].in_features,)

    def top1(self, classifier: nn.Module, split: str) -> float:
        """In percent."""
        hits = Classify().measured(classifier, self.features.batches(split, batch_size=500, device=CPU))
        return round(100 * hits.headline(), 2)

    def factored(self, times: int, joint: bool = True) -> Ger:
        goal = parse_target(f"params<={sum(p.numel() for p in self.classifier.parameters()) / times:.0f}")
        macs = count_macs(self.classifier, self.inputs)
        method = Ger(Job(self.classifier, self.inputs, None, goal, Classify(), macs=macs, images=self.features), joint=joint)
        method.prepare()
        return method

    def trained(self, times: int, joint: bool, seed: int, rate: float) -> nn.Module:
        method = self.factored(times, joint)
        recipe = Recipe(epochs=self.epochs, batch_size=BATCH, lr=rate, weight_decay=0.0, seed=seed)
        Training(method, self.features, recipe, CPU).run(Journal())
        return method.model


def chosen(bench: Bench, times: int, seed: int, rates: list[float]) -> dict[str, dict[str, float]]:
    """For each way to train: rate -> top-1 on held-out images."""
    found: dict[str, dict[str, float]] = {}
    for name, joint in (("apart", False), ("joint", True)):
        for rate in rates:
            try:
                reached = bench.top1(bench.trained(times, joint, seed, rate), "held_out")
            except UsageError:  # training diverged
                reached = 0.0
            found.setdefault(name, {})[f"{rate:g}"] = reached
            print(f"{name}, rate {rate:g}: {reached} % of the held-out images", flush=True)
    return found


def rows(bench: Bench, all_times: list[int], seeds: list[int], rates: dict[str, float]) -> Iterator[dict[str, object]]:
    for times in all_times:
        method = bench.factored(times)
        row = {"times": times, "ranks": method.ranks, "params": int(method.planned["params"])}
        row["svd"] = bench.top1(method.model, "test")
        for name, joint in (("apart", False), ("joint", True)):
            row[name] = [bench.top1(bench.trained(times, joint, seed, rates[name]), "test") for seed in seeds]
        print(row, flush=True)
        yield row


def machine() -> dict[str, object]:
    names = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return {"cpu": names[0] if names else platform.machine(), "threads": torch.get_num_threads()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--times", default="4,8,16,32,64")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--rates", default="1e-4,3e-4,1e-3,3e-3,1e-2")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    times, seeds = ([int(n) for n in text.split(",")] for text in (options.times, options.seeds))
    data = open_data(options.data, size=None, channels=3, mean=None, std=None, seed=0, workers=0)
    bench = Bench(load_model(str(options.model), arch=ARCH).model.eval(), data, options.epochs)
    held_out = chosen(bench, max(times), seeds[0], [float(rate) for rate in options.rates.split(",")])
    rates = {name: float(max(found, key=lambda rate: found[rate])) for name, found in held_out.items()}
    kind, _, folder = options.data.partition(":")
    choice = [f"--{name}={getattr(options, name)}" for name in ("times", "seeds", "epochs", "rates")]
    given = [options.model.name, "--data", f"{kind}:{Path(folder).name}", *choice]
    about = {
        "what": "top-1 in percent on all test images, with fully-connected layers that many times smaller; one entry a seed",
        "command": shlex.join(["python", "examples/benchmarks/ger.py", *given]),
        "test_images": data.counts["test"],
        "dense": bench.top1(bench.classifier, "test"),
        "held_out": held_out,
        "rates": rates,
        "machine": machine(),
        "versions": {"python": platform.python_version(), "compressor": compressor.__version__, "torch": torch.__version__},
    }
    results = []
    for row in rows(bench, times, seeds, rates):
        results.append(row)
        options.out.write_text(json.dumps({**about, "results": results}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
