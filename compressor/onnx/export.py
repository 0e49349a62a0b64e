"""Export a network as one ONNX file, and verify that its outputs equal those of the PyTorch module.

`export_onnx` uses PyTorch's exporter, which traces one forward pass, folds batch norms into the convolutions before them
and keeps the batch size dynamic. `check_onnx` runs the file in ONNX Runtime and the module in PyTorch, on the same images
and with several batch sizes: a batch size that the network's code has fixed shows only when another is tried.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

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
from compressor.onnx.runtime import open_session, run_session
from compressor.onnx.sink_fills import sink_fills
from compressor.version import __version__

LARGEST = 2**31 - 1  # bytes in one ONNX file


def export_onnx(model: nn.Module, inputs: AnyInputs, path: Path) -> None:
    """Write `model` to `path`, in eval mode and float32. The model itself is not changed.

    The input is `images` [batch, channels, height, width] with any batch size, or the inputs are named as in `Inputs.names`.
    The output is `logits`, or `output0`, `output1`, ... if the network returns several tensors, the logits first.
    Batch norms that follow a convolution are folded into it.
    Raises Infeasible when the network cannot be written as ONNX, VerificationFailed when the exported file is not valid,
    and OutputError when it cannot be written to disk.
    """
    network = _inference_copy(model)
    if weight_bytes(network) > LARGEST:
        size = weight_bytes(network) / 1e9
        raise Infeasible(f"An ONNX file holds at most 2.1 GB, but the network's weights take {size:.1f} GB: compress it more.")
    proto = _convert(network, Inputs.of(inputs))

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


def check_onnx(
    model: nn.Module,
    path: Path,
    inputs: AnyInputs,
    *,
    batch_sizes: Sequence[int] = (1, 2, 3),
    images: Tensor | None = None,
    tolerance: float = 1e-4,
    seed: int = 0,
) -> dict[str, float]:
    """Compare the outputs of ONNX Runtime (the file at `path`) and PyTorch (`model`) for the same images on the CPU.

    The images are random, one batch of each size, and `images` [n, channels, height, width] if given. Returns the largest
    difference over the largest output, by batch size; that of `images` is called "images".
    Raises VerificationFailed when one is above `tolerance`, an output is NaN, or the batch size is not dynamic.
    """
    session, inputs = open_session(path), Inputs.of(inputs)
    fixed = {entry.shape[0] for entry in session.get_inputs() if isinstance(entry.shape[0], int)}
    if fixed:
        size = min(fixed)
        raise VerificationFailed(f"{path} has a fixed batch size of {size}: export it again with a dynamic batch size.")
    network = _Flat(_inference_copy(model), inputs)
    batches = {str(n): inputs.random(n, seed=seed + n) for n in batch_sizes}
    if images is not None:
        batches["images"] = [images.detach().cpu().float()]
    differences = {}
    for name, samples in batches.items():
        n = len(samples[0])
        with torch.inference_mode():
            expected = network(*samples)
        try:
            found = [torch.from_numpy(array) for array in run_session(session, [sample.numpy() for sample in samples])]
        except UsageError as error:
            raise VerificationFailed(f"{path} fails for a batch of {n} images.\n{first_line(error)}") from error
        differences[name] = _difference(expected, found)
        if not differences[name] <= tolerance:  # NaN must not pass
            raise VerificationFailed(
                f"{path} differs from PyTorch by {differences[name]:.2g} of the largest output for a batch of {n} images; "
                f"at most {tolerance:.1g} is allowed.\nIs it the ONNX file of another network?"
            )
    return differences


class _Flat(nn.Module):
    """A network that takes all inputs by position and returns a list of tensors, as an ONNX network does."""

    def __init__(self, network: nn.Module, inputs: Inputs) -> None:
        super().__init__()
        self.network, self.inputs = network, inputs

    def forward(self, *samples: Tensor) -> list[Tensor]:
        return main_first(self.inputs.call(self.network, samples))


def _convert(network: nn.Module, inputs: Inputs) -> onnx.ModelProto:
    samples = inputs.random(2)  # the exporter would treat a batch of one as a constant
    try:
        with quiet():
            program = torch.onnx.export(
                _Flat(network, inputs).eval(),
                tuple(samples),
                dynamo=True,
                verbose=False,
                input_names=inputs.names,
                dynamic_shapes=(tuple({0: "batch"} for _ in samples),),
            )
    except Exception as error:
        raise Infeasible(
            f"PyTorch's exporter cannot write this network as ONNX with a dynamic batch size.\n{first_line(error)}"
        ) from error
    assert program is not None  # it is None only for the old exporter
    if sink_fills(program.model):
        with quiet():
            program.optimize()  # batch norms may now directly follow their convolutions
    graph = program.model.graph
    for i, output in enumerate(graph.outputs):
        output.name = f"output{i}" if len(graph.outputs) > 1 else "logits"
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
