"""MAC counts of published tables, in both conventions: whole filters, and fractional channel counts.

Papers that prune all layers at the same rate multiply each width by the kept fraction r, a real number, and count convolutions:
the output of a convolution has the fraction r of its channels, and so has its input, unless it is the residual stream, which
keeps its width. `widths.macs_at` counts in this way under `--residual scatter`.

One difference is by design. If the first stage has no projection (all ResNets here but the 50), the first block of the papers
consumes the remaining filters of the stem, while the residual stream has all of its channels. Here the filters of the stem are
first scattered into the residual stream, which the first block consumes like every other block: its first convolution costs a
factor 1 / r more. `AT_STEM` names the layers that the tables count in the other way.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torchvision
from resnet import ResNet  # found through the line above
from torch import nn

from compressor.channels import Channels, Mask, analyse
from compressor.methods.widths import choose, hold, macs_at
from compressor.training.goal import parse_target

CIFAR, IMAGENET = (3, 32, 32), (3, 224, 224)
PROJECTIONS = ["*downsample.0"]  # papers do not prune them
AT_STEM = ("layer1.0.conv1",)


def scattered(model: Callable[[], nn.Module], shape: tuple[int, int, int], keep: list[str]) -> Channels:
    with torch.device("meta"):
        return hold(analyse(model(), shape, "scatter"), keep)


def papers_cut(channels: Channels, gone: float, at_stem: tuple[str, ...] = (), left_out: tuple[str, ...] = ()) -> float:
    """Per cent of the MACs removed, as counted in the papers; `left_out` are layers that they do not count."""
    before = channels.macs.by_layer(channels.all_kept())
    after = channels.macs.by_layer(np.full(channels.atoms, 1 - gone))
    cost = sum(macs * (1 - gone if layer in at_stem else 1) for layer, macs in after.items() if layer not in left_out)
    return 100 * (1 - cost / sum(macs for layer, macs in before.items() if layer not in left_out))


def whole(channels: Channels, gone: float) -> Mask:
    """The mask that prunes this fraction of the filters of every layer, rounded down."""
    return choose(channels, np.zeros(channels.atoms), parse_target(f"filters={gone:.0%}"))


def whole_cost(channels: Channels, mask: Mask, at_stem: tuple[str, ...] = ()) -> tuple[float, float]:
    """MACs and parameters with whole filters, if the layers `at_stem` consume the remaining filters of the stem."""
    macs, params = channels.macs.by_layer(mask), channels.params.by_layer(mask)
    (stem, *_) = channels.split(mask).values()
    for layer in at_stem:
        macs[layer] *= stem.mean()
        params[layer] *= stem.mean()
    return sum(macs.values()), sum(params.values())


def whole_cut(channels: Channels, gone: float, at_stem: tuple[str, ...] = ()) -> float:
    macs, _ = whole_cost(channels, whole(channels, gone), at_stem)
    return 100 * (1 - macs / channels.macs.total(channels.all_kept()))


# CIFAR ----------------------------------------------------------------------------------------------------------------

DEPTHS = (20, 32, 56, 110)
TABLE = {  # per cent of the filters -> per cent of the MACs, for each of DEPTHS; those of 30 and 40 % are published
    10: (15.24, 14.93, 14.74, 14.62),
    20: (29.31, 28.77, 28.42, 28.21),
    30: (42.22, 41.51, 41.06, 40.78),
    40: (53.96, 53.16, 52.63, 52.31),
    50: (64.55, 63.70, 63.16, 62.83),
    60: (73.96, 73.16, 72.63, 72.31),
    70: (82.22, 81.51, 81.06, 80.78),
    80: (89.31, 88.77, 88.42, 88.21),
}


@pytest.fixture(scope="module")
def cifar() -> dict[int, Channels]:
    """The ResNets of these depths."""
    return {depth: scattered(lambda depth=depth: ResNet(depth), CIFAR, []) for depth in DEPTHS}


@pytest.mark.parametrize("gone", TABLE)
def test_the_table_of_the_cifar_resnets(cifar: dict[int, Channels], gone: int) -> None:
    cuts = [papers_cut(channels, gone / 100, AT_STEM, left_out=("linear",)) for channels in cifar.values()]
    assert [round(cut, 2) for cut in cuts] == list(TABLE[gone])


def test_their_full_cost(cifar: dict[int, Channels]) -> None:
    full = [channels.macs.total(channels.all_kept()) / 1e6 for channels in cifar.values()]
    assert full == pytest.approx([40.55, 68.86, 125.5, 252.9], rel=5e-4)


def test_with_whole_filters_about_two_points_less_go(cifar: dict[int, Channels]) -> None:
    assert [round(whole_cut(channels, 0.4, AT_STEM), 1) for channels in cifar.values()] == [51.7, 50.9, 50.4, 50.1]


def test_ours_are_smaller_by_the_first_block_that_reads_the_stream(cifar: dict[int, Channels]) -> None:
    """The difference to the tables is up to 1.4 points in ResNet-20, and smaller in deeper networks."""
    assert [round(whole_cut(channels, 0.4), 1) for channels in cifar.values()] == [50.3, 50.1, 50.0, 49.9]
    assert [round(100 * macs_at(channels, 0.4), 1) for channels in cifar.values()] == [52.6, 52.3, 52.2, 52.1]


@pytest.mark.parametrize(("depth", "cuts"), [(56, [14.6, 28.3, 40.8, 52.4, 62.9])])
def test_parameters_of_their_convolutions(cifar: dict[int, Channels], depth: int, cuts: list[float]) -> None:
    table = cifar[depth].params
    names = {name for name, module in ResNet(depth).named_modules() if isinstance(module, nn.Conv2d)}

    def cost(gone: float) -> float:
        by_layer = table.by_layer(np.full(cifar[depth].atoms, 1 - gone))
        return sum(count * (1 - gone if layer in AT_STEM else 1) for layer, count in by_layer.items() if layer in names)

    assert [round(100 * (1 - cost(gone / 10) / cost(0)), 1) for gone in (1, 2, 3, 4, 5)] == cuts


# ImageNet -------------------------------------------------------------------------------------------------------------


def resnet50_v1() -> nn.Module:
    """The original layout: the stride of a stage is in the first convolution of its first block, not in the second."""
    model = torchvision.models.resnet50()
    for stage in (model.layer2, model.layer3, model.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    return model


@pytest.mark.parametrize(
    ("name", "giga", "cuts"), [("resnet18", 1.814, [41.7, 53.3]), ("resnet34", 3.664, [41.1, 52.7])], ids=["18", "34"]
)
def test_the_table_of_resnets_18_and_34(name: str, giga: float, cuts: list[float]) -> None:
    channels = scattered(getattr(torchvision.models, name), IMAGENET, PROJECTIONS)
    assert channels.macs.total(channels.all_kept()) / 1e9 == pytest.approx(giga, abs=5e-4)
    assert [round(papers_cut(channels, gone, AT_STEM), 1) for gone in (0.3, 0.4)] == cuts


def test_the_table_of_resnet_50_is_of_its_first_layout() -> None:
    """Its stem is not in a residual stream, so there is no difference. 42.2 and 53.5: FPGM and PGMPF; 41.8: SFP."""
    channels = scattered(resnet50_v1, IMAGENET, PROJECTIONS)
    macs = channels.macs.by_layer(channels.all_kept())
    assert (sum(macs.values()) - macs["fc"]) / 1e9 == pytest.approx(3.856, abs=5e-4)
    assert [round(papers_cut(channels, gone, left_out=("fc",)), 1) for gone in (0.3, 0.4)] == [42.2, 53.5]
    wide = macs["layer1.0.downsample.0"] / (sum(macs.values()) - macs["fc"])  # its input is the full width of the stem
    assert [round(papers_cut(channels, gone, left_out=("fc",)) - 100 * wide * gone, 1) for gone in (0.3, 0.4)] == [41.8, 53.0]


def test_resnet_50_as_torchvision_has_it() -> None:
    channels = scattered(torchvision.models.resnet50, IMAGENET, PROJECTIONS)
    assert channels.macs.total(channels.all_kept()) / 1e9 == pytest.approx(4.089, abs=5e-4)
    assert [round(100 * macs_at(channels, gone), 1) for gone in (0.3, 0.4)] == [41.5, 52.7]


@pytest.mark.parametrize(
    ("name", "gone", "at_stem", "giga", "mega", "cuts"),
    [
        ("resnet18", 0.3, AT_STEM, 1.063, 7.09, (41.4, 39.4)),
        ("resnet34", 0.3, AT_STEM, 2.170, 13.13, (40.8, 39.8)),
        ("resnet34", 0.4, AT_STEM, 1.748, 10.67, (52.3, 51.1)),
        ("resnet50", 0.3, (), 2.404, 15.95, (41.2, 37.6)),
        ("resnet50", 0.4, (), 1.946, 13.37, (52.4, 47.7)),
    ],
)
def test_whole_filters_of_torchvisions_resnets(
    name: str, gone: float, at_stem: tuple[str, ...], giga: float, mega: float, cuts: tuple[float, float]
) -> None:
    channels = scattered(getattr(torchvision.models, name), IMAGENET, PROJECTIONS)
    macs, params = whole_cost(channels, whole(channels, gone), at_stem)
    assert (round(macs / 1e9, 3), round(params / 1e6, 2)) == (giga, mega)
    full = [table.total(channels.all_kept()) for table in (channels.macs, channels.params)]
    assert (round(100 * (1 - macs / full[0]), 1), round(100 * (1 - params / full[1]), 1)) == cuts


# VGG ------------------------------------------------------------------------------------------------------------------

WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)


def vgg16() -> nn.Module:
    """VGG-16 for CIFAR: 13 convolutions with batch norm, five poolings, one linear layer."""
    layers: list[nn.Module] = []
    for number, (inputs, width) in enumerate(zip((3, *WIDTHS), WIDTHS, strict=False)):
        layers += [nn.Conv2d(inputs, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        if number in (1, 3, 6, 9, 12):
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10))


def test_vgg_16() -> None:
    channels = scattered(vgg16, CIFAR, [])
    full = channels.all_kept()
    assert (round(channels.macs.total(full) / 1e6, 1), round(channels.params.total(full) / 1e6, 2)) == (313.2, 14.72)
    cuts = [round(100 * macs_at(channels, gone / 10), 2) for gone in (1, 2, 3, 4, 5)]
    assert cuts == [18.95, 35.91, 50.88, 63.86, 74.86]


def test_half_of_the_first_and_the_last_six_layers_of_vgg_16() -> None:
    """The configuration of Li et al. (ICLR 2017, arXiv 1608.08710) removes 34.2 % of the MACs and 64 % of the parameters."""
    channels = scattered(vgg16, CIFAR, [])
    halved = [group for number, group in enumerate(channels.groups) if number == 0 or number >= 7]
    mask = channels.join({group.name: np.arange(group.size) < group.size // 2 for group in halved})
    left = [table.total(mask) / table.total(channels.all_kept()) for table in (channels.macs, channels.params)]
    assert [round(100 * (1 - share), 1) for share in left] == [34.2, 64.3]
