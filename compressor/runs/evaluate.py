"""Cost, accuracy and latency of a model, for `compress eval`; nothing is changed."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from compressor.checkpoint import kind_of
from compressor.checkpoint.plan import LARGEST_INPUT
from compressor.data import Data, check_classes
from compressor.errors import Infeasible, UsageError, VerificationFailed, printable
from compressor.network.cost import count_macs, count_params
from compressor.network.inputs import WHOLE, Input, Inputs
from compressor.network.outputs import Predict, torch_predict
from compressor.onnx.export import export_verified
from compressor.onnx.latency import latency
from compressor.onnx.runtime import onnx_predict, open_session
from compressor.report import Accuracy, Latency, formatting
from compressor.runs.evaluation_batch import evaluation_batch
from compressor.runs.reporting import described
from compressor.runs.sources import Images, Source, device_errors, open_both, pick_device
from compressor.tasks import metrics


@dataclass(frozen=True)
class Evaluation:
    """What `compress eval` measured; None where it does not apply."""

    model: str
    inputs: dict[str, list[int]]  # name -> shape of one sample
    macs: int | None
    params: int | None
    size_bytes: int | None
    torch: Accuracy | None
    onnx: Accuracy | None
    latency: list[Latency]
    notes: list[str]
    onnx_failure: str | None = None  # why the model could not be exported


def evaluate(
    source: Source, images: Images, asked: Inputs | None, device_name: str = "auto", *, as_onnx: bool = True
) -> Evaluation:
    """Accuracy, cost, file size and latency of a model, a run directory, or an ONNX file. Raises a CompressError.

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
        try:
            if as_onnx:
                notes = [*notes, *export_verified(model, inputs, file).notes]
                described(opened, file)
        except (Infeasible, VerificationFailed) as error:
            failure = " ".join(str(error).split())
        exported = as_onnx and failure is None
        with device_errors():
            on_device = _accuracy(torch_predict(model, device), data, device)
        return Evaluation(
            model=source.model,
            inputs=inputs.shapes,
            macs=macs,
            params=count_params(model),
            size_bytes=file.stat().st_size if exported else None,
            onnx=_accuracy(onnx_predict(file), data, torch.device("cpu")) if exported else None,
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
    given = Inputs.of(data.shape) if data is not None else asked
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
        torch=None,
        onnx=_accuracy(onnx_predict(path), data, torch.device("cpu")),
        latency=latency(path, inputs, seconds=2.0),
        notes=data.notes if data is not None else [],
    )


def _accuracy(predict: Predict, data: Data | None, device: torch.device) -> Accuracy | None:
    """On the test images. Raises DataError when the network does not predict the number of classes of `data`."""
    if data is None:
        return None
    answer = predict(torch.zeros(1, *data.shape))
    check_classes(data, answer.shape[-1])
    size = evaluation_batch(math.prod(data.shape), answer.numel())
    return metrics.accuracy(predict, data.batches("test", batch_size=size, device=device))
