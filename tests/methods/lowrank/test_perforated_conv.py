"""A perforated chain equals the dense one at kept positions, copies the nearest elsewhere, and has the cost of those kept."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from compressor.data import Batch
from compressor.methods.lowrank.perforated_conv import Grid, Kept, Places, Rows, impact, nearest, perforate, plane, strongest
from compressor.network.replacements import describe, make
from compressor.onnx.export import check_onnx, export_onnx
from compressor.tasks.classify import Classify

C, K, N = 3, 4, 5  # channels in, rank, channels out


def conv(inputs: int, outputs: int, kernel: object, stride: object = 1, padding: object = 0, **more: object) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding, **more)  # type: ignore[arg-type]


CHAINS = {
    "3x3": lambda: [conv(C, N, 3, 1, 1)],
    "5x3 strided, dilated": lambda: [conv(C, N, (5, 3), (2, 1), (2, 0), dilation=(1, 2), bias=False)],
    "1x1": lambda: [conv(C, N, 1)],
    "3x3, 1x1": lambda: [conv(C, K, 3, 2, 1, bias=False), conv(K, N, 1)],
    "1x1, 3x3": lambda: [conv(C, K, 1), conv(K, N, 3, 1, 1)],
    "3x1, 1x3": lambda: [conv(C, K, (3, 1), (2, 1), (1, 0), bias=False), conv(K, N, (1, 3), (1, 2), (0, 1))],
    "1x3, 3x1": lambda: [conv(C, K, (1, 3), 1, (0, 1)), conv(K, N, (3, 1), 1, (1, 0))],
    "1x1, 3x3, 1x1": lambda: [conv(C, K, 1), conv(K, K, 3, 1, 1), conv(K, N, 1)],
}
SIZES = [(8, 8), (11, 14)]
KEPT = [Grid(2, 1), Grid(2, 2), Grid(1, 3), Rows((1,)), Rows((0, 2, 3)), Places((0, 6, 7, 11))]


def chain(name: str) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*CHAINS[name]())


def macs(network: nn.Module, images: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        network(images)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kept", KEPT, ids=str)
@pytest.mark.parametrize("name", CHAINS)
def test_kept_places_are_the_dense_ones_and_others_copy_the_nearest(name: str, kept: Kept, size: tuple[int, int]) -> None:
    dense, images = chain(name), torch.randn(2, C, *size)
    expected = dense(images).flatten(2)
    mask = kept.mask(plane(dense, size))
    computed = mask.flatten().nonzero()[:, 0]
    found = perforate(dense, size, kept)(images)
    assert found.shape[2:] == mask.shape
    torch.testing.assert_close(found.flatten(2), expected[:, :, computed[nearest(mask)]], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.flatten(2)[:, :, computed], expected[:, :, computed], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "kept", [Grid(1, 1), Rows(tuple(range(7))), Places(tuple(range(77)))], ids=lambda kept: type(kept).__name__
)
@pytest.mark.parametrize("name", ["3x3", "3x3, 1x1", "1x1, 3x3"])
def test_all_that_is_kept_is_the_dense_chain(name: str, kept: Kept) -> None:
    dense = chain(name)
    size = (14, 22) if name == "3x3, 1x1" else (7, 11)
    images = torch.randn(2, C, *size)
    assert kept.share((7, 11)) == 1
    torch.testing.assert_close(perforate(dense, size, kept)(images), dense(images), atol=1e-5, rtol=1e-5)


def test_the_dense_chain_is_left_alone() -> None:
    dense = chain("3x3, 1x1")
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    perforated = perforate(dense, (8, 8), Grid(2, 2))
    with torch.no_grad():
        for weight in perforated.parameters():
            weight.zero_()
    assert dense[0].stride == (2, 2) and all(torch.equal(before[name], value) for name, value in dense.state_dict().items())


GRID, ROWS, PLACES = Grid(2, 2), Rows((0, 3, 4)), Places((0, 9, 20, 21, 63))  # of 8 x 8 positions: 4 x 4, 3 x 8, and 5


@pytest.mark.parametrize(
    ("factors", "kept", "expected"),
    [
        ([conv(C, N, 3, 1, 1)], GRID, 16 * 9 * C * N),
        ([conv(C, N, 3, 1, 1)], ROWS, 24 * 9 * C * N),
        ([conv(C, N, 3, 1, 1)], PLACES, 5 * 9 * C * N),
        ([conv(C, K, 3, 1, 1), conv(K, N, 1)], GRID, 16 * (9 * C * K + K * N)),
        ([conv(C, K, 3, 1, 1), conv(K, N, 1)], ROWS, 24 * (9 * C * K + K * N)),
        ([conv(C, K, 3, 1, 1), conv(K, N, 1)], PLACES, 5 * (9 * C * K + K * N)),
        ([conv(C, K, (3, 1), 1, (1, 0)), conv(K, N, (1, 3), 1, (0, 1))], GRID, 32 * 3 * C * K + 16 * 3 * K * N),
        ([conv(C, K, (3, 1), 1, (1, 0)), conv(K, N, (1, 3), 1, (0, 1))], ROWS, 24 * 3 * K * (C + N)),
        ([conv(C, K, (3, 1), 1, (1, 0)), conv(K, N, (1, 3), 1, (0, 1))], PLACES, 64 * 3 * C * K + 5 * 3 * K * N),
    ],
)
def test_multiply_adds_are_those_of_the_kept_places(factors: list[nn.Conv2d], kept: Kept, expected: int) -> None:
    assert macs(perforate(nn.Sequential(*factors), (8, 8), kept), torch.randn(1, C, 8, 8)) == expected


@pytest.mark.parametrize("kept", [GRID, Grid(3, 1), ROWS, PLACES], ids=str)
def test_a_description_makes_the_same_chain_again(kept: Kept) -> None:
    perforated, images = perforate(chain("3x1, 1x3"), (15, 15), kept), torch.randn(2, C, 15, 15)
    again = make(json.loads(json.dumps(describe(perforated))))
    again.load_state_dict(perforated.state_dict())
    assert torch.equal(again(images), perforated(images))


@pytest.mark.parametrize("kept", [GRID, ROWS, PLACES], ids=str)
def test_a_kept_place_collects_the_gradients_of_all_that_copy_it(kept: Kept) -> None:
    dense, images, weights = chain("1x1"), torch.randn(1, C, 8, 8), torch.randn(1, N, 8, 8)
    perforated = perforate(dense, (8, 8), kept)
    (perforated(images) * weights).sum().backward()
    mask = kept.mask((8, 8))
    collected = torch.zeros(N, int(mask.sum())).index_add(1, nearest(mask), weights[0].flatten(1))  # [out, kept]
    expected = collected @ images[0].flatten(1)[:, mask.flatten()].T  # [out, in]
    found = next(perforated.parameters()).grad
    assert found is not None
    torch.testing.assert_close(found.reshape(N, C), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kept", [GRID, Grid(3, 3), ROWS, PLACES], ids=str)
def test_onnx_runtime_answers_the_same(kept: Kept, tmp_path: Path) -> None:
    network = nn.Sequential(
        perforate(chain("3x3"), (9, 9), kept),
        nn.ReLU(),
        perforate(nn.Sequential(conv(N, 3, 3, 1, 1)), (9, 9), kept),
        nn.Flatten(),
    )
    export_onnx(network, (C, 9, 9), tmp_path / "model.onnx")
    assert set(check_onnx(network, tmp_path / "model.onnx", (C, 9, 9))) == {"1", "2", "3"}


@pytest.mark.parametrize(
    "factors",
    [
        [conv(4, 4, 3, padding=1, groups=2)],
        [conv(C, N, 3, padding=1, padding_mode="reflect")],
        [conv(C, N, 3, padding="same")],
        [conv(C, N, 3), conv(N, N, 3)],
        [conv(C, N, 3), nn.ReLU()],
    ],
)
def test_what_cannot_be_perforated_is_an_error(factors: list[nn.Module]) -> None:
    with pytest.raises(ValueError):
        perforate(nn.Sequential(*factors), (8, 8), Grid(2, 2))


def test_the_nearest_of_two_at_the_same_distance_is_the_first() -> None:
    assert nearest(torch.tensor([[True, False, True, False]])).tolist() == [0, 0, 1, 1]
    assert nearest(torch.tensor([[False, True], [False, False], [True, False]])).tolist() == [0, 0, 1, 0, 1, 1]
    with pytest.raises(ValueError, match="at least one"):
        nearest(torch.zeros(2, 2, dtype=torch.bool))


# --- impact ----------------------------------------------------------------------------------------------------------


class Weighed(nn.Module):
    """[n, 1, 1, 3] -> logits [n, 2], (a x) . (1, 2, 3) and 0: by hand, the gradient at a x is (p - y) (1, 2, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(1, 1, 1, bias=False)
        nn.init.constant_(self.conv.weight, 0.5)
        self.relu = nn.ReLU(inplace=True)
        self.norm = nn.BatchNorm2d(1)
        self.dropout = nn.Dropout(0.9)

    def forward(self, x: Tensor) -> Tensor:
        u = self.relu(self.conv(x))
        score = (self.dropout(self.norm(u)) * torch.tensor([1.0, 2.0, 3.0])).sum((1, 2, 3))
        return torch.stack([score, torch.zeros_like(score)], 1)


@pytest.mark.parametrize("frozen", [False, True])
def test_impact_is_the_mean_size_of_output_times_gradient(frozen: bool) -> None:
    model = Weighed().train()
    model.requires_grad_(not frozen)
    images = torch.tensor([[1.0, -1, 2], [3, 0, 1], [0, 1, 0]]).reshape(3, 1, 1, 3)
    batch = Batch(images, torch.tensor([0, 1, 0]), torch.arange(3))
    slices = [Batch(images[i:j], batch.targets[i:j], batch.indices[i:j]) for i, j in ((0, 2), (2, 3))]
    found = impact(model, ["conv"], slices, Classify())["conv"]
    u = 0.5 * images[:, 0, 0]  # [n, 3]
    scale = 1 / (1 + 1e-5) ** 0.5
    weights = torch.tensor([1.0, 2, 3]) * scale
    errors = torch.sigmoid((u.relu() * weights).sum(1)) - torch.tensor([1.0, 0, 1])
    expected = (errors[:, None] * weights * u.relu()).abs().mean(0)
    torch.testing.assert_close(found, expected[None].double(), atol=1e-6, rtol=1e-5)
    assert model.training and model.dropout.training and model.conv.weight.grad is None
    assert model.norm.num_batches_tracked == 0 and not model.conv._forward_hooks


def test_the_strongest_are_kept_and_of_equal_ones_the_first() -> None:
    worth = torch.tensor([[1.0, 5, 1], [0, 9, 0], [2, 2, 2]])
    assert strongest(worth, "places", 0.34) == Places((1, 4, 6))
    assert strongest(worth, "places", 0.5) == Places((1, 4, 6, 7))
    assert strongest(worth, "rows", 0.67) == Rows((0, 1))
    assert strongest(worth, "rows", 0.01) == Rows((1,))
    assert strongest(torch.ones(10, 10), "places", 0.29).share((10, 10)) == pytest.approx(0.29)
