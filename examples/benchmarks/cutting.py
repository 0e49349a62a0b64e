"""Time to find coupled channels, select channels and remove them, compared with Torch-Pruning 1.6.1.

    pip install torch-pruning==1.6.1
    python examples/benchmarks/cutting.py [--runs 3] [--out examples/benchmarks/cutting.json] [NETWORK ...]

Both prune random torchvision networks for images of 3 x 224 x 224 in one process, on one thread, interleaved:

    ours           `analyse`, the scores of `magnitude`, `widths.choose` at half the MACs, `surgery.plan`, `surgery.apply`
    Torch-Pruning  its README's recipe: `BasePruner` with the group L2 norm, `pruning_ratio=0.5`, classifier ignored, `step`

The two are not pruned alike: ours removes half of the MACs, Torch-Pruning half of the channels of every group. The amount
makes no difference to the time of either. Our check that the pruned network equals the masked one has no counterpart there and
is timed separately. Times are medians; the first round of each is a warm-up and does not count.
"""

import argparse
import copy
import json
import os
import platform
import shlex
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import nn
from torchvision.models import get_model

import compressor
from compressor.channels import analyse, surgery
from compressor.channels.verify import difference
from compressor.methods.prune.papers.magnitude import Magnitude
from compressor.methods.widths import choose
from compressor.network.cost import count_macs
from compressor.tasks.classify import Classify
from compressor.training.goal import parse_rate
from compressor.training.method import Job

NETWORKS = ("resnet50", "densenet201", "mobilenet_v2")
SHAPE = (3, 224, 224)
SEED = 0
Seconds = dict[str, float]


def ours(model: nn.Module) -> tuple[nn.Module, Seconds]:
    """The pruned network, and the seconds of each step."""
    seconds: Seconds = {}

    def timed(step: str, work: Callable):
        began = time.perf_counter()
        result = work()
        seconds[step] = time.perf_counter() - began
        return result

    channels = timed("analysis", lambda: analyse(model, SHAPE))
    goal = parse_rate(0.5)
    method = Magnitude(Job(model, SHAPE, channels, goal, Classify()))  # it copies the model, which is not part of pruning
    scores = timed("scores", lambda: method.scores(channels))
    mask = timed("choice", lambda: choose(channels, scores, goal))
    cut = timed("plan", lambda: surgery.plan(model, channels, mask))
    small = timed("surgery", lambda: surgery.apply(model, cut))
    gap = timed("verification", lambda: difference(model, small, cut, SHAPE))
    assert gap < 1e-5, f"the pruned network differs from the masked one: {gap}"
    return small, seconds


def torch_pruning(model: nn.Module) -> tuple[nn.Module, Seconds]:
    """The same. Torch-Pruning works in place: the copy is made before timing starts."""
    import torch_pruning as tp

    model, images = copy.deepcopy(model), torch.randn(1, *SHAPE)
    classifier = [module for module in model.modules() if isinstance(module, nn.Linear) and module.out_features == 1000]
    began = time.perf_counter()
    pruner = tp.pruner.BasePruner(
        model, images, importance=tp.importance.GroupMagnitudeImportance(p=2), pruning_ratio=0.5, ignored_layers=classifier
    )
    analysed = time.perf_counter()
    pruner.step()
    return model, {"analysis": analysed - began, "selection and surgery": time.perf_counter() - analysed}


def compare(name: str, runs: int) -> dict[str, object]:
    """Medians over `runs` rounds after a warm-up; every second round starts with the other side."""
    torch.manual_seed(SEED)
    model = get_model(name).eval()
    sides = {"ours": ours, "torch_pruning": torch_pruning}
    rounds: dict[str, list[Seconds]] = {side: [] for side in sides}
    small: dict[str, nn.Module] = {}
    for turn in range(runs + 1):
        for side in sides if turn % 2 == 0 else reversed(sides):
            small[side], seconds = sides[side](model)
            rounds[side].append(seconds)
    result: dict[str, object] = {"network": name, "macs": count_macs(model, SHAPE)}
    for side, measured in rounds.items():
        steps = {step: statistics.median(seconds[step] for seconds in measured[1:]) for step in measured[0]}
        totals = [sum(spent for step, spent in seconds.items() if step != "verification") for seconds in measured[1:]]
        result[side] = {
            "macs_after": count_macs(small[side], SHAPE),
            "seconds": statistics.median(totals),
            "each_run": totals,
            "steps": steps,
        }
    result["times_faster"] = result["torch_pruning"]["seconds"] / result["ours"]["seconds"]
    return result


def machine() -> dict[str, object]:
    cpu = platform.processor() or platform.machine()
    listed = Path("/proc/cpuinfo")
    if listed.exists():
        names = [line.partition(":")[2].strip() for line in listed.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0] if names else cpu
    return {"cpu": cpu, "cores": os.cpu_count(), "threads": torch.get_num_threads()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", metavar="NETWORK", default=NETWORKS, help="names of torchvision")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    options = parser.parse_args()
    if find_spec("torch_pruning") is None:
        sys.exit("Torch-Pruning is not installed: pip install torch-pruning==1.6.1")
    warnings.filterwarnings("ignore", module="torch_pruning")
    torch.set_num_threads(1)
    row = "{:14} {:>9} {:>22} {:>22} {:>8} {:>13}"
    print(row.format("network", "MACs", "ours (MACs after)", "theirs (MACs after)", "faster", "verification"))
    results = []
    for name in options.networks:
        result = compare(name, options.runs)
        results.append(result)
        mine, theirs = result["ours"], result["torch_pruning"]
        print(
            row.format(
                name,
                f"{result['macs'] / 1e9:.2f} G",
                f"{mine['seconds']:.2f} s ({mine['macs_after'] / result['macs']:.0%})",
                f"{theirs['seconds']:.2f} s ({theirs['macs_after'] / result['macs']:.0%})",
                f"{result['times_faster']:.1f} x",
                f"{mine['steps']['verification']:.2f} s",
            ),
            flush=True,
        )
    if options.out:
        figures = {
            "what": "seconds to analyse, select and cut; medians of the runs after one that warmed up",
            "command": shlex.join(["python", "examples/benchmarks/cutting.py", *sys.argv[1:]]),
            "runs": options.runs,
            "seed": SEED,
            "input_shape": SHAPE,
            "machine": machine(),
            "versions": {
                "python": platform.python_version(),
                "compressor": compressor.__version__,
                "torch": torch.__version__,
                "torchvision": torchvision.__version__,
                "torch_pruning": version("torch-pruning"),
                "numpy": np.__version__,
            },
            "results": results,
        }
        options.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
