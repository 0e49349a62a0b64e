"""Questions about a model that change nothing: what it costs, how good it is, what could be cut, and its ONNX form."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from compressor import budget, measure
from compressor.channels import Residual, analyse
from compressor.checkpoint import Loaded, kind_of, load_model
from compressor.export import check_onnx, export_onnx
from compressor.report import Accuracy, Latency
from compressor.run import EVALUATION_BATCH, ONNX_TOLERANCE, Wish
from compressor.sources import Images, Source, pick_device, settle_input


def load(run: str | Path, arch: str | None = None) -> nn.Module:
    """The small network of a run directory (or any MODEL), in eval mode on the CPU; nothing pickled is opened.

    `arch` names the code that builds the original, when the run does not lie below code that is trusted. Raises a
    CompressError.
    """
    return load_model(str(run), arch=arch).model


def export_checked(
    source: Source, asked: tuple[int, int, int] | None, out: Path
) -> tuple[Loaded, tuple[int, int, int], dict[str, float]]:
    """Write a model as ONNX and check it. Returns the model, the image shape, and the differences by batch size."""
    loaded = source.load()
    shape, _ = settle_input(loaded, None, asked)
    analyse(loaded.model, shape)  # says in one line when the model does not run on such images
    unchecked = out.with_name(f".{out.name}.unchecked")
    try:
        export_onnx(loaded.model, shape, unchecked)
        differences = check_onnx(loaded.model, unchecked, shape, tolerance=ONNX_TOLERANCE)
        unchecked.replace(out)
    finally:
        unchecked.unlink(missing_ok=True)
    return loaded, shape, differences


@dataclass(frozen=True)
class Evaluation:
    """What `compress eval` measured; None where it does not apply."""

    model: str
    macs: int | None
    params: int | None
    size_bytes: int
    torch: Accuracy | None
    onnx: Accuracy | None
    latency: list[Latency]


def evaluate(source: Source, images: Images, asked: tuple[int, int, int] | None, device_name: str = "auto") -> Evaluation:
    """Accuracy, cost, file size and latency of a model, a run directory, or an ONNX file."""
    device, data = pick_device(device_name), images.open(seed=0)

    def test() -> Any:
        assert data is not None
        return data.batches("test", batch_size=EVALUATION_BATCH, device=device)

    path = Path(source.model)
    if path.is_file() and kind_of(path) == "onnx":
        found = measure.accuracy(measure.onnx_predict(path), test()) if data is not None else None
        shape = data.shape if data is not None else asked
        times = measure.latency(path, shape, seconds=2.0) if shape is not None else []
        return Evaluation(source.model, None, None, path.stat().st_size, None, found, times)
    loaded = source.load()
    shape, _ = settle_input(loaded, data, asked)
    analyse(loaded.model, shape)  # says in one line when the model does not run on such images
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        export_onnx(loaded.model, shape, file)
        return Evaluation(
            source.model,
            measure.count_macs(loaded.model, shape),
            measure.count_params(loaded.model),
            file.stat().st_size,
            measure.accuracy(measure.torch_predict(loaded.model, device), test()) if data is not None else None,
            measure.accuracy(measure.onnx_predict(file), test()) if data is not None else None,
            measure.latency(file, shape, seconds=2.0),
        )


def look(source: Source, asked: tuple[int, int, int] | None, residual: Residual) -> dict[str, Any]:
    """What `compress inspect` shows, as plain values."""
    loaded = source.load()
    shape, origin = settle_input(loaded, None, asked)
    channels = analyse(loaded.model, shape, residual)
    whole = channels.all_kept()
    macs, params = channels.macs.total(whole), channels.params.total(whole)
    own = channels.split(np.arange(channels.atoms))
    groups = []
    for group in channels.groups:
        without = whole.copy()
        without[own[group.name]] = False
        groups.append(
            {
                "name": group.name,
                "channels": group.size,
                "layers": group.layers,
                "scatter": group.scatter,
                "macs": 1 - channels.macs.total(without) / macs,
                "params": 1 - channels.params.total(without) / params,
            }
        )
    least = budget.Shelf(channels, np.zeros(channels.atoms), 1, Wish.most).without_weakest(channels.atoms)
    return {
        "model": source.model,
        "arch": loaded.arch,
        "notes": loaded.notes,
        "input_shape": list(shape),
        "input_from": origin,
        "macs": round(macs),
        "params": round(params),
        "groups": groups,
        "frozen": [asdict(row) for row in channels.frozen()],
        "unknown_operators": channels.unknown_operators(),
        "smallest": {"macs": channels.macs.total(least) / macs, "params": channels.params.total(least) / params},
    }
