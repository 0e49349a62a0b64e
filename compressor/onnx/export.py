"""Export a network as one ONNX file, and verify that its outputs equal those of the PyTorch module.

`export_onnx` uses PyTorch's exporter, which traces one forward pass, folds batch norms into the convolutions before them
and keeps the dimensions dynamic that the form of the file opens. `check_onnx` runs the file in ONNX Runtime and the module
in PyTorch, on the same images and with several batch sizes and sizes of images: a size that the network's code has fixed shows
only when another is tried. `export_verified` does both, for the most open form in which the file is right.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import Tensor, nn

from compressor.errors import Infeasible, UsageError, VerificationFailed, first_line
from compressor.files import write_whole
from compressor.network.copying import clone_network
from compressor.network.cost import weight_bytes
from compressor.network.inputs import AnyInputs, Inputs
from compressor.network.outputs import main_first
from compressor.onnx.form import SIDES, ExportForm, WishedForm, candidates, why
from compressor.onnx.runtime import fixed_batch, open_session, run_session
from compressor.onnx.sink_fills import sink_fills
from compressor.version import __version__

LARGEST = 2**31 - 1  # bytes in one ONNX file
UNIT = "inputs from 0 to 1"
MULTIPLE = 4.0  # of PyTorch's own rounding error, float32 against float64
MOST_ROUNDING = 1e-3  # from a larger one on, a comparison proves little


@dataclass(frozen=True)
class Exported:
    """A file that was written: its form, its differences from PyTorch, and `notes`, sentences on what it does not allow."""

    form: ExportForm
    differences: Differences
    notes: list[str]


def export_verified(
    model: nn.Module,
    inputs: AnyInputs,
    path: Path,
    wish: WishedForm | None = None,
    *,
    checked: bool = True,
    tolerance: float = 1e-4,
) -> Exported:
    """Write `model` to `path` in the most open form that can be written and, if it is `checked`, equals PyTorch.

    Raises Infeasible or VerificationFailed, that of the most open form, when there is none.
    """
    inputs = Inputs.of(inputs)
    failed: list[tuple[ExportForm, Exception]] = []
    for form, other in candidates(_inference_copy(model), inputs, wish or WishedForm()):
        differences = Differences({}, tolerance)
        try:
            export_onnx(model, inputs, path, form, other)
            if checked:
                images = inputs.images
                differences = check_onnx(model, path, inputs, images=images, form=form, other=other, tolerance=tolerance)
        except (Infeasible, VerificationFailed) as error:
            failed.append((form, error))
            continue
        notes = [f"the ONNX file takes {form} only; with {failed[0][0]}: {why(failed[0][1])}"] if failed else []
        return Exported(form, differences, notes)
    raise failed[0][1]


def export_onnx(
    model: nn.Module, inputs: AnyInputs, path: Path, form: ExportForm | None = None, other: Inputs | None = None
) -> None:
    """Write `model` to `path`, in eval mode and float32. The model itself is not changed.

    The input is `images` [batch, channels, height, width] with any batch size, or the inputs are named as in `Inputs.names`.
    The output is `logits`, or `output0`, `output1`, ... if the network returns several tensors, the logits first. `form` opens
    other dimensions; `other` are inputs of another size, if height or width are open.
    Batch norms that follow a convolution are folded into it.
    Raises Infeasible when the network cannot be written as ONNX, VerificationFailed when the exported file is not valid,
    and OutputError when it cannot be written to disk.
    """
    network = _inference_copy(model)
    if weight_bytes(network) > LARGEST:
        size = weight_bytes(network) / 1e9
        raise Infeasible(f"An ONNX file holds at most 2.1 GB, but the network's weights take {size:.1f} GB: compress it more.")
    proto = _convert(network, other or Inputs.of(inputs), form or ExportForm())

    def write(unfinished: Path) -> None:
        onnx.save_model(proto, unfinished)
        onnx.checker.check_model(unfinished, full_check=True)

    try:
        write_whole(path, write)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise VerificationFailed(f"PyTorch's exporter wrote an invalid ONNX file.\n{first_line(error)}") from error


def describe(path: Path, facts: Mapping[str, str]) -> None:
    """Write `facts` into the metadata of the ONNX file at `path`."""
    proto = onnx.load_model(path)
    for key, value in facts.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value
    write_whole(path, lambda unfinished: onnx.save_model(proto, unfinished))


class Differences(dict[str, float]):
    """The differences of `check_onnx`, and the largest one that is allowed."""

    def __init__(self, found: Mapping[str, float], tolerance: float) -> None:
        super().__init__(found)
        self.tolerance = tolerance

    @property
    def large(self) -> list[str]:
        """Those that are not allowed; NaN is not."""
        return [name for name, difference in self.items() if not difference <= self.tolerance]


def check_onnx(
    model: nn.Module,
    path: Path,
    inputs: AnyInputs,
    *,
    batch_sizes: Sequence[int] = (1, 2, 3),
    images: Tensor | None = None,
    form: ExportForm | None = None,
    other: Inputs | None = None,
    tolerance: float = 1e-4,
    seed: int = 0,
) -> Differences:
    """Compare the outputs of ONNX Runtime (the file at `path`) and PyTorch (`model`) for the same images on the CPU.

    The images are samples of `inputs`, one batch of each size, and `images` [n, channels, height, width] if given. Where the
    network amplifies rounding errors on normal noise, as in image restoration, the check is made on noise from 0 to 1. A
    network for which PyTorch's own float32 and float64 results differ by more than the tolerance may differ MULTIPLE times as
    much. A file of a fixed batch size is run at that size alone. If height or width are open, it is also run on `other`, inputs
    of another size, at two batch sizes.
    Returns the largest difference over the largest output, by batch size; that of `images` is called "images".
    Raises VerificationFailed when one is above `tolerance`, an output is NaN, or a dimension that `form` opens is fixed.
    """
    session, inputs, form = open_session(path), Inputs.of(inputs), form or ExportForm()
    size = fixed_batch(session)
    if size != form.batch:
        found = "any batch size" if size is None else f"a fixed batch size of {size}"
        wanted = "a dynamic batch size" if form.batch is None else f"a batch size of {form.batch}"
        raise VerificationFailed(f"{path} has {found}: export it again with {wanted}.")
    if form.batch is not None:
        batch_sizes = (form.batch,)
    network = _Flat(_inference_copy(model), inputs)
    samples = {str(n): inputs.random(n, seed=seed + n) for n in batch_sizes}
    if other is not None and form.sides:
        _, height, width = other.each[0].shape
        samples |= {f"{n} of {height} x {width}": other.random(n, seed=seed + n) for n in batch_sizes[:2]}
    if images is not None:
        samples["images"] = [images.detach().cpu().float()]
    differences = Differences({name: _compared(session, path, network, batch) for name, batch in samples.items()}, tolerance)
    is_noise = inputs.images is None and inputs.range is None
    if is_noise and any(_rounding(network, samples[name]) > tolerance for name in differences.large if name != "images"):
        for name in [name for name in samples if name != "images"]:
            n, of = len(samples[name][0]), inputs if name.isdecimal() else other
            assert of is not None  # it is what the samples of another size are from
            del differences[name]
            samples[f"{name} ({UNIT})"] = batch = of.random(n, seed=seed + n, unit=True)
            differences[f"{name} ({UNIT})"] = _compared(session, path, network, batch)
    own = [gap for name in differences.large if (gap := _rounding(network, samples[name])) <= MOST_ROUNDING]
    differences.tolerance = max(tolerance, *(MULTIPLE * gap for gap in own), 0.0)
    for name in differences.large:
        told = f"a batch of {len(samples[name][0])} images{''.join(name.partition(' ')[1:])}"
        why = "Is it the ONNX file of another network?"
        if (rounding := _rounding(network, samples[name])) > MOST_ROUNDING:
            why = (
                f"The network amplifies rounding errors: in PyTorch, float32 and float64 differ by {rounding:.2g}. "
                "Fine-tune it, give inputs like those that it is for, or use --no-onnx."
            )
        raise VerificationFailed(
            f"{path} differs from PyTorch by {differences[name]:.2g} of the largest output for {told}; "
            f"at most {differences.tolerance:.1g} is allowed.\n{why}"
        )
    return differences


def _compared(session: Any, path: Path, network: _Flat, samples: Sequence[Tensor]) -> float:
    """The largest difference between ONNX Runtime and PyTorch. Raises VerificationFailed if ONNX Runtime fails."""
    with torch.inference_mode():
        expected = network(*samples)
    try:
        by_name = {name: sample.numpy() for name, sample in zip(network.inputs.names, samples, strict=True)}
        found = [torch.from_numpy(array) for array in run_session(session, by_name)]
    except UsageError as error:
        raise VerificationFailed(f"{path} fails for a batch of {len(samples[0])} images.\n{first_line(error)}") from error
    return _difference(expected, found)


def _rounding(network: nn.Module, samples: Sequence[Tensor]) -> float:
    """The difference between PyTorch in float32 and in float64; 0 if the network cannot run in float64.

    Infinite if there are values that are not finite.
    """
    precise = clone_network(network).double()
    try:
        with torch.inference_mode():
            exact = precise(*(sample.double() if sample.is_floating_point() else sample for sample in samples))
            plain = network(*samples)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # the network's code relies on float32
        return 0.0
    gap = _difference([tensor.float() if tensor.is_floating_point() else tensor for tensor in exact], plain)
    return gap if math.isfinite(gap) else math.inf


class _Flat(nn.Module):
    """A network that takes all inputs by position and returns a list of tensors, as an ONNX network does."""

    def __init__(self, network: nn.Module, inputs: Inputs) -> None:
        super().__init__()
        self.network, self.inputs = network, inputs

    def forward(self, *samples: Tensor) -> list[Tensor]:
        return main_first(self.inputs.call(self.network, samples))


def _convert(network: nn.Module, inputs: Inputs, form: ExportForm) -> onnx.ModelProto:
    samples = inputs.random(form.batch or 2)  # the exporter would treat an open batch of one as a constant
    dims = {0: "batch"} if form.batch is None else {}
    dims |= {2 + SIDES.index(side): side for side in form.sides}
    try:
        with quiet():
            program = torch.onnx.export(
                _Flat(network, inputs).eval(),
                tuple(samples),
                dynamo=True,
                verbose=False,
                input_names=inputs.names,
                dynamic_shapes=(tuple(dict(dims) for _ in samples),) if dims else None,
            )
    except Exception as error:
        raise Infeasible(f"PyTorch's exporter cannot write this network as ONNX with {form}.\n{first_line(error)}") from error
    assert program is not None  # it is None only for the old exporter
    if sink_fills(program.model):
        with quiet():
            program.optimize()  # batch norms may now directly follow their convolutions
    graph = program.model.graph
    for output, name in zip(graph.outputs, form.outputs(len(graph.outputs)), strict=True):
        output.name = name
    for weight in list(graph.initializers.values()):
        weight.name = str(weight.name).removeprefix("network.")  # as in the state dict
    # The exporter stores a source location for each node: not needed here, and larger than a small layer.
    ClearMetadataAndDocStringPass()(program.model)
    proto = program.model_proto
    proto.producer_name, proto.producer_version = "compressor", __version__
    return proto


def _inference_copy(model: nn.Module) -> nn.Module:
    # Without gradients, export is a tenth faster.
    return clone_network(model).cpu().float().eval().requires_grad_(False)


def _difference(expected: list[Tensor], found: list[Tensor]) -> float:
    """Largest difference over largest output, of the worst output; infinite if the shapes differ."""
    if [e.shape for e in expected] != [f.shape for f in found]:
        return float("inf")
    pairs = [(e.float(), f) for e, f in zip(expected, found, strict=True) if e.numel()]
    shares = [(e - f).abs().max() / e.abs().max().clamp_min(1e-12) for e, f in pairs]
    return float(torch.stack([torch.zeros(()), *shares]).max())  # unlike Python's, torch's maximum is NaN if one is


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress logs, warnings and prints of PyTorch's exporter and ONNX Runtime's quantizer; errors are still raised."""
    disabled, heard = logging.root.manager.disable, io.StringIO()
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(heard), contextlib.redirect_stderr(heard):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
