"""Size and cost in the published tables of low-rank papers, computed from shapes.

The ranks of the LRDKT networks are from the authors' published network files; the numbers are from their table. Their AlexNet
is that of Caffe: 96 filters of 11 x 11 in the first convolution, and two groups in the second, fourth and fifth, which the
factored network does not have. Parameters are weights, without biases.
"""

import pytest
import torch
import torchvision
from splits import SPLITS
from torch import nn

from compressor.methods.lowrank.factorable import cost, layers

IMAGENET = (3, 224, 224)

# GER: fully-connected layers at one rank ------------------------------------------------------------------------------


def fully_connected(network: str) -> list[nn.Linear]:
    with torch.device("meta"):
        model = torchvision.models.get_model(network)
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


def weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.dim() > 1)


def at(rank: int, layer: nn.Linear) -> int:
    return weights(SPLITS["linear"].chain(layer, rank))


@pytest.mark.parametrize(
    ("network", "full", "table", "break_even"),
    [
        (
            "alexnet",
            58.62,
            {512: (13.62, 4.3), 256: (6.81, 8.6), 128: (3.40, 17.2), 64: (1.70, 34.4), 32: (0.85, 68.9)},
            [2835.7, 2048.0, 803.8],
        ),
        (
            "vgg19",
            123.63,
            {512: (21.75, 5.7), 256: (10.87, 11.4), 128: (5.44, 22.7), 64: (2.72, 45.5), 32: (1.36, 91.0)},
            [3521.1, 2048.0, 803.8],
        ),
    ],
)
def test_fully_connected_layers_at_one_rank(
    network: str, full: float, table: dict[int, tuple[float, float]], break_even: list[float]
) -> None:
    """Millions of weights, the compression ratio, and the rank of each layer at which nothing is saved."""
    found = fully_connected(network)
    dense = sum(map(weights, found))
    assert dense / 1e6 == pytest.approx(full, abs=0.005)
    for rank, (millions, times) in table.items():
        left = sum(at(rank, layer) for layer in found)
        assert (left / 1e6, dense / left) == (pytest.approx(millions, abs=0.006), pytest.approx(times, abs=0.05))
    for layer, rank in zip(found, break_even, strict=True):
        assert layer.weight.numel() / at(1, layer) == pytest.approx(rank, abs=0.05)


# LRDKT: whole networks at one energy ----------------------------------------------------------------------------------


def alexnet() -> nn.Sequential:
    """Caffe's AlexNet without its groups: [n, 3, 227, 227] -> [n, 1000]."""
    return nn.Sequential(
        nn.Conv2d(3, 96, 11, stride=4), nn.MaxPool2d(3, 2),
        nn.Conv2d(96, 256, 5, padding=2), nn.MaxPool2d(3, 2),
        nn.Conv2d(256, 384, 3, padding=1),
        nn.Conv2d(384, 384, 3, padding=1),
        nn.Conv2d(384, 256, 3, padding=1), nn.MaxPool2d(3, 2),
        nn.Flatten(), nn.Linear(9216, 4096), nn.Linear(4096, 4096), nn.Linear(4096, 1000),
    )  # fmt: skip


def pooled(convolutions: nn.Module, width: int) -> nn.Sequential:
    """Global average pooling and one linear layer instead of the fully-connected ones."""
    return nn.Sequential(convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 1000))


def factored(model: nn.Module, shape: tuple[int, int, int], ranks: list[int]) -> tuple[int, int]:
    """Parameters and MACs with these ranks in the first layers, in execution order; the others are not factored."""
    read, _ = layers(model, shape)
    left, params, macs = iter(ranks), 0, 0
    for name, shapes in read.items():
        module = model.get_submodule(name)
        if rank := next(left, None):
            module = SPLITS["linear" if isinstance(module, nn.Linear) else "separable"].chain(module, rank)
        params, macs = params + weights(module), macs + cost(module, shapes).macs
    return params, macs


VGG_07 = [3, 9, 15, 27, 40, 49, 63, 88, 123, 156, 171, 165, 162]
VGG_05 = [2, 5, 10, 16, 22, 27, 33, 48, 62, 78, 92, 86, 85]
ALEX_07 = [18, 49, 103, 151, 111]


@pytest.mark.parametrize(
    ("network", "ranks", "published", "exact"),
    [
        ("alexnet", [*ALEX_07, 802, 723, 256], (18.7, 0.27), (18.77, 0.274)),
        ("alexnet GAP", ALEX_07, (1.1, 0.26), (1.12, 0.256)),
        ("vgg16", [*VGG_07, 778, 463, 228], (30.5, 2.43), (30.50, 2.41)),
        ("vgg16", [*VGG_05, 220, 141, 99], (9.5, 1.31), (9.57, 1.30)),
        ("vgg16 GAP", VGG_07, (3.3, 2.41), (3.35, 2.39)),
    ],
)
def test_networks_at_the_published_ranks(
    network: str, ranks: list[int], published: tuple[float, float], exact: tuple[float, float]
) -> None:
    """Millions of parameters, billions of MACs."""
    with torch.device("meta"):
        if network.startswith("vgg16"):
            model, shape, width = torchvision.models.vgg16(), IMAGENET, 512
        else:
            model, shape, width = alexnet(), (3, 227, 227), 256
        if network.endswith("GAP"):
            model = pooled(model.features if width == 512 else model[:8], width)
    found = factored(model, shape, ranks)
    assert (found[0] / 1e6, found[1] / 1e9) == (pytest.approx(exact[0], abs=0.006), pytest.approx(exact[1], abs=0.006))
    assert exact == (pytest.approx(published[0], rel=0.03), pytest.approx(published[1], rel=0.03))
