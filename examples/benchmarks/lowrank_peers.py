"""Low-rank factorization to equal parameters: ours, tensorly-torch 0.5.0 and fasterai 0.4.1, before and after fine-tuning.

    pip install --no-deps tensorly-torch==0.5.0 fasterai==0.4.1 einops
    python examples/benchmarks/lowrank_peers.py resnet20-jpeg.pt --data imagefolder:cifar10 [--out FILE]

The checkpoint is of `examples/cifar/resnet.py`, named after its network. For each seed:

    ours svd, ours channel, ours tucker   `compress lowrank --target params=50%` with the method `svd` by default, split by
                                          channels alone, and `tucker`; then re-estimated by least squares as in a run
    ours svd, half the MACs               the same with `--rate 0.5`, since a target of parameters may leave many MACs
    tensorly-torch tucker                 `FactorizedConv.from_conv`, `implementation="factorized"`, spatial modes not factored
    fasterai tucker, fasterai svd         `Conv_Decomposer`, the same share of ranks removed everywhere

Theirs uses one rank for every 3 x 3 convolution but the first, set by bisection to the parameters of `ours svd`, and no
images. Ours uses 512 training images for ranks and factors, and for the least squares (`repaired`). `factored` is top-1 on all
test images directly after factorization, `recalibrated` that with batch-norm statistics of 2,048 training images. The better
start of each side on held-out images, which for ours may be `repaired`, is fine-tuned by the same loop, with labels alone, on
the same training images. A seed determines all these images. Latency is that of ONNX Runtime for one image on one thread, all
files interleaved, as a ratio to the original's.
"""

import argparse
import copy
import json
import os
import platform
import shlex
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compressor.channels import Cut
from compressor.checkpoint import load_model
from compressor.data import Batch, Data, open_data
from compressor.files import write_text
from compressor.methods import catalogue
from compressor.methods.catalogue import Value
from compressor.methods.lowrank.factor import LowRank
from compressor.network.cost import count_macs, count_params
from compressor.network.outputs import torch_predict
from compressor.onnx.export import check_onnx, export_onnx
from compressor.onnx.latency import Timing, compare_latency
from compressor.recovery.recalibrate import recalibrate
from compressor.recovery.repair import refit
from compressor.runs.journal import Journal
from compressor.runs.recover_accuracy import RECALIBRATION_IMAGES, REPAIR_IMAGES
from compressor.tasks.classify import Classify
from compressor.training.goal import parse_rate, parse_target
from compressor.training.method import Job, Method
from compressor.training.recipe import Recipe
from compressor.training.train import HELD_OUT_BATCH, Training, seed_all

CPU = torch.device("cpu")
ARCH = Path(__file__).parents[1] / "cifar/resnet.py"
STEPS = 10  # of bisection
AS_THEY_ARE: dict[str, Any] = {"batch_size": 128, "device": CPU, "augment": False}
OURS: dict[str, tuple[str, str, dict[str, Value]]] = {  # method, --target, --set
    "ours svd": ("svd", "params=50%", {}),
    "ours channel": ("svd", "params=50%", {"split": "channel"}),
    "ours tucker": ("tucker", "params=50%", {}),
    "ours svd, half the MACs": ("svd", "macs=50%", {}),
}


@dataclass(frozen=True)
class Drawn:
    """Images in an order that depends on a seed."""

    data: Data
    seed: int

    def batches(self, split: str, **options: Any) -> Iterable[Batch]:
        return self.data.batches(split, seed=self.seed, **options)


def ours(model: nn.Module, data: Data, name: str, seed: int) -> LowRank:
    method, target, settings = OURS[name]
    macs, images = count_macs(model, data.shape), Drawn(data, seed)
    job = Job(model, data.shape, None, parse_target(target), Classify(), macs=macs, images=images)
    made = catalogue.create(catalogue.find(method, "lowrank"), job, settings)
    assert isinstance(made, LowRank)
    made.prepare()
    return made


def of_tensorly(model: nn.Module, share: float) -> nn.Module:
    from tltorch import FactorizedConv

    small = copy.deepcopy(model)
    for name in _convolutions(model):
        conv = small.get_submodule(name)
        options = {"factorization": "tucker", "implementation": "factorized", "fixed_rank_modes": "spatial"}
        small.set_submodule(name, FactorizedConv.from_conv(conv, rank=share, **options))
    return small


def of_fasterai(model: nn.Module, share: float, method: str) -> nn.Module:
    from fasterai.misc.conv_decomposer import Conv_Decomposer

    return Conv_Decomposer().decompose(model, 1 - share, method, layers=_convolutions(model))


def _convolutions(model: nn.Module) -> list[str]:
    """Names of the convolutions with a kernel above 1 x 1, except those on the image."""
    convs = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1]
    return [name for name, conv in convs if conv.in_channels > 3]


THEIRS: dict[str, Callable[[nn.Module, float], nn.Module]] = {
    "tensorly-torch tucker": of_tensorly,
    "fasterai tucker": lambda model, share: of_fasterai(model, share, "tucker"),
    "fasterai svd": lambda model, share: of_fasterai(model, share, "svd"),
}


def brought_to(params: int, factored: Callable[[float], nn.Module]) -> nn.Module:
    """The largest network with at most `params` parameters."""
    low, high = 0.0, 1.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if count_params(factored(middle)) <= params else (low, middle)
    return factored(low).eval()


def test(model: nn.Module, data: Data) -> float:
    return Classify().measure(torch_predict(model, CPU), data.batches("test", batch_size=250, device=CPU)).headline()


def held_out(model: nn.Module, data: Data) -> float:
    return Classify().measured(model, data.batches("held_out", batch_size=HELD_OUT_BATCH, device=CPU)).headline()


def fine_tuned(model: nn.Module, data: Data, images: int, epochs: int, seed: int) -> nn.Module:
    positions = data.positions["train"]
    chosen = positions[torch.randperm(len(positions), generator=torch.Generator().manual_seed(seed))[:images]]
    few = replace(data, positions={**data.positions, "train": chosen})
    recipe = Recipe(epochs=epochs, amp="bf16", channels_last=True, teacher="none", seed=seed)
    method = Method(Job(model, data.shape, None, parse_rate(0.5), Classify()))
    seed_all(seed)
    Training(method, few, recipe, CPU).run(Journal(None))
    return method.model.to(memory_format=torch.contiguous_format).eval()


def measured(
    small: nn.Module, model: nn.Module, data: Data, made: LowRank | None, asked: argparse.Namespace, seed: int
) -> tuple[dict[str, float], nn.Module]:
    """The results of one network, and the network after fine-tuning."""
    starts = {"recalibrated": copy.deepcopy(small)}
    recalibrate(starts["recalibrated"], Drawn(data, seed).batches("train", **AS_THEY_ARE, limit=RECALIBRATION_IMAGES))
    if made is not None:
        starts["repaired"] = copy.deepcopy(small)
        some = Drawn(data, seed).batches("train", **AS_THEY_ARE, limit=REPAIR_IMAGES)
        refit(model, starts["repaired"], Cut(), some, data.shape, made.made().last)
    best = max(starts.values(), key=lambda start: held_out(start, data))
    tuned = fine_tuned(best, data, asked.images, asked.epochs, seed)
    figures = {
        "macs_left": count_macs(small, data.shape) / count_macs(model, data.shape),
        "params_left": count_params(small) / count_params(model),
        "factored": test(small, data),
        **{name: test(start, data) for name, start in starts.items()},
        "fine_tuned": test(tuned, data),
    }
    return figures, tuned


def compare(model: nn.Module, data: Data, asked: argparse.Namespace, seed: int) -> list[dict[str, object]]:
    rows, networks = [], {"original": model}
    methods = {name: ours(model, data, name, seed) for name in OURS}
    params = count_params(methods["ours svd"].model)
    for name in (*OURS, *THEIRS):
        made = methods.get(name)
        small = made.model.eval() if made is not None else brought_to(params, partial(THEIRS[name], model))
        figures, networks[name] = measured(small, model, data, made, asked, seed)
        rows.append({"side": name, "seed": seed, **figures})
        print(json.dumps(rows[-1]), flush=True)
    original, *others = milliseconds(networks, data)
    return [{**row, "latency": ms / original} for row, ms in zip(rows, others, strict=True)]


def milliseconds(networks: dict[str, nn.Module], data: Data) -> list[float]:
    """Latency in ONNX Runtime, for one image on one thread."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{number}.onnx" for number in range(len(networks))]
        for network, file in zip(networks.values(), files, strict=True):
            export_onnx(network, data.shape, file)
            check_onnx(network, file, data.shape)
        return [latency.median_ms for (latency,) in compare_latency(files, data.shape, Timing((1,), runs=1000, seconds=20))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=int, default=5000, help="training images for fine-tuning")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    asked = parser.parse_args()
    data = open_data(asked.data)
    model = load_model(str(asked.model), arch=f"{ARCH}:{asked.model.stem.partition('-')[0]}").model.eval()
    kind, _, folder = asked.data.partition(":")
    choice = ["--images", str(asked.images), "--epochs", str(asked.epochs), "--seeds", asked.seeds]
    command = [
        "python",
        "examples/benchmarks/lowrank_peers.py",
        asked.model.name,
        "--data",
        f"{kind}:{Path(folder).name}",
        *choice,
    ]
    figures: dict[str, Any] = {
        "what": "top-1 of all test images; shares of the original; latency as a ratio to the original's",
        "command": shlex.join(command),
        "machine": {"cpu": platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "versions": {name: version(name) for name in ("torch", "onnxruntime-gpu", "tensorly-torch", "fasterai")},
        "original": {"top1": test(model, data), "macs": count_macs(model, data.shape), "params": count_params(model)},
        "test_images": data.counts["test"],
        "rows": [],
    }
    for seed in map(int, asked.seeds.split(",")):
        figures["rows"] += compare(model, data, asked, seed)
        write_text(asked.out, json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
