"""Images in tiles: maps are those of whole images wherever the margin covers the receptive field, and placed exactly."""

import re

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.errors import UsageError
from compressor.network.outputs import torch_predict
from compressor.network.tiles import in_tiles, spans


def noise(height: int, width: int, n: int = 2) -> Tensor:
    return torch.randint(-9, 10, (n, 3, height, width), generator=torch.Generator().manual_seed(0)).float()


def conv(side: int) -> nn.Conv2d:
    """With whole weights, so that sums are exact in any order."""
    layer = nn.Conv2d(3, 4, side, padding=side // 2)
    for number, weight in enumerate(layer.parameters()):
        nn.init.constant_(weight, number + 1)
    return layer


class Seen:
    """A prediction that keeps the sizes that it is called with."""

    def __init__(self, network: nn.Module) -> None:
        self.network, self.sizes = network, list[tuple[int, ...]]()

    def __call__(self, images: Tensor) -> Tensor:
        self.sizes.append(tuple(images.shape[2:]))
        with torch.no_grad():
            found: Tensor = self.network(images)
        return found


def test_where_tiles_begin_and_what_is_kept_of_them() -> None:
    assert spans(20, 8) == [(0, 0, 7), (6, 7, 13), (12, 13, 20)]
    assert spans(21, 8) == [(0, 0, 7), (6, 7, 13), (12, 13, 19), (13, 19, 21)]
    assert spans(8, 8) == [(0, 0, 8)] and spans(9, 8) == [(0, 0, 7), (1, 7, 9)]
    assert spans(10, 4) == [(0, 0, 4), (4, 4, 8), (6, 8, 10)]  # an eighth of 4 is no whole pixel


@pytest.mark.parametrize(("length", "side"), [(100, 16), (97, 33), (1000, 512), (65, 64), (7, 3), (40, 1)])
def test_every_pixel_is_kept_once_with_its_margin(length: int, side: int) -> None:
    kept = [pixel for _, first, last in spans(length, side) for pixel in range(first, last)]
    assert kept == list(range(length))
    for start, first, last in spans(length, side):
        assert 0 <= start <= length - side
        assert first == 0 or first - start >= side // 8
        assert last == length or start + side - last >= side // 8


@pytest.mark.parametrize("size", [(20, 31), (8, 30), (5, 30), (9, 9)])
def test_maps_are_those_of_the_whole_image_if_the_margin_covers_the_receptive_field(size: tuple[int, int]) -> None:
    images, seen = noise(*size), Seen(conv(3))
    assert in_tiles(seen, (8, 8))(images).equal(conv(3)(images))
    assert set(seen.sizes) == {(min(8, size[0]), 8)}, "all tiles have one size"


def test_maps_differ_beside_the_seams_alone_if_it_does_not() -> None:
    images = torch.ones(1, 3, 8, 20)
    gap = (in_tiles(Seen(conv(5)), (8, 8))(images) - conv(5)(images)).abs().amax((0, 1, 2))
    assert gap.nonzero().flatten().tolist() == [6, 7, 12, 13]  # a column of zeros is seen in place of 8, 5, 14 and 11
    assert (gap[6], gap[7]) == (15, 15)  # 3 channels x 5 rows of ones that lie outside


@pytest.mark.parametrize(
    ("network", "tile", "size"),
    [
        (nn.Sequential(nn.Conv2d(3, 12, 1), nn.PixelShuffle(2)), (8, 16), (30, 41)),
        (nn.Upsample(scale_factor=3), (7, 7), (20, 9)),
        (nn.AvgPool2d(8), (64, 64), (72, 136)),
        (nn.Conv2d(3, 2, 2, 2), (16, 32), (50, 34)),
    ],
    ids=["2 times", "3 times", "an eighth", "a half"],
)
def test_maps_of_other_sizes_are_placed_exactly(network: nn.Module, tile: tuple[int, int], size: tuple[int, int]) -> None:
    images, seen = noise(*size), Seen(network)
    found = in_tiles(seen, tile)(images)
    torch.testing.assert_close(found, network(images).detach(), atol=1e-5, rtol=0)
    assert len(seen.sizes) > 1


def test_an_image_of_one_tile_is_passed_as_it_is() -> None:
    images, given = noise(16, 12), []
    answer = in_tiles(lambda found: given.append(found) or found, (16, 16))(images)
    assert answer is images and len(given) == 1 and given[0] is images
    assert in_tiles(len, None) is len


def test_a_network_on_its_device_is_called_in_tiles() -> None:
    model = nn.Sequential(conv(3), nn.Dropout())
    images = noise(20, 20)
    assert in_tiles(torch_predict(model, "cpu"), (8, 8))(images).equal(torch_predict(model, "cpu")(images))


@pytest.mark.parametrize(
    ("network", "tile", "size", "complaint"),
    [
        (nn.AvgPool2d(8), (32, 32), (64, 64), "maps have 1/8 of the image's size, and 32 is not divisible"),
        (nn.AvgPool2d(8), (64, 64), (64, 68), "the side of an image, 68 pixels, is not divisible:\ngive --pad-to 8"),
        (nn.AvgPool2d(4, ceil_mode=True), (32, 32), (30, 40), "for 30x32 pixels the network outputs 3x8x8, no whole multiple"),
        (nn.Conv2d(3, 4, 3), (32, 32), (64, 64), "for 32x32 pixels the network outputs 4x30x30, no whole multiple or fraction"),
        (nn.Upsample(scale_factor=(1, 2)), (32, 32), (64, 64), "outputs 3x32x64"),
        (nn.Flatten(), (8, 8), (9, 9), "the network outputs 192 for an image, but tiles need a map: omit --tile"),
    ],
)
def test_maps_that_cannot_be_placed_are_refused(
    network: nn.Module, tile: tuple[int, int], size: tuple[int, int], complaint: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(complaint)) as caught:
        in_tiles(network, tile)(noise(*size))
    assert str(caught.value).count("\n") <= 1


def test_a_blended_seam_would_be_seen() -> None:
    """The row and column of each output of a network that adds its own mean tell which tile it is from."""
    images = torch.arange(20.0)[None, None, None].expand(1, 1, 8, 20)
    means = in_tiles(lambda tile: F.avg_pool2d(tile, 8).expand_as(tile), (8, 8))(images)
    assert means[0, 0, 0].tolist() == [3.5] * 7 + [9.5] * 6 + [15.5] * 7
