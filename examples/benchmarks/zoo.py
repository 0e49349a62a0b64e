"""Which models can be cut, and is what comes out right? All of torchvision, 39 of timm, three of Hugging Face.

    pip install timm transformers torch-pruning==1.6.1
    python examples/benchmarks/zoo.py [--only PATTERN ...] [--tool ours] [--stage cut] [--again]

Every model is built with random weights and cut in a process of its own, on one thread, within `--limit` seconds and
`--memory` GB. What a process has reached is written to the JSON file beside this script as soon as it is reached; models that
stand there already are left out unless `--again` is given. `docs/models.md` is made from that file.

    cut      analysis, scores of `magnitude`, selection at half of the MACs (or the most that the model allows), surgery; the
             small model equals the masked one and its output has the form of the original's
    reload   weights and plan are read in a fresh process, and the network answers as before
    onnx     it is exported, and ONNX Runtime answers as PyTorch does for one image and for three

Seconds are given twice, as the clock saw them and as the processor spent them: the two differ on a machine that is shared. The
limit is on those of the processor.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import multiprocessing
import os
import platform
import signal
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torchvision import models

from compressor import budget
from compressor.budget import Scores
from compressor.channels import Channels, Mask, analyse, remove, surgery
from compressor.checkpoint import build
from compressor.errors import Infeasible
from compressor.files import write_text
from compressor.inputs import Inputs
from compressor.measure import count_macs
from compressor.method import Job
from compressor.methods.prune.magnitude import Magnitude
from compressor.runtime import first_line
from compressor.task import Classify

HERE = Path(__file__).resolve()
STAGES = ("cut", "reload", "onnx")
SEED = 0
SPAWN = multiprocessing.get_context("spawn")
Row = dict[str, Any]
TIMM = """
resnet26d seresnet50 resnext50_32x4d rexnet_100 ghostnet_100 hrnet_w18_small dla34 res2net50_26w_4s skresnet18 cspresnet50
ese_vovnet19b_dw nf_resnet50 tf_efficientnetv2_b0 mixnet_s lcnet_100 mobilevit_s mobileone_s0 repvgg_a2 convnextv2_atto
vit_small_patch16_224 deit3_small_patch16_224 beit_base_patch16_224 swinv2_tiny_window8_256 maxvit_tiny_rw_224
coatnet_0_rw_224 levit_128 efficientformer_l1 edgenext_small poolformer_s12 xcit_tiny_12_p8_224 cait_xxs24_224
crossvit_tiny_240 pvt_v2_b0 twins_pcpvt_small mobilenetv4_conv_small fastvit_t8 tiny_vit_5m_224 eva02_tiny_patch14_224
hiera_tiny_224
"""


# The models -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """A model: the code that builds it, and what it is called with."""

    name: str
    family: str
    arch: str
    inputs: Inputs

    def build(self) -> nn.Module:
        torch.manual_seed(SEED)
        model = build(self.arch).eval()
        enliven(model)
        normalise(model, self.inputs)
        return model

    @torch.no_grad()
    def form(self, model: nn.Module) -> str:
        """The form of what `model` answers for one sample."""
        return form_of(model(*self.inputs.random(1)), self.family)


def zoo() -> list[Entry]:
    """All models, in the order of the table."""
    import timm

    entries = []
    parts = models, models.segmentation, models.detection, models.video, models.optical_flow
    for part in parts:
        family = "classification" if part is models else part.__name__.rpartition(".")[2].replace("_", " ")
        for name in models.list_models(module=part):
            entries.append(Entry(name, family, f"torchvision:{name}", torchvision_inputs(name, family)))
    for name in TIMM.split():
        entries.append(Entry(name, "timm", f"timm:{name}", Inputs.of(timm.get_pretrained_cfg(name).input_size)))
    for factory in (ViTForImageClassification, SwinForImageClassification, SegformerForSemanticSegmentation):
        entries.append(Entry(factory.__name__, "Hugging Face", f"{HERE}:{factory.__name__}", Inputs.of((3, 224, 224))))
    return entries


def torchvision_inputs(name: str, family: str) -> Inputs:
    if family == "video":
        side = 224 if name.startswith(("mvit", "s3d")) else 112
        return Inputs.of((3, 16, side, side))
    if family == "optical flow":
        return Inputs.of([(3, 128, 128), (3, 128, 128)])
    side = {"inception_v3": 299, "ssd300_vgg16": 300}.get(name, 320 if family == "detection" else 224)
    return Inputs.of((3, side, side))


def ViTForImageClassification() -> nn.Module:  # noqa: N802  # the names of the classes that they build
    import transformers

    config = transformers.ViTConfig(hidden_size=192, num_attention_heads=3, intermediate_size=768, num_labels=1000)
    return transformers.ViTForImageClassification(config)


def SwinForImageClassification() -> nn.Module:  # noqa: N802
    import transformers

    return transformers.SwinForImageClassification(transformers.SwinConfig(num_labels=1000))


def SegformerForSemanticSegmentation() -> nn.Module:  # noqa: N802
    import transformers

    return transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(num_labels=150))


def enliven(model: nn.Module) -> None:
    """Random numbers where building leaves constants: zeros become small, anything else lies between 0.5 and 1.5.

    A layer scale of 1e-6, a residual branch that begins at zero or a batch norm that does nothing would hide a wrong cut.
    """
    random = torch.Generator().manual_seed(SEED)
    statistics = [tensor for name, tensor in model.named_buffers() if name.endswith(("running_mean", "running_var"))]
    with torch.no_grad():
        for tensor in [*model.parameters(), *statistics]:
            first = tensor.flatten()[0].item()
            if (tensor == first).all():
                tensor.normal_(0, 0.1, generator=random) if first == 0 else tensor.uniform_(0.5, 1.5, generator=random)


def normalise(model: nn.Module, inputs: Inputs) -> None:
    """Scale each layer so that its outputs have variance one (Mishkin and Matas, ICLR 2016, arXiv 1511.06422), biases with it.

    Random networks otherwise answer the same to everything: gates are saturated, and detectors find nothing.
    """

    @torch.no_grad()
    def scale(layer: nn.Module, args: object, output: Tensor) -> Tensor:
        hooks.pop(layer).remove()
        spread = output.std().item()
        for parameter in layer.parameters(recurse=False):
            parameter.div_(spread)
        return output / spread

    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear | _ConvNd)]
    hooks = {layer: layer.register_forward_hook(scale) for layer in layers}
    with torch.no_grad():
        model(*inputs.random(1))
    for hook in hooks.values():  # of layers that do not run
        hook.remove()


# What each process does -----------------------------------------------------------------------------------------------


class Progress:
    """Tells the waiting process what has been reached."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe

    def tell(self, **facts: object) -> None:
        self.pipe.send(facts)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Its seconds by the clock and by the processor are told once it is done: a step without seconds has failed."""
        self.tell(at=name)
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        spent = {"wall": round(time.perf_counter() - wall, 3), "cpu": round(time.process_time() - cpu, 3)}
        self.tell(seconds={name: spent})


def work(entry: Entry, tool: str, stage: str, pipe: Connection) -> None:
    """The life of one process: everything there is to know about one model and one tool."""
    os.setsid()  # so that it can be stopped with all that it may start
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    progress = Progress(pipe)
    try:
        with progress.step("build"):
            model = entry.build()
        with progress.step("original"):
            form, macs = entry.form(model), count_macs(model, entry.inputs)
        progress.tell(macs=macs)
        small = TOOLS[tool](model, entry, progress)
        with progress.step("forward"):
            if (found := entry.form(small.eval())) != form:
                raise ValueError(f"the output was {form} and is {found}")
        progress.tell(macs_after=count_macs(small, entry.inputs), at="end")
    except Exception as error:  # whatever a model or a tool may raise is a result
        progress.tell(failed=first_line(error))


def form_of(output: object, family: str) -> str:
    """The types, keys and shapes of what a model returns. How many objects a detector finds is no part of it."""
    if isinstance(output, Tensor):
        shape = list(output.shape)
        return f"{str(output.dtype)[6:]}{['any', *shape[1:]] if family == 'detection' else shape}"
    kind = type(output).__name__
    if isinstance(output, Mapping):
        return f"{kind}({', '.join(f'{key}={form_of(value, family)}' for key, value in output.items())})"
    if isinstance(output, list | tuple):
        return f"{kind}({', '.join(form_of(value, family) for value in output)})"
    return kind


def ours(model: nn.Module, entry: Entry, progress: Progress) -> nn.Module:
    goal = budget.parse_rate(0.5)
    with progress.step("analysis"):
        channels = analyse(model, entry.inputs)
    progress.tell(groups=len(channels.groups), frozen=len(channels.frozen()), unknown=channels.unknown_operators())
    with progress.step("selection"):
        method = Magnitude(Job(model, entry.inputs, channels, goal, Classify()))
        strength = channels.split(method.scores(channels))
        del method  # and with it a copy of the model

        def choose(channels: Channels) -> Mask:
            scores: Scores = np.concatenate([strength[group.name] for group in channels.groups] or [np.zeros(0)])
            try:
                return budget.choose(channels, scores, goal)
            except Infeasible:
                return budget.Shelf(channels, scores, 1, Job.most).without_weakest(channels.atoms)

        mask = choose(channels)
    if mask.all():
        raise Infeasible("nothing can be cut")
    with progress.step("surgery"):
        surgery.apply(model, surgery.plan(model, channels, mask))
    with progress.step("verification"):
        done = remove(model, channels, choose, entry.inputs)
    progress.tell(difference=done.difference, held=done.channels.held)
    return done.model


TOOLS: dict[str, Callable[[nn.Module, Entry, Progress], nn.Module]] = {"ours": ours}


# The process that waits -----------------------------------------------------------------------------------------------


def measure(entry: Entry, tool: str, options: argparse.Namespace) -> Row:
    """The row of one model and one tool: what its process told until it ended or was stopped."""
    row: Row = {"model": entry.name, "family": entry.family, "tool": tool, "stage": options.stage, "at": "start"}
    here, there = SPAWN.Pipe(duplex=False)
    process = SPAWN.Process(target=work, args=(entry, tool, options.stage, there))
    process.start()
    there.close()
    assert process.pid is not None
    began = time.monotonic()
    try:
        while True:
            if here.poll(0.2):
                merge(row, here.recv())
            elif why := excess(process.pid, began, options):
                row["failed"] = why
                break
    except EOFError:  # it has ended
        process.join()
        if process.exitcode:
            row["failed"] = f"its process ended with status {process.exitcode}"
    finally:
        if process.is_alive():
            os.killpg(process.pid, signal.SIGKILL)
        process.join()
    return row


def merge(row: Row, facts: Row) -> None:
    for key, value in facts.items():
        row[key] = {**row.get(key, {}), **value} if isinstance(value, dict) else value


def excess(pid: int, began: float, options: argparse.Namespace) -> str | None:
    """Why the process is to be stopped: too many seconds of the processor (or far too many of the clock), too much memory."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has just ended
        return None
    seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    gigabytes = int(fields[21]) * os.sysconf("SC_PAGE_SIZE") / 1e9
    if seconds > options.limit or time.monotonic() - began > 5 * options.limit:
        return f"stopped after {options.limit:g} s"
    if gigabytes > options.memory:
        return f"stopped above {options.memory:g} GB of memory"
    return None


def read(out: Path) -> dict[tuple[str, str], Row]:
    """The rows of the file, by model and tool."""
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"] if out.exists() else []
    return {(row["model"], row["tool"]): row for row in rows}


def record(out: Path, row: Row, order: list[str]) -> None:
    """Put a row in its place in the file, which other runs of this script may be writing, too."""
    with HERE.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        rows = {**read(out), (row["model"], row["tool"]): row}
        packages = ("compressor", "torch", "torchvision", "timm", "transformers", "torch-pruning", "onnx", "onnxruntime-gpu")
        figures = {
            "command": "python examples/benchmarks/zoo.py",
            "machine": {"cores": os.cpu_count(), "threads": 1},
            "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
            "rows": sorted(rows.values(), key=lambda row: (order.index(row["model"]), row["tool"])),
        }
        write_text(out, json.dumps(figures, indent=1) + "\n")


def line(row: Row) -> str:
    seconds = sum(row.get("seconds", {}).get(step, {}).get("cpu", 0) for step in ("analysis", "selection", "surgery"))
    cost = f"{row['macs_after'] / row['macs']:5.0%} of the MACs" if "macs_after" in row else " " * 17
    end = f"{row['at']}: {row['failed']}" if "failed" in row else (f"held: {', '.join(row['held'])}" if row.get("held") else "")
    return f"{row['model']:36} {row['tool']:14} {seconds:6.2f} s {cost}  {end}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", nargs="+", metavar="PATTERN", default=["*"], help="names of models or families")
    parser.add_argument("--tool", choices=[*TOOLS, "both"], default="both")
    parser.add_argument("--stage", choices=STAGES, default=STAGES[-1], help="how far to go")
    parser.add_argument("--again", action="store_true", help="measure also what stands in the file already")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--limit", type=float, default=150, metavar="SECONDS")
    parser.add_argument("--memory", type=float, default=12, metavar="GB")
    parser.add_argument("--out", type=Path, default=HERE.with_suffix(".json"))
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    entries, known = zoo(), read(options.out)
    order = [entry.name for entry in entries]
    tools = list(TOOLS) if options.tool == "both" else [options.tool]
    jobs = [
        (entry, tool)
        for entry in entries
        for tool in tools
        if any(fnmatch(name, pattern) for name in (entry.name, entry.family) for pattern in options.only)
        and (options.again or not reaches(known.get((entry.name, tool)), options.stage))
    ]

    def run(job: tuple[Entry, str]) -> Row:
        row = measure(*job, options)
        record(options.out, row, order)
        print(line(row), flush=True)
        return row

    with ThreadPoolExecutor(options.jobs) as pool:
        rows = list(pool.map(run, jobs))
    whole, passed = Counter(row["family"] for row in rows), Counter(row["family"] for row in rows if "failed" not in row)
    print("\n".join(f"{family:16} {passed[family]} of {whole[family]}" for family in whole))


def reaches(row: Row | None, stage: str) -> bool:
    return row is not None and STAGES.index(row["stage"]) >= STAGES.index(stage)


if __name__ == "__main__":
    main()
