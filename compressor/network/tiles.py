"""Large images in tiles: a network is called on overlapping parts of an image, and its maps are put together.

    length 20, side 8, margin 1 (an eighth):    0......78
                                                      6......14
                                                            12......20      kept: 0-7, 7-13, 13-20

The outer eighth of a tile is dropped where it meets another one, so that neighbours overlap by a quarter. Outputs are those of
the whole image if the receptive field reaches no further than that, and tiles begin at multiples of the network's stride. Maps
are not blended: a mean of two would be the output of no call of the network.
"""

from __future__ import annotations

from fractions import Fraction

from torch import Tensor

from compressor.errors import UsageError
from compressor.network.outputs import Predict

Size = tuple[int, int]  # height and width
MARGIN = 8  # a margin is 1 / MARGIN of the tile's side


def in_tiles(predict: Predict, tile: Size | None) -> Predict:
    """`predict` on parts of at most `tile` pixels of its only input, images [n, channels, height, width]; None: on all of it.

    Images that are not larger than one tile are passed as they are. The outputs must be maps [n, channels, ...] that have the
    height and width of the images, a whole multiple of them, or a whole fraction. Raises UsageError for other ones, and for
    tiles and images that such a fraction does not divide.
    """

    def assembled(images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if tile is None or (height <= tile[0] and width <= tile[1]):
            return predict(images)
        sides = min(tile[0], height), min(tile[1], width)
        whole, ratio = None, Fraction(1)
        for top, *rows in spans(height, sides[0]):
            for left, *columns in spans(width, sides[1]):
                part = predict(images[..., top : top + sides[0], left : left + sides[1]])
                if whole is None:
                    ratio = _ratio(part, sides, (height, width), tile)
                    whole = part.new_empty(*part.shape[:2], int(height * ratio), int(width * ratio))
                (above, below), (before, after) = ([int(edge * ratio) for edge in kept] for kept in (rows, columns))
                down, right = int(top * ratio), int(left * ratio)
                whole[..., above:below, before:after] = part[..., above - down : below - down, before - right : after - right]
        assert whole is not None
        return whole

    return predict if tile is None else assembled


def spans(length: int, side: int) -> list[tuple[int, int, int]]:
    """Where each tile of this side begins, and the first and last pixel, exclusive, that is taken from it.

    The last tile ends with the image, so that all tiles have the same side.
    """
    margin = side // MARGIN
    starts = [*range(0, length - side, side - 2 * margin), length - side]
    ends = [*(start + side - margin for start in starts[:-1]), length]
    return list(zip(starts, [0, *ends[:-1]], ends, strict=True))


def _ratio(part: Tensor, sides: Size, size: Size, tile: Size) -> Fraction:
    """Of the sides of a map to those of the tile; `size` is that of the image. Raises UsageError if maps cannot be placed."""
    written, given, found = ("x".join(map(str, sizes)) for sizes in (tile, sides, part.shape[1:]))
    if part.dim() != 4:
        raise UsageError(f"--tile {written}: the network outputs {found} for an image, but tiles need a map: omit --tile.")
    ratios = {Fraction(int(out), side) for out, side in zip(part.shape[2:], sides, strict=True)}
    ratio = ratios.pop()
    if ratios or 1 not in (ratio.numerator, ratio.denominator):
        raise UsageError(
            f"--tile {written}: for {given} pixels the network outputs {found}, no whole multiple or fraction:\n"
            "give a tile that its stride divides, and --pad-to for images, or omit --tile."
        )
    step = ratio.denominator
    for whole, side in zip(size, sides, strict=True):
        if whole > side and (side % step or side // MARGIN % step):
            raise UsageError(
                f"--tile {written}: maps have 1/{step} of the image's size, and {side} is not divisible:\n"
                f"give a multiple of {MARGIN * step}, so that the margins of an eighth are whole there, too."
            )
        if whole % step:
            raise UsageError(
                f"--tile {written}: maps have 1/{step} of the image's size, and the side of an image, {whole} pixels, is not "
                f"divisible:\ngive --pad-to {step}."
            )
    return ratio
