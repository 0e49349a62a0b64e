"""Prune many models and verify the results, with ours and Torch-Pruning 1.6.1.

    pip install timm transformers torch-pruning==1.6.1
    python examples/benchmarks/zoo.py [--only PATTERN ...] [--tool ours] [--stage cut] [--again]

All models of torchvision, 39 of timm and three of Hugging Face (`zoo_models.py`) are built with random weights and pruned by
each tool, each in its own process, on one thread, within `--limit` seconds and `--memory` GB. The results are written to the
JSON file next to this script, from which `docs/models.md` is generated; models that it already contains are skipped unless
`--again` is given.

    cut      ours: analysis, scores of `magnitude`, selection at half of the MACs (or the most that the model allows), surgery;
             the pruned model equals the masked one, and its output has the types and shapes of the original's
             Torch-Pruning: its README's recipe with the group L2 norm, `pruning_ratio=0.5`, `round_to=8`, no hint about the
             model. It must not prune the model's outputs, so `ignored_layers` are the layers whose output is returned and
             those from which no other layer is reached, according to the autograd graph
    reload   ours alone: weights and plan are loaded in a new process, where the network has the same outputs
    onnx     the model is exported, and ONNX Runtime has the outputs of PyTorch for one image and for three; if that fails,
             the original is exported, too

Seconds are given as wall time and as CPU time, which differ on a shared machine. The limit applies to CPU time. Run it from
the root of the repository: `compressor.load` trusts no code from elsewhere.
"""

from __future__ import annotations

import argparse
import copy
import fcntl
import json
import multiprocessing
import os
import platform
import signal
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from zoo_models import LAYERS, Entry, zoo

import compressor
from compressor.channels import Channels, Cut, Mask, analyse, remove, surgery
from compressor.checkpoint.plan import Plan, save_model
from compressor.errors import Infeasible, first_line
from compressor.files import write_text
from compressor.methods import widths
from compressor.methods.prune.papers.magnitude import Magnitude
from compressor.methods.widths import Scores, Shelf
from compressor.network.cost import count_macs
from compressor.network.inputs import Inputs
from compressor.network.outputs import tensors_in
from compressor.onnx.export import check_onnx, export_onnx
from compressor.tasks.classify import Classify
from compressor.training.goal import parse_rate
from compressor.training.method import Job

HERE = Path(__file__).resolve()
STAGES = ("cut", "reload", "onnx")
STEPS = ("analysis", "surgery", "verification", "forward", "reload", "onnx")  # counted by the summary
PACKAGES = "compressor", "torch", "torchvision", "timm", "transformers", "torch-pruning", "onnx", "onnxruntime-gpu"
SPAWN = multiprocessing.get_context("spawn")
Row = dict[str, Any]
Key = tuple[str, str, str]  # family, model, tool


# What each process does -----------------------------------------------------------------------------------------------


class Stopped(Exception):
    """A step has failed, which was reported."""


class Progress:
    """Reports progress to the waiting process."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe

    def tell(self, **facts: object) -> None:
        self.pipe.send(facts)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Report wall and CPU time of a step that is done, or why it has failed."""
        self.tell(at=name)
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        except Exception as error:  # whatever a model or a tool may raise is a result
            self.tell(failed={name: shorten(first_line(error), 200, placeholder=" ...")})
            raise Stopped from error
        spent = {"wall": round(time.perf_counter() - wall, 3), "cpu": round(time.process_time() - cpu, 3)}
        self.tell(seconds={name: spent})


def work(entry: Entry, tool: str, stage: str, pipe: Connection, folder: str) -> None:
    """The work of one process: one model and one tool."""
    os.setsid()  # so that it can be killed with its children
    tempfile.tempdir = folder  # which is removed even if it is killed
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    progress = Progress(pipe)
    with suppress(Stopped):
        with progress.step("build"):
            model = entry.build()
        with progress.step("original"):
            form = entry.form(model)
            progress.tell(macs=count_macs(model, entry.inputs))
        small, cut = TOOLS[tool](model, entry, progress)
        with progress.step("forward"):
            if (found := entry.form(small.eval())) != form:
                raise ValueError(f"the output was {form} and is {found}")
            progress.tell(macs_after=count_macs(small, entry.inputs))
        if cut is not None and stage in ("reload", "onnx"):
            with suppress(Stopped):
                reload(small, cut, entry, progress)
        if stage == "onnx":
            onnx(small, model, entry, progress)


def ours(model: nn.Module, entry: Entry, progress: Progress) -> tuple[nn.Module, Cut]:
    goal = parse_rate(0.5)
    with progress.step("analysis"):
        channels = analyse(model, entry.inputs)
        progress.tell(groups=len(channels.groups), frozen=len(channels.frozen()), unknown=channels.unknown_operators())
    method = Magnitude(Job(model, entry.inputs, channels, goal, Classify()))  # copying the model is not timed
    with progress.step("selection"):
        strength = channels.split(method.scores(channels))

        def choose(channels: Channels) -> Mask:
            scores: Scores = np.concatenate([strength[group.name] for group in channels.groups] or [np.zeros(0)])
            try:
                return widths.choose(channels, scores, goal)
            except Infeasible:
                return Shelf(channels, scores, 1, Job.most).without_weakest(channels.atoms)

        mask = choose(channels)
        if mask.all():
            raise Infeasible("nothing can be pruned")
    del method  # and with it the copy
    with progress.step("surgery"):
        surgery.apply(model, surgery.plan(model, channels, mask))
    with progress.step("verification"):  # it prunes again, and keeps groups whole that break the model
        done = remove(model, channels, choose, entry.inputs)
        progress.tell(difference=done.difference, held=done.channels.held)
        if done.mask.all():
            raise Infeasible("all groups had to be held whole")
    return done.model, done.cut


def torch_pruning(model: nn.Module, entry: Entry, progress: Progress) -> tuple[nn.Module, None]:
    import torch_pruning as tp

    small = copy.deepcopy(model)
    with progress.step("analysis"):
        pruner = tp.pruner.BasePruner(
            small,
            tuple(entry.inputs.random(1)),
            importance=tp.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=0.5,
            round_to=8,
            ignored_layers=last_layers(small, entry.inputs),
            output_transform=lambda output: [tensor for tensor in tensors_in(output) if tensor.requires_grad],
        )
    with progress.step("surgery"):
        pruner.step()
    return small, None


def last_layers(model: nn.Module, inputs: Inputs) -> list[nn.Module]:
    """Convolutions and linear layers whose output the model returns, or from which no other layer is reached."""
    made: dict[Any, nn.Module] = {}  # node of the autograd graph -> the layer whose output it is

    def nearest(nodes: list[Any]) -> set[Any]:
        """Walk back to the nearest outputs of layers."""
        found, seen = set(), set()
        while nodes:
            node = nodes.pop()
            if node in made:
                found.add(node)
            elif node is not None and node not in seen:
                seen.add(node)
                nodes += [before for before, _ in node.next_functions]
        return found

    layers = [layer for layer in model.modules() if isinstance(layer, LAYERS)]
    hooks = [layer.register_forward_hook(lambda layer, _, output: made.update({output.grad_fn: layer})) for layer in layers]
    returned = nearest([tensor.grad_fn for tensor in tensors_in(model(*inputs.random(1)))])
    for hook in hooks:
        hook.remove()
    read = nearest([before for node in made for before, _ in node.next_functions])
    return list({made[node] for node in returned | (made.keys() - read)})


Tool = Callable[[nn.Module, Entry, Progress], tuple[nn.Module, Cut | None]]  # returns the pruned model
TOOLS: dict[str, Tool] = {"ours": ours, "torch-pruning": torch_pruning}


def reload(small: nn.Module, cut: Cut, entry: Entry, progress: Progress) -> None:
    """Write weights and plan, load them in a new process, and compare outputs."""
    folder = tempfile.mkdtemp()
    with progress.step("reload"), ProcessPoolExecutor(1, SPAWN) as fresh:
        save_model(Path(folder), small, Plan(entry.arch, {}, entry.inputs, (cut,)))
        torch.testing.assert_close(fresh.submit(reloaded_answers, folder, entry).result(), answers(small, entry))


def reloaded_answers(folder: str, entry: Entry) -> list[Tensor]:
    torch.set_num_threads(1)
    return answers(compressor.load(folder), entry)


@torch.no_grad()
def answers(model: nn.Module, entry: Entry) -> list[Tensor]:
    return tensors_in(model(*entry.inputs.random(1)))


def onnx(small: nn.Module, model: nn.Module, entry: Entry, progress: Progress) -> None:
    def run(network: nn.Module) -> None:
        file = Path(tempfile.mkdtemp()) / "model.onnx"
        export_onnx(network, entry.inputs, file)
        check_onnx(network, file, entry.inputs, batch_sizes=(1, 3))

    try:
        with progress.step("onnx"):
            run(small)
    except Stopped:
        with progress.step("onnx of the original"):
            run(model)


# The process that waits -----------------------------------------------------------------------------------------------


def measure(entry: Entry, tool: str, options: argparse.Namespace) -> Row:
    """The row of one model and one tool: the reports of its process until it ended or was killed."""
    row: Row = {"model": entry.name, "family": entry.family, "tool": tool, "stage": options.stage, "at": "start", "failed": {}}
    here, there = SPAWN.Pipe(duplex=False)
    folder = tempfile.TemporaryDirectory()
    process = SPAWN.Process(target=work, args=(entry, tool, options.stage, there, folder.name))
    process.start()
    there.close()
    assert process.pid is not None
    began = time.monotonic()
    try:
        while True:
            if here.poll(0.2):
                merge(row, here.recv())
            elif why := excess(process.pid, began, options):
                row["failed"][row["at"]] = why
                break
    except EOFError:  # it has ended
        process.join()
        if process.exitcode:
            row["failed"][row["at"]] = f"its process ended with status {process.exitcode}"
    finally:
        if process.is_alive():
            os.killpg(process.pid, signal.SIGKILL)
        process.join()
        folder.cleanup()
    return row


def merge(row: Row, facts: Row) -> None:
    for key, value in facts.items():
        row[key] = {**row.get(key, {}), **value} if isinstance(value, dict) else value


def excess(pid: int, began: float, options: argparse.Namespace) -> str | None:
    """Why the process must be killed: too much CPU time (or far too much wall time), or too much memory."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has just ended
        return None
    seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    gigabytes = int(fields[21]) * os.sysconf("SC_PAGE_SIZE") / 1e9
    if seconds > options.limit or time.monotonic() - began > 10 * options.limit:
        return f"stopped after {options.limit:g} s"
    if gigabytes > options.memory:
        return f"stopped above {options.memory:g} GB of memory"
    return None


def read(out: Path) -> dict[Key, Row]:
    """The rows of the file."""
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"] if out.exists() else []
    return {key_of(row): row for row in rows}


def key_of(row: Row) -> Key:
    """Two libraries may have a model of the same name."""
    return row["family"], row["model"], row["tool"]


def record(options: argparse.Namespace, row: Row, order: list[Key]) -> None:
    """Write a row to the file, in order."""
    with locked(options.out.resolve().parent):
        rows = {**read(options.out), key_of(row): row}
        figures = {
            "command": "python examples/benchmarks/zoo.py",
            "machine": {"cores": os.cpu_count(), "threads": 1},
            "limits": {"seconds": options.limit, "gigabytes": options.memory},
            "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
            "rows": sorted(rows.values(), key=lambda row: order.index(key_of(row))),
        }
        write_text(options.out, json.dumps(figures, indent=1) + "\n")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Another run of this script may write into the same file."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def line(row: Row) -> str:
    """The printed line of a model."""
    seconds = sum(row.get("seconds", {}).get(step, {}).get("cpu", 0) for step in ("analysis", "selection", "surgery"))
    cost = f"{row['macs_after'] / row['macs']:4.0%} of the MACs" if "macs_after" in row else ""
    faults = [f"{step}: {why}" for step, why in row["failed"].items()]
    faults += [f"{len(row['held'])} groups held"] if row.get("held") else []
    return f"{row['model']:36} {row['tool']:13} {seconds:6.2f} s  {cost:16}  {'; '.join(faults)}"


def summary(rows: list[Row]) -> str:
    """The number of models of each family that have passed each step."""
    lines = ["{:14} {:13} {:>6}".format("family", "tool", "models") + "".join(f" {step:>12}" for step in STEPS)]
    of_family = Counter((row["family"], row["tool"]) for row in rows)
    passed = Counter((row["family"], row["tool"], step) for row in rows for step in row.get("seconds", ()))
    for (family, tool), count in of_family.items():
        lines.append(f"{family:14} {tool:13} {count:6}" + "".join(f" {passed[family, tool, step]:12}" for step in STEPS))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", nargs="+", metavar="PATTERN", default=["*"], help="names of models or families")
    parser.add_argument("--tool", choices=[*TOOLS, "both"], default="both")
    parser.add_argument("--stage", choices=STAGES, default=STAGES[-1], help="the last stage to run")
    parser.add_argument("--again", action="store_true", help="measure models that the file already contains")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--limit", type=float, default=150, metavar="SECONDS")
    parser.add_argument("--memory", type=float, default=12, metavar="GB")
    parser.add_argument("--out", type=Path, default=HERE.with_suffix(".json"))
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    entries, known = zoo(), read(options.out)
    order = [(entry.family, entry.name, tool) for entry in entries for tool in TOOLS]
    tools = list(TOOLS) if options.tool == "both" else [options.tool]
    jobs = [
        (entry, tool)
        for entry in entries
        for tool in tools
        if any(fnmatch(name, pattern) for name in (entry.name, entry.family) for pattern in options.only)
        and (options.again or not reaches(known.get((entry.family, entry.name, tool)), options.stage))
    ]

    def run(job: tuple[Entry, str]) -> Row:
        row = measure(*job, options)
        record(options, row, order)
        print(line(row), flush=True)
        return row

    pool = ThreadPoolExecutor(options.jobs)
    try:
        rows = list(pool.map(run, jobs))
    finally:  # if interrupted, the running models are finished
        pool.shutdown(cancel_futures=True)
    print(f"\n{summary(rows)}")


def reaches(row: Row | None, stage: str) -> bool:
    return row is not None and STAGES.index(row["stage"]) >= STAGES.index(stage)


if __name__ == "__main__":
    main()
