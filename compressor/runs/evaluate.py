"""Questions about a model that change nothing: what it costs, how good it is, what could be cut, and its ONNX form."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from compressor.channels import Channels, Heads, Residual, analyse
from compressor.channels.drawing import FORMATS, Drawing, copies, draw, readers, shares
from compressor.checkpoint import kind_of, load_model
from compressor.checkpoint.plan import LARGEST_INPUT
from compressor.data import Data, check_classes
from compressor.errors import UsageError, printable
from compressor.files import write_text, write_whole
from compressor.methods import widths
from compressor.network import cost
from compressor.network.cost import Predict
from compressor.network.inputs import WHOLE, Input, Inputs
from compressor.onnx.export import check_onnx, export_onnx
from compressor.onnx.runtime import open_session
from compressor.report import Accuracy, Latency, figures, read_report
from compressor.runs.sources import Images, Source, open_both, pick_device
from compressor.runs.stages import EVALUATION_BATCH
from compressor.training.method import Job


def load(run: str | Path, arch: str | None = None, arch_args: Mapping[str, object] | None = None) -> nn.Module:
    """The small network of a run directory (or any MODEL), in eval mode on the CPU; nothing pickled is opened.

    `arch` and `arch_args` name the code that builds the original, when the run does not lie below code that is trusted.
    Raises a CompressError.
    """
    return load_model(str(run), arch=arch, arch_args=arch_args).model


@dataclass(frozen=True)
class Exported:
    """A network that was written as ONNX; by batch size, how far its answers are from PyTorch's, where that was seen now."""

    arch: str
    inputs: dict[str, list[int]]  # name -> shape of one sample
    notes: list[str]
    differences: dict[str, float]


def export_checked(source: Source, asked: Inputs | None, out: Path) -> Exported:
    """Write a model as ONNX and check it; of a run, the file that was checked when it was made. Raises a CompressError."""
    run = Path(source.model)
    if (run / "report.json").is_file() and source.arch is None and asked is None:
        report = read_report(run)
        write_whole(out, lambda path: shutil.copyfile(run / "model.onnx", path))
        return Exported(report.arch, report.inputs, [f"a copy of {run / 'model.onnx'}, checked when it was made"], {})
    opened = open_both(source, Images(), asked)
    model, inputs = opened.loaded.model, opened.inputs
    cost.count_macs(model, inputs)  # says in one line when the model does not run on such images
    differences: dict[str, float] = {}

    def write(path: Path) -> None:
        export_onnx(model, inputs, path)
        differences.update(check_onnx(model, path, inputs))

    write_whole(out, write)
    return Exported(opened.loaded.arch, inputs.shapes, opened.notes, differences)


@dataclass(frozen=True)
class Evaluation:
    """What `compress eval` measured; None where it does not apply."""

    model: str
    inputs: dict[str, list[int]]  # name -> shape of one sample
    macs: int | None
    params: int | None
    size_bytes: int
    torch: Accuracy | None
    onnx: Accuracy | None
    latency: list[Latency]
    notes: list[str]


def evaluate(source: Source, images: Images, asked: Inputs | None, device_name: str = "auto") -> Evaluation:
    """Accuracy, cost, file size and latency of a model, a run directory, or an ONNX file. Raises a CompressError."""
    device = pick_device(device_name)
    path = Path(source.model)
    if path.is_file() and kind_of(path) == "onnx":
        return _evaluate_onnx(path, images, asked)
    opened = open_both(source, images, asked)
    model, inputs, data = opened.loaded.model, opened.inputs, opened.data
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        macs = cost.count_macs(model, inputs)
        export_onnx(model, inputs, file)
        return Evaluation(
            model=source.model,
            inputs=inputs.shapes,
            macs=macs,
            params=cost.count_params(model),
            size_bytes=file.stat().st_size,
            onnx=_accuracy(cost.onnx_predict(file), data, torch.device("cpu")),
            torch=_accuracy(cost.torch_predict(model, device), data, device),
            latency=cost.latency(file, inputs, seconds=2.0),
            notes=opened.notes,
        )


def _evaluate_onnx(path: Path, images: Images, asked: Inputs | None) -> Evaluation:
    entries = open_session(path).get_inputs()
    own = [tuple(entry.shape[1:]) for entry in entries]
    fixed = all(isinstance(size, int) for shape in own for size in shape)
    data = images.open(own[0][0] if fixed and own[0] else None, seed=0)
    given = Inputs.of(data.shape) if data is not None else asked
    if given is None and not fixed:
        raise UsageError(f"{path} takes images of several sizes: say with --input 3x224x224 which to measure, or give --data.")
    shapes = own if given is None else [entry.shape for entry in given.each]
    if given is None and sum(map(math.prod, own)) > LARGEST_INPUT:
        raise UsageError(
            f"{path} says that it takes images of {', '.join(map(figures.shape, own))}, which would fill the memory: "
            "say with --input what they are, if it is true."
        )
    if len(shapes) != len(own) or (fixed and shapes != own):
        raise UsageError(
            f"{path} takes images of {', '.join(map(figures.shape, own))}, and was to be given "
            f"{', '.join(map(figures.shape, shapes))}: set --size, or leave --input away."
        )
    whole = [next((kind for kind in WHOLE if entry.type == f"tensor({kind})"), None) for entry in entries]
    inputs = Inputs(tuple(Input(shape, dtype=kind) for shape, kind in zip(shapes, whole, strict=True)))
    return Evaluation(
        model=str(path),
        inputs={printable(entry.name): list(shape) for entry, shape in zip(entries, shapes, strict=True)},
        macs=None,
        params=None,
        size_bytes=path.stat().st_size,
        torch=None,
        onnx=_accuracy(cost.onnx_predict(path), data, torch.device("cpu")),
        latency=cost.latency(path, inputs, seconds=2.0),
        notes=data.notes if data is not None else [],
    )


def _accuracy(predict: Predict, data: Data | None, device: torch.device) -> Accuracy | None:
    """On the test images. Raises DataError when the network is not for as many classes as `data` has."""
    if data is None:
        return None
    check_classes(data, predict(torch.zeros(1, *data.shape)).shape[-1])
    return cost.accuracy(predict, data.batches("test", batch_size=EVALUATION_BATCH, device=device))


def look(
    source: Source, asked: Inputs | None, residual: Residual, heads: Heads = "width", graph: Path | None = None
) -> dict[str, Any]:
    """What `compress inspect` shows, as plain values; with `graph`, the drawing goes there. Raises a CompressError."""
    if graph is not None and graph.suffix not in FORMATS:
        known = ", ".join(FORMATS)
        raise UsageError(f"--graph {graph}: the ending says how it is written, and can be {known} (Mermaid, Graphviz).")
    opened = open_both(source, Images(), asked)
    channels = analyse(opened.loaded.model, opened.inputs, residual, heads)
    whole = channels.all_kept()
    macs, params = channels.macs.total(whole), channels.params.total(whole)
    least = widths.Shelf(channels, np.zeros(channels.atoms), 1, Job.most).without_weakest(channels.atoms)
    drawing = draw(channels)
    if graph is not None:
        write_text(graph, FORMATS[graph.suffix](drawing))
    return {
        "model": source.model,
        "arch": opened.loaded.arch,
        "notes": opened.notes,
        "inputs": opened.inputs.shapes,
        "macs": round(macs),
        "params": round(params),
        "groups": _groups(channels, drawing),
        "frozen": [asdict(row) for row in channels.frozen()],
        "unknown_operators": channels.unknown_operators(),
        "smallest": {"macs": channels.macs.total(least) / macs, "params": channels.params.total(least) / params},
    }


def _groups(channels: Channels, drawing: Drawing) -> list[dict[str, Any]]:
    """Each group, with the shares of the whole that go when all of it goes, and the first of those that are like it."""
    first_alike = {name: node.names[0] for node in drawing.nodes for name in node.names}
    share = shares(channels)
    return [
        {
            "name": group.name,
            "channels": group.size,
            "copies": copies(group),
            "layers": group.layers,
            "read_by": readers(group),
            "scatter": group.scatter,
            **asdict(share[group.name]),
            "alike": first_alike[group.name],
        }
        for group in channels.groups
    ]
