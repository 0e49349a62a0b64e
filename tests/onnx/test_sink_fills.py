"""In the ONNX file, feature maps are filled as late as possible, and the outputs do not change."""

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from compressor.methods.lowrank.perforated_conv import Grid, Kept, Rows, perforate
from compressor.network.replacements import Take
from compressor.onnx.export import check_onnx, export_onnx
from compressor.onnx.sink_fills import sink_fills

SHAPE = (4, 9, 9)
ROWS = Rows((1, 4, 5))


def perforated(kept: Kept) -> nn.Sequential:
    return perforate(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False)), SHAPE[1:], kept)


def norm() -> nn.BatchNorm2d:
    """A batch norm with random statistics and weights."""
    norm = nn.BatchNorm2d(4)
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(tensor)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    return norm


class Does(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Residual(nn.Module):
    def __init__(self, first: Kept, second: Kept) -> None:
        super().__init__()
        self.first = nn.Sequential(perforated(first), norm(), nn.ReLU())
        self.second = nn.Sequential(perforated(second), norm())

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return torch.relu(x + self.second(x)).flatten(1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return tmp_path / "model.onnx"


def operators(network: nn.Module, path: Path) -> list[str]:
    """Operators of the exported file, in order, after its outputs were compared with the network's."""
    export_onnx(network, SHAPE, path)
    check_onnx(network, path, SHAPE)
    return [node.op_type for node in ir.load(path).graph]


@pytest.mark.parametrize(
    ("kept", "before", "fills"),
    [
        (Grid(2, 2), [], ["Resize"]),
        (Grid(3, 3), [], ["Gather", "Gather"]),
        (ROWS, ["Pad", "Gather"], ["Gather"]),
    ],
    ids=str,
)
def test_norms_are_folded_and_activations_run_on_the_small_plane(
    kept: Kept, before: list[str], fills: list[str], path: Path
) -> None:
    found = operators(nn.Sequential(perforated(kept), norm(), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.Flatten()), path)
    assert found == [*before, "Conv", "Relu", *fills, "Conv", "Reshape"]


def test_fills_go_below_what_acts_on_each_place(path: Path) -> None:
    activations = (nn.ReLU6(), nn.Sigmoid(), nn.Hardswish(), nn.Hardsigmoid(), nn.Tanh(), nn.PReLU(4), nn.GELU(), nn.ELU())
    scaled = Does(lambda x: 2 - (x + 1) * torch.arange(1.0, 5).reshape(4, 1, 1) / 3)
    network = nn.Sequential(perforated(Grid(2, 2)), *activations, scaled, norm(), nn.Conv2d(4, 6, 1), nn.Flatten())
    found = operators(network, path)
    assert found[-3:] == ["Conv", "Resize", "Reshape"] and found.count("Resize") == 1


@pytest.mark.parametrize(
    ("fill", "other"),
    [
        (nn.Upsample((9, 9)), nn.Conv2d(4, 4, 3)),
        (nn.Upsample((9, 9)), nn.Conv2d(4, 4, 1, stride=2)),
        (nn.Upsample((9, 9)), nn.Softmax(3)),
        (nn.Upsample((9, 9)), Does(lambda x: x * torch.arange(9.0))),
        (nn.Upsample((9, 9)), nn.SiLU()),  # the sigmoid and the product both consume it
        (nn.Upsample((9, 9), mode="bilinear"), nn.ReLU()),
        (nn.Upsample((2, 2)), nn.ReLU()),
        (Take(2, [0, 3]), nn.ReLU()),
        (Take(1, [0, 0, 1, 2, 3]), nn.ReLU()),
    ],
)
def test_other_fills_stay_where_they_are(fill: nn.Module, other: nn.Module, path: Path) -> None:
    found = operators(nn.Sequential(nn.Conv2d(4, 4, 3, stride=2, padding=1), fill, other, nn.Flatten()), path)
    assert found[1] in ("Shape", "Gather")  # it follows the convolution: torch takes the size of a resize from a shape
    model = ir.load(path)
    assert not sink_fills(model)
    assert ir.to_proto(model) == ir.to_proto(ir.load(path))


def test_a_fill_with_two_readers_stays(path: Path) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.second = perforated(Grid(2, 2)), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return (x.relu() + self.second(x)).flatten(1)

    found = operators(Twice(), path)
    assert found.count("Resize") == 1 and found.index("Resize") < found.index("Relu")


@pytest.mark.parametrize(("kept", "fill"), [(Grid(2, 2), "Resize"), (Grid(3, 1), "Gather")], ids=str)
def test_fills_that_copy_alike_are_added_before(kept: Kept, fill: str, path: Path) -> None:
    found = operators(Residual(kept, kept), path)
    assert found[found.index("Add") :] == ["Add", "Relu", fill, "Reshape"]
    assert found.count(fill) == 2


@pytest.mark.parametrize(("first", "second"), [(Grid(2, 2), Grid(2, 1)), (ROWS, Rows((1, 4, 6)))], ids=str)
def test_fills_that_copy_otherwise_are_added_after(first: Kept, second: Kept, path: Path) -> None:
    found = operators(Residual(first, second), path)
    assert found[found.index("Add") :] == ["Add", "Relu", "Reshape"]


def test_a_gather_of_a_gather_is_one(path: Path) -> None:
    first, second = Take(2, [0, 0, 1, 3, 3, 4, 5, 6, 6, 7, 8]), Take(2, [10, 0, 0, 5])
    assert operators(nn.Sequential(first, nn.ReLU(), second, nn.Flatten()), path) == ["Relu", "Gather", "Reshape"]


def test_between_layers_on_rows_the_whole_plane_never_exists(path: Path) -> None:
    layers = (nn.Sequential(perforated(rows), norm(), nn.ReLU()) for rows in (ROWS, Rows((0, 8))))
    found = operators(nn.Sequential(*layers, nn.Flatten()), path)
    assert found == ["Pad", "Gather", "Conv", "Relu", "Pad", "Gather", "Conv", "Relu", "Gather", "Reshape"]
    shapes = [list(node.outputs[0].shape or ())[2:] for node in ir.load(path).graph if node.op_type == "Pad"]
    assert shapes == [[11, 9], [5, 9]]
