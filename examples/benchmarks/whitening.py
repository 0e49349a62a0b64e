"""Compare SVD of layers by their output on images (whitening) with SVD of their weights, without training.

    python examples/benchmarks/whitening.py MODEL... --data imagefolder:cifar10 [--rates 0.5,0.7] [--out FILE]

MODEL is a checkpoint of a network in `examples/cifar/`, named after it (resnet56.pt, resnet20-jpeg.pt, vgg8.pt, vit.pt).
Convolutions are split by channels, linear layers in two, for each network at each rate of MACs in three ways:

    plain     by the weights, with ranks by the error of the weights; no images are used
    ranks     the ranks of `whitened`, but each layer split by its weights: the gain of the ranks without that of the factors
    whitened  by the output on 512 training images without labels, which also determines the ranks

`error` is the squared error of a layer's output, as a share of its variance on 512 held-out images, with the layer's input in
the original network, summed over all factored layers. `top1` is on all test images, in percent; `recalibrated` is top-1 after
batch-norm statistics are re-estimated on 2,048 training images. Nothing is selected by either.
"""

import argparse
import copy
import json
import os
import platform
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

import compressor
from compressor.checkpoint import load_model
from compressor.data import Batch, Batches, Data, open_data
from compressor.files import write_text
from compressor.methods.lowrank.papers.svd import Svd
from compressor.network.cost import count_macs, count_params
from compressor.network.outputs import torch_predict
from compressor.network.replacements import replaced
from compressor.network.unpack_attention import unpacked
from compressor.recovery.recalibrate import recalibrate
from compressor.runs.recover_accuracy import RECALIBRATION_IMAGES
from compressor.tasks.classify import Classify
from compressor.training.goal import parse_rate
from compressor.training.method import Job

CIFAR = Path(__file__).resolve().parents[1] / "cifar"
SHAPE = (3, 32, 32)
CPU = torch.device("cpu")
COMPARED = 512  # held-out images for the errors of layers


def opened(file: Path) -> nn.Module:
    network = file.stem.partition("-")[0]
    source = "resnet" if network.startswith("resnet") else network.rstrip("0123456789")
    return load_model(str(file), arch=f"{CIFAR / source}.py:{network}").model.eval()


def three(model: nn.Module, data: Data, rate: float) -> Iterator[tuple[str, Svd]]:
    looking = Job(model, SHAPE, None, parse_rate(rate), Classify(), macs=count_macs(model, SHAPE), images=data)
    blind = replace(looking, images=None)
    plain = Svd(blind, split="channel")
    plain.prepare()
    yield "plain", plain
    whitened = Svd(looking, split="channel")
    seen = whitened.watched()
    sites = whitened.sites(seen)
    choice = whitened.choose(sites)
    ranks = Svd(blind, split="channel")
    ranks.use(sites, choice, ranks.watched())
    yield "ranks", ranks
    whitened.use(sites, choice, seen)
    yield "whitened", whitened


def error(original: nn.Module, chains: Mapping[str, nn.Module], batches: Iterable[Batch]) -> float:
    """The squared error of each layer's chain as a share of the layer's variance, summed over layers."""
    missed = dict.fromkeys(chains, 0.0)
    moments: dict[str, list[Tensor]] = {name: [] for name in chains}  # per batch: number of rows, their sum, sum of squares

    def compare(name: str, layer: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        missed[name] += float((chains[name](*args) - out).double().square().sum())
        rows = (out.movedim(1, -1) if isinstance(layer, nn.Conv2d) else out).double().flatten(0, -2)
        moments[name].append(torch.stack([torch.full_like(rows[0], len(rows)), rows.sum(0), rows.square().sum(0)]))

    hooks = [
        original.get_submodule(name).register_forward_hook(lambda layer, args, out, name=name: compare(name, layer, args, out))
        for name in chains
    ]
    with torch.no_grad():
        for batch in batches:
            original(batch.inputs)
    for hook in hooks:
        hook.remove()
    counts = {name: torch.stack(parts).sum(0) for name, parts in moments.items()}
    return sum(missed[name] / float((squares - total**2 / n).sum()) for name, (n, total, squares) in counts.items())


def top1(model: nn.Module, test: Batches) -> float:
    return round(100 * Classify().measure(torch_predict(model, CPU), test).headline(), 2)


def rows(file: Path, data: Data, rates: list[float]) -> Iterator[dict[str, object]]:
    """One row per way to factor one network."""
    model, test = opened(file), data.batches("test", batch_size=250, device=CPU)
    dense, macs, params = top1(model, test), count_macs(model, SHAPE), count_params(model)
    for rate in rates:
        for name, method in three(model, data, rate):
            small = method.model.eval()
            held_out = data.batches("held_out", batch_size=128, device=CPU, limit=COMPARED)
            apart = replaced(copy.deepcopy(model), unpacked(model, SHAPE))  # with attention as separate linear layers
            found = {"error": round(error(apart, method.chains, held_out), 4), "top1": top1(small, test)}
            images = data.batches("train", batch_size=128, device=CPU, augment=False, limit=RECALIBRATION_IMAGES)
            if recalibrate(small, images):
                found["recalibrated"] = top1(small, test)
            left = {
                "macs_left": round(count_macs(small, SHAPE) / macs, 4),
                "params_left": round(count_params(small) / params, 4),
            }
            yield {"model": file.stem, "dense": dense, "rate": rate, "by": name, "layers": len(method.chains), **left, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    parser.add_argument("--data", required=True)
    parser.add_argument("--rates", default="0.5,0.7")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    data, rates = open_data(options.data), [float(rate) for rate in options.rates.split(",")]
    for file in options.models:
        for row in rows(file, data, rates):
            print(json.dumps(row), flush=True)
            keep(row, options, data)


def keep(row: dict[str, object], options: argparse.Namespace, data: Data) -> None:
    """Add a row to the file, in place of one of the same network, rate and way."""
    known = json.loads(options.out.read_text(encoding="utf-8"))["rows"] if options.out.exists() else []
    same = ("model", "rate", "by")
    everything = [*(other for other in known if any(other[name] != row[name] for name in same)), row]
    names = dict.fromkeys(f"{row['model']}.pt" for row in everything)
    kind, _, folder = options.data.partition(":")
    figures = {
        "what": "top-1 in percent on all test images; errors on held-out images, summed over layers",
        "command": shlex.join(["python", "examples/benchmarks/whitening.py", *names, "--data", f"{kind}:{Path(folder).name}"]),
        "test_images": data.counts["test"],
        "machine": {"cpu": platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "versions": {"python": platform.python_version(), "compressor": compressor.__version__, "torch": torch.__version__},
        "rows": everything,
    }
    write_text(options.out, json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
