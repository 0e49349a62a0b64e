"""Cost, scores and latency of a model, for `compress eval`; nothing is changed."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from compressor.checkpoint import kind_of
from compressor.checkpoint.plan import LARGEST_INPUT
from compressor.data import Data, input_shape
from compressor.errors import Infeasible, UsageError, VerificationFailed, printable
from compressor.network.cost import count_macs, count_params
from compressor.network.inputs import WHOLE, Input, Inputs
from compressor.network.outputs import Predict, torch_predict
from compressor.onnx.export import export_verified
from compressor.onnx.latency import latency
from compressor.onnx.runtime import onnx_predict, open_session
from compressor.report import Latency, Score, formatting
from compressor.runs.evaluation_batch import MOST, batch_for
from compressor.runs.reporting import described
from compressor.runs.sources import Images, Source, device_errors, open_both, pick_device, task_of
from compressor.tasks import Task
from compressor.tasks.find import find_task


@dataclass(frozen=True)
class Evaluation:
    """What `compress eval` measured; None where it does not apply."""

    model: str
    inputs: dict[str, list[int]]  # name -> shape of one sample
    macs: int | None
    params: int | None
    size_bytes: int | None
    torch: list[Score]  # in PyTorch, the headline first; empty without data
    onnx: list[Score]  # in ONNX Runtime
    latency: list[Latency]
    notes: list[str]
    onnx_failure: str | None = None  # why the model could not be exported


def evaluate(
    source: Source, images: Images, asked: Inputs | None, device_name: str = "auto", *, as_onnx: bool = True
) -> Evaluation:
    """Scores, cost, file size and latency of a model, a run directory, or an ONNX file. Raises a CompressError.

    Size and latency are those of the model's ONNX file, and are not measured without `as_onnx` or if it cannot be exported.
    """
    device, path = pick_device(device_name), Path(source.model)
    if path.is_file() and kind_of(path) == "onnx":
        return _evaluate_onnx(path, images, asked)
    opened = open_both(source, images, asked)
    model, inputs, data = opened.loaded.model, opened.inputs, opened.data
    notes = opened.notes
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        macs, failure = count_macs(model, inputs), None
        task, together = task_of(opened, images, device), batch_for(model, inputs)
        try:
            if as_onnx:
                notes = [*notes, *export_verified(model, inputs, file).notes]
                described(opened, file)
        except (Infeasible, VerificationFailed) as error:
            failure = " ".join(str(error).split())
        exported = as_onnx and failure is None
        with device_errors():
            on_device = _scores(task, torch_predict(model, device), data, device, together)
        return Evaluation(
            model=source.model,
            inputs=inputs.shapes,
            macs=macs,
            params=count_params(model),
            size_bytes=file.stat().st_size if exported else None,
            onnx=_scores(task, onnx_predict(file), data, device, together) if exported else [],
            torch=on_device,
            latency=latency(file, inputs, seconds=2.0) if exported else [],
            notes=notes,
            onnx_failure=failure,
        )


def _evaluate_onnx(path: Path, images: Images, asked: Inputs | None) -> Evaluation:
    entries = open_session(path).get_inputs()
    own = [tuple(entry.shape[1:]) for entry in entries]
    fixed = all(isinstance(size, int) for shape in own for size in shape)
    data = images.open(own[0][0] if fixed and own[0] else None, seed=0)
    given = Inputs.of(input_shape(data)) if data is not None else asked
    if given is None and not fixed:
        raise UsageError(f"{path} has a dynamic input shape: give one, as in --input 3x224x224, or give --data.")
    shapes = own if given is None else [entry.shape for entry in given.each]
    if given is None and sum(map(math.prod, own)) > LARGEST_INPUT:
        raise UsageError(
            f"{path} declares images of {', '.join(map(formatting.shape, own))}, which would fill the memory: "
            "if that is their shape, give it with --input."
        )
    if len(shapes) != len(own) or (fixed and shapes != own):
        raise UsageError(
            f"{path} takes images of {', '.join(map(formatting.shape, own))}, but was given "
            f"{', '.join(map(formatting.shape, shapes))}: set --size, or omit --input."
        )
    whole = [next((kind for kind in WHOLE if entry.type == f"tensor({kind})"), None) for entry in entries]
    inputs = Inputs(tuple(Input(shape, dtype=kind) for shape, kind in zip(shapes, whole, strict=True)))
    return Evaluation(
        model=str(path),
        inputs={printable(entry.name): list(shape) for entry, shape in zip(entries, shapes, strict=True)},
        macs=None,
        params=None,
        size_bytes=path.stat().st_size,
        torch=[],
        onnx=_scores_of_file(path, images, data),
        latency=latency(path, inputs, seconds=2.0),
        notes=data.notes if data is not None else [],
    )


def _scores(task: Task, predict: Predict, data: Data | None, device: torch.device, size: int = MOST) -> list[Score]:
    """On the test images; none without targets to compare with."""
    if data is None or not task.labels:
        return []
    return task.measure(predict, data.batches("test", batch_size=size, device=device)).compute()


def _scores_of_file(path: Path, images: Images, data: Data | None) -> list[Score]:
    """Of an ONNX file. Raises DataError or UsageError when it and the data do not belong together."""
    if data is None:
        return []
    network = OnnxNetwork(path)
    inputs = Inputs.of(input_shape(data))
    task = find_task(images.task, network, inputs, data, torch.device("cpu"))
    task.check(network, data)
    return _scores(task, network.predict, data, torch.device("cpu"), batch_for(network, inputs))


class OnnxNetwork(nn.Module):
    """An ONNX file as a module, for inference on the CPU."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.predict = onnx_predict(path)

    def forward(self, *inputs: Tensor) -> Tensor:
        output: Tensor = self.predict(*inputs)
        return output
