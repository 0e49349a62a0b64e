"""Post-training quantization of an ONNX file to INT8 or FP16, with ONNX Runtime's quantizer and converter.

`to_int8` is static with images: the range of every activation is calibrated beforehand (QuantizeLinear and DequantizeLinear
pairs). Without images it is dynamic: the ranges of the inputs of linear layers are computed for each batch. `to_fp16` converts
to half precision.

Choices made here, with the reason:

- Activations are unsigned and weights signed, with one scale for each output channel, as ONNX Runtime recommends for x86.
  Signed activations were slower than float32 there (docs/results.md); on ARM both work.
- Convolutional networks are quantized throughout. Networks with layer norms, such as transformers, have outliers in their
  activations, so only convolutions and products with weights are quantized, not the operators between them.
- Dynamic quantization excludes convolutions: ONNX Runtime has no fast kernels for them, and advises against it.
- Layer, instance and group norms and GELU stay in float32 in an FP16 network: squares overflow in the norms, and with either in
  FP16, ONNX Runtime 1.31 crashed on vision transformers.

The same network, images and settings give the same file, byte for byte.
"""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir
from onnx import NodeProto, TensorProto, numpy_helper
from torch import nn

from compressor.data import Batches
from compressor.errors import CompressError, Infeasible, OutputError, VerificationFailed, first_line
from compressor.files import write_whole
from compressor.network.inputs import call
from compressor.onnx.export import quiet
from compressor.onnx.runtime import by_name, open_session
from compressor.version import __version__

Precision = Literal["int8", "fp16"]
Ranges = Literal["minmax", "entropy", "percentile"]

LINEAR = ("Gemm", "MatMul")
WEIGHTED = ("Conv", "ConvTranspose", *LINEAR)  # operators that multiply by weights
WIDE = ("LayerNormalization", "InstanceNormalization", "GroupNormalization", "Gelu")  # operators that stay in float32 in FP16
SHORT = {"int8": TensorProto.INT8, "fp16": TensorProto.FLOAT16}  # the type of quantized weights

FATAL, WARNING = 4, 2  # ONNX Runtime's log levels


def layers_of(file: Path, model: nn.Module) -> dict[str, list[NodeProto]]:
    """Layer of `model` -> the nodes of its ONNX file `file` that multiply by its weights.

    A weight is found by its name, or by its values if the exporter has transposed it. A node whose weights belong to no layer
    is listed under its own name; nodes that multiply two activations are omitted.
    """
    names = {name: name.rpartition(".")[0] for name, _ in model.named_parameters()}
    values = {
        _digest(parameter.detach().cpu().float().numpy()): names[name]
        for name, parameter in model.named_parameters()
        if parameter.dim() == 2
    }
    graph = onnx.load(file).graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    found: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        constant = [weights[name] for name in node.input if name in weights]
        if node.op_type in WEIGHTED and constant:
            owner = next((names[tensor.name] for tensor in constant if tensor.name in names), None)
            owner = owner or _owner(constant, values) or node.name
            found.setdefault(owner, []).append(node)
    return found


def _owner(constant: Sequence[TensorProto], values: Mapping[str, str]) -> str | None:
    arrays = [numpy_helper.to_array(tensor) for tensor in constant]
    seen = (values.get(_digest(turned)) for array in arrays if array.ndim == 2 for turned in (array.T, array))
    return next((owner for owner in seen if owner is not None), None)


def _digest(array: npt.NDArray[Any]) -> str:
    return hashlib.sha256(repr(array.shape).encode() + np.ascontiguousarray(array).tobytes()).hexdigest()


def prepare(file: Path, into: Path) -> None:
    """Write the float network of `file` to `into`, prepared for ONNX Runtime's quantizer: simplified, with inferred shapes.

    Raises Infeasible when that fails.
    """
    from onnxruntime.quantization.shape_inference import quant_pre_process

    open_session(file)  # imports ONNX Runtime without its warnings
    try:
        with _quiet_runtime():
            quant_pre_process(str(file), str(into), auto_merge=True)
    except Exception as error:
        raise Infeasible(f"ONNX Runtime cannot prepare this network for quantization.\n{first_line(error)}") from error


def to_int8(
    file: Path,
    into: Path,
    images: Batches | None,
    keep: Sequence[str] = (),
    *,
    ranges: Ranges = "minmax",
    reduce_range: bool = False,
) -> None:
    """Write the prepared network of `file` in INT8 to `into`; the nodes named in `keep` stay in float32.

    `images` are the calibration images, with one batch at a time in memory; without them, convolutions stay in float32.
    `ranges` is the calibration method for the range of an activation: its minimum and maximum, the range with the nearest
    distribution (entropy), or the range of all but one in 100,000 values (percentile). `reduce_range` uses 7 bits for weights,
    for x86 processors without VNNI, where sums of 8-bit products can overflow.
    Raises Infeasible when ONNX Runtime cannot quantize the network, DataError when an image is broken, and OutputError when the
    file cannot be written.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_dynamic, quantize_static

    proto = onnx.load(file)
    shared: dict[str, Any] = {"weight_type": QuantType.QInt8, "per_channel": True, "reduce_range": reduce_range}
    if images is None:
        # ONNX Runtime first splits linear layers into a product, with a name of its own, and a sum.
        excluded = [*keep, *(f"{name}_MatMul" for name in keep)]
        _rewrite(
            into,
            lambda out: quantize_dynamic(file, out, op_types_to_quantize=[*LINEAR], nodes_to_exclude=excluded, **shared),
        )
        return
    transformer = any(node.op_type == "LayerNormalization" for node in proto.graph.node)
    methods = {
        "minmax": CalibrationMethod.MinMax,
        "entropy": CalibrationMethod.Entropy,
        "percentile": CalibrationMethod.Percentile,
    }
    _rewrite(
        into,
        lambda out: quantize_static(
            file,
            out,
            Reader([entry.name for entry in proto.graph.input], images, fixed_batch_of(proto)),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            op_types_to_quantize=[*WEIGHTED] if transformer else None,
            nodes_to_exclude=[*keep],
            calibrate_method=methods[ranges],
            # Calibrate in strides of one batch: otherwise entropy and percentile keep the activations of all images. Products
            # of two activations, as in attention, are not quantized.
            extra_options={"CalibStridedMinMax": 1, "MatMulConstBOnly": True},
            **shared,
        ),
    )


def fixed_batch_of(proto: onnx.ModelProto) -> int | None:
    """The batch size that the network was exported for; None if it takes any."""
    return proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value or None


class Reader:
    """Passes calibration images to ONNX Runtime, batch by batch: a `CalibrationDataReader`. `names` are those of the inputs.

    If the batch size is `fixed`, `images` has batches of that size, and the last one is filled up with its last image.
    """

    def __init__(self, names: Sequence[str], images: Batches, fixed: int | None = None) -> None:
        self.names, self.images, self.fixed = names, images, fixed
        self._left, self._now = iter(images), 0

    def __len__(self) -> int:
        return len(self.images)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Set the number of batches of the next stride; strides are consecutive."""
        self._now = end_index - start_index

    def get_next(self) -> dict[str, npt.NDArray[Any]] | None:
        if not self._now:
            return None
        self._now -= 1
        batch: dict[str, npt.NDArray[Any]] = call(partial(by_name, self.names), next(self._left).inputs)  # [n, ...]
        if self.fixed is not None:
            batch = {name: array[np.minimum(np.arange(self.fixed), len(array) - 1)] for name, array in batch.items()}
        return batch


def to_fp16(file: Path, into: Path, keep: Sequence[str] = ()) -> None:
    """Write the prepared network of `file` in FP16 to `into`; the nodes named in `keep` stay in float32.

    Inputs and outputs stay in float32. Raises Infeasible when ONNX Runtime cannot convert the network, and OutputError when the
    file cannot be written.
    """
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    def write(out: Path) -> None:
        blocked = [*DEFAULT_OP_BLOCK_LIST, *WIDE]
        proto = convert_float_to_float16(onnx.load(file), keep_io_types=True, op_block_list=blocked, node_block_list=[*keep])
        # The converter casts a weight once for each of its consumers, under one and the same name.
        once = {tuple(node.output): node for node in proto.graph.node}
        del proto.graph.node[:]
        proto.graph.node.extend(once.values())
        network = onnx_ir.from_proto(proto)
        network.graph.sort()  # the converter puts casts after their consumers
        onnx_ir.save(network, out)

    _rewrite(into, write)


def _rewrite(into: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make the file, then move it to `into` without the metadata that inference does not need."""
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "made.onnx"
        try:
            with _quiet_runtime():
                write(made)
                onnx.checker.check_model(made, full_check=True)
                proto = onnx.load(made)
        except CompressError:  # of the images
            raise
        except OSError as error:
            raise OutputError(f"{folder}: the temporary files of quantization cannot be written: {error.strerror}.") from error
        except Exception as error:
            raise Infeasible(
                "ONNX Runtime cannot quantize this network; keep layers in float32 with --keep PATTERN.\n" + first_line(error)
            ) from error
    del proto.graph.value_info[:], proto.metadata_props[:]
    proto.producer_name, proto.producer_version = "compressor", __version__
    write_whole(into, lambda unfinished: onnx.save_model(proto, unfinished))


def share_of(file: Path, precision: Precision) -> float:
    """The fraction of weights and other constants in the ONNX network of `file` that have this precision, 0 to 1."""
    sizes = [(tensor.data_type, int(np.prod(tensor.dims))) for tensor in onnx.load(file).graph.initializer]
    return sum(size for kind, size in sizes if kind == SHORT[precision]) / sum(size for _, size in sizes)


def check_opens(file: Path) -> None:
    """Open the ONNX file in another process. Raises VerificationFailed when ONNX Runtime refuses it, or crashes.

    ONNX Runtime has ended in a segmentation fault for networks of mixed precision.
    """
    code = "import sys, onnxruntime; onnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])"
    done = subprocess.run([sys.executable, "-P", "-c", code, str(file)], capture_output=True, text=True)
    if done.returncode:
        how = f"It crashes (signal {-done.returncode})." if done.returncode < 0 else done.stderr.strip().splitlines()[-1][:300]
        raise VerificationFailed(
            f"ONNX Runtime cannot open the quantized network: keep layers in float32 with --keep PATTERN.\n{how}"
        )


@contextlib.contextmanager
def _quiet_runtime() -> Iterator[None]:
    """Suppress all prints and logs, including those of native code."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(FATAL)
    try:
        with quiet():
            yield
    finally:
        onnxruntime.set_default_logger_severity(WARNING)
