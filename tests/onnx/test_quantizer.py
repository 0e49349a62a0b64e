"""Quantized ONNX files: which weights are quantized, that all images are used, and that results are reproducible."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn

from compressor.data import Batch
from compressor.errors import DataError, Infeasible, VerificationFailed
from compressor.onnx import quantizer
from compressor.onnx.export import export_onnx

SHAPE = (1, 8, 8)


class Convolutional(nn.Module):
    """[n, 1, 8, 8] -> logits [n, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        logits: Tensor = self.head((x + self.block(x)).mean((2, 3)))
        return logits


class Attentive(nn.Module):
    """A transformer for the same images: each of the eight rows is a token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 16)
        self.norm = nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.head = nn.Linear(16, 10)
        nn.init.normal_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x[:, 0])
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        logits: Tensor = self.head((x + self.mlp(x)).mean(1))
        return logits


@dataclass
class Network:
    """A network, and its ONNX file prepared for quantization."""

    model: nn.Module
    file: Path

    def difference(self, other: Path) -> float:
        """Largest difference over largest output, on random images.

        Graph optimisations are off, so operators run in float32 between layers: fused ones overflow on x86 without VNNI.
        """
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        images = torch.randn(6, *SHAPE, generator=torch.Generator().manual_seed(0))
        (found,) = onnxruntime.InferenceSession(other, options).run(None, {"images": images.numpy()})
        with torch.no_grad():
            right = self.model(images).numpy()
        return float(np.abs(found - right).max() / np.abs(right).max())


def ready(model: nn.Module, folder: Path) -> Network:
    export_onnx(model, SHAPE, folder / "float.onnx")
    quantizer.prepare(folder / "float.onnx", folder / "ready.onnx")
    return Network(model.eval(), folder / "ready.onnx")


@pytest.fixture(scope="module")
def convolutional(tmp_path_factory: pytest.TempPathFactory) -> Network:
    torch.manual_seed(0)
    return ready(Convolutional(), tmp_path_factory.mktemp("convolutional"))


@pytest.fixture(scope="module")
def attentive(tmp_path_factory: pytest.TempPathFactory) -> Network:
    torch.manual_seed(0)
    return ready(Attentive(), tmp_path_factory.mktemp("attentive"))


class Images(list[Batch]):
    """Like `Batches`: it has a length, and the same batches each time."""


def images(sizes: Sequence[float] = (1, 1, 1)) -> Any:
    """A batch of four random images for each of `sizes`, with its pixels multiplied by that."""
    generator, nothing = torch.Generator().manual_seed(0), torch.zeros(4, dtype=torch.int64)
    return Images(Batch(size * torch.randn(4, *SHAPE, generator=generator), nothing, nothing) for size in sizes)


def tensors(file: Path) -> dict[str, TensorProto]:
    return {tensor.name: tensor for tensor in onnx.load(file).graph.initializer}


def arrays(file: Path, kind: int) -> Iterator[np.ndarray]:
    return (numpy_helper.to_array(tensor) for tensor in tensors(file).values() if tensor.data_type == kind and tensor.dims)


# Layers ---------------------------------------------------------------------------------------------------------------


def test_nodes_are_found_by_the_layers_they_are_of(convolutional: Network, attentive: Network) -> None:
    found = quantizer.layers_of(convolutional.file, convolutional.model)
    assert {layer: [node.op_type for node in nodes] for layer, nodes in found.items()} == {
        "stem": ["Conv"],
        "block.0": ["Conv"],
        "head": ["Gemm"],
    }
    # Their weights were transposed, and lost their names.
    found = quantizer.layers_of(attentive.file, attentive.model)
    assert list(found) == ["embed", "attention", "attention.out_proj", "mlp.0", "mlp.2", "head"]


# INT8 with images -----------------------------------------------------------------------------------------------------


def test_weights_become_whole_numbers_with_a_scale_a_channel(convolutional: Network, tmp_path: Path) -> None:
    quantizer.to_int8(convolutional.file, tmp_path / "a.onnx", images())
    held = tensors(tmp_path / "a.onnx")
    assert held["block.0.weight_quantized"].data_type == TensorProto.INT8 and held["block.0.weight_scale"].dims == [8]
    assert quantizer.share_of(tmp_path / "a.onnx", "int8") > 0.8 and quantizer.share_of(convolutional.file, "int8") == 0
    assert 0 < convolutional.difference(tmp_path / "a.onnx") < 0.05
    quantizer.check_opens(tmp_path / "a.onnx")


def test_kept_nodes_stay_in_float(convolutional: Network, tmp_path: Path) -> None:
    (node,) = quantizer.layers_of(convolutional.file, convolutional.model)["head"]
    quantizer.to_int8(convolutional.file, tmp_path / "a.onnx", images(), [node.name])
    held = tensors(tmp_path / "a.onnx")
    assert held["head.weight"].data_type == TensorProto.FLOAT and "stem.weight_quantized" in held


def test_seven_bits_leave_room_for_sums(convolutional: Network, tmp_path: Path) -> None:
    largest = {}
    for reduced in (False, True):
        quantizer.to_int8(convolutional.file, tmp_path / "a.onnx", images(), reduce_range=reduced)
        weights = (array for array in arrays(tmp_path / "a.onnx", TensorProto.INT8) if array.ndim > 1)
        largest[reduced] = max(int(abs(array.astype(int)).max()) for array in weights)
    assert largest == {False: 127, True: 64}


@pytest.mark.parametrize("ranges", ["minmax", "entropy", "percentile"])
def test_every_batch_counts_and_the_same_batches_give_the_same_file(
    convolutional: Network, tmp_path: Path, ranges: quantizer.Ranges
) -> None:
    def scale(sizes: Sequence[float]) -> float:
        quantizer.to_int8(convolutional.file, tmp_path / "a.onnx", images(sizes), ranges=ranges)
        return float(numpy_helper.to_array(tensors(tmp_path / "a.onnx")["images_scale"]))

    small = scale((1, 1, 1))
    written = (tmp_path / "a.onnx").read_bytes()
    assert scale((3, 1, 1)) > 1.5 * small and scale((1, 1, 3)) > 1.5 * small
    scale((1, 1, 1))
    assert (tmp_path / "a.onnx").read_bytes() == written


def test_between_layers_of_a_transformer_nothing_is_quantized(attentive: Network, tmp_path: Path) -> None:
    quantizer.to_int8(attentive.file, tmp_path / "a.onnx", images())
    assert tensors(tmp_path / "a.onnx")["norm.weight"].data_type == TensorProto.FLOAT
    assert quantizer.share_of(tmp_path / "a.onnx", "int8") > 0.8
    assert 0 < attentive.difference(tmp_path / "a.onnx") < 0.1


# INT8 without images --------------------------------------------------------------------------------------------------


def test_without_images_linear_layers_alone_are_quantized(convolutional: Network, attentive: Network, tmp_path: Path) -> None:
    seven_bits = {"reduce_range": True}  # with 8 bits, products overflow on x86 without VNNI
    quantizer.to_int8(convolutional.file, tmp_path / "a.onnx", None, **seven_bits)
    graph = onnx.load(tmp_path / "a.onnx").graph
    assert [node.op_type for node in graph.node if node.op_type in ("Conv", "MatMulInteger")] == [
        "Conv",
        "Conv",
        "MatMulInteger",
    ]
    assert 0 < convolutional.difference(tmp_path / "a.onnx") < 0.05
    quantizer.to_int8(attentive.file, tmp_path / "b.onnx", None, **seven_bits)
    assert quantizer.share_of(tmp_path / "b.onnx", "int8") > 0.8 and 0 < attentive.difference(tmp_path / "b.onnx") < 0.1


def test_a_linear_layer_is_kept_although_it_is_taken_apart(convolutional: Network, tmp_path: Path) -> None:
    (node,) = quantizer.layers_of(convolutional.file, convolutional.model)["head"]
    quantizer.to_int8(convolutional.file, tmp_path / "a.onnx", None, [node.name])
    assert quantizer.share_of(tmp_path / "a.onnx", "int8") == 0


# FP16 -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["convolutional", "attentive"])
def test_half_the_width_is_half_the_bytes_and_nearly_the_same(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    network: Network = request.getfixturevalue(name)
    nodes = quantizer.layers_of(network.file, network.model)["head"]
    quantizer.to_fp16(
        network.file,
        tmp_path / "a.onnx",
    )
    assert quantizer.share_of(tmp_path / "a.onnx", "fp16") > 0.9 and 0 < network.difference(tmp_path / "a.onnx") < 0.005
    quantizer.to_fp16(network.file, tmp_path / "b.onnx", [node.name for node in nodes])
    smaller = (tmp_path / "a.onnx").read_bytes()
    quantizer.to_fp16(network.file, tmp_path / "a.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == smaller
    assert quantizer.share_of(tmp_path / "b.onnx", "fp16") < quantizer.share_of(tmp_path / "a.onnx", "fp16")


def test_norms_that_square_stay_in_float32(attentive: Network, tmp_path: Path) -> None:
    quantizer.to_fp16(attentive.file, tmp_path / "a.onnx")
    graph = onnx.load(tmp_path / "a.onnx").graph
    (norm,) = (node for node in graph.node if node.op_type == "LayerNormalization")
    casts = {node.output[0]: node.attribute[0].i for node in graph.node if node.op_type == "Cast"}
    assert casts[norm.input[0]] == TensorProto.FLOAT
    assert [entry.type.tensor_type.elem_type for entry in (*graph.input, *graph.output)] == [TensorProto.FLOAT] * 2


# Errors ---------------------------------------------------------------------------------------------------------------


def test_what_onnx_runtime_cannot_open_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"no network")
    with pytest.raises(VerificationFailed, match=r"cannot open the quantized network: keep layers.*\n.*INVALID"):
        quantizer.check_opens(tmp_path / "a.onnx")


def test_a_broken_image_is_told_as_such(convolutional: Network, tmp_path: Path) -> None:
    class Broken(Images):
        def __iter__(self) -> Iterator[Batch]:
            raise DataError("cat.jpeg is broken")
            yield

    with pytest.raises(DataError, match=r"cat\.jpeg is broken"):
        quantizer.to_int8(convolutional.file, tmp_path / "a.onnx", Broken(images()))


def test_what_it_cannot_quantize_is_told(convolutional: Network, tmp_path: Path) -> None:
    with pytest.raises(Infeasible, match="cannot quantize this network; keep layers in float32 with --keep PATTERN"):
        quantizer.to_int8(convolutional.file, tmp_path / "a.onnx", images(()))
    assert not list(tmp_path.iterdir())
