"""Sizes with their origin: arithmetic, where it loses the origin, and the attributes that give wanted sizes."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from random_cuts import cut_and_check, liven
from torch import Tensor, nn

from compressor.channels import analyse
from compressor.channels.sizes import Attribute, Shape, Size, Width, mark_attributes, solve

HEADS, SIZE, WIDE = Attribute("block", "heads"), Attribute("block", "size"), Attribute("block", "wide")


def width(n: int) -> tuple[Size, Width]:
    symbol = Width(np.arange(1, n + 1))
    return Size.of(n, symbol), symbol


# Arithmetic -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "value"),
    [
        (lambda h, s: h * s, 24),
        (lambda h, s: 2 * h + s * 3 - 1, 25),
        (lambda h, s: (h * s) // h, 6),
        (lambda h, s: 24 // h, 6),
        (lambda h, s: -(h - 10), 6),
        (lambda h, s: 1 - h + s, 3),
    ],
)
def test_a_size_is_the_number_it_would_be(made: Callable[[int, int], int], value: int) -> None:
    found = made(Size.of(4, HEADS), Size.of(6, SIZE))
    assert found == value == made(4, 6)
    assert isinstance(found, Size)


def test_products_and_quotients_cancel() -> None:
    heads, size = Size.of(4, HEADS), Size.of(6, SIZE)
    assert (heads * size // heads).origin == size.origin
    assert (heads + size - heads).origin == size.origin
    assert not (heads - heads).symbols


def test_what_is_no_whole_number_has_no_origin() -> None:
    heads = Size.of(4, HEADS)
    assert [type(x) for x in (heads // 3, heads / 2, heads * 0.5, heads**-0.5)] == [int, float, float, float]
    assert heads != "4" and heads == 4.0 and hash(heads) == hash(4)


def test_widths_note_what_they_are_used_for() -> None:
    size, symbol = width(12)
    assert size == Size.of(12, WIDE)
    assert [other.origin for other in symbol.equal] == [Size.of(12, WIDE).origin]
    assert not symbol.numbers
    assert (size // 4) ** -0.5 == 3**-0.5
    assert [number.origin for number in symbol.numbers] == [(size // 4).origin]
    assert (size * 2 // 3).proportional is symbol
    assert (size * size).proportional is None


def test_a_shape_is_a_tuple_that_keeps_its_sizes() -> None:
    size, symbol = width(12)
    shape = Shape((2, size, 5))
    assert shape == torch.zeros(2, 12, 5).shape
    assert shape[1:].numel().proportional is symbol
    assert torch.zeros(shape[:2] + (3,)).shape == (2, 12, 3)  # noqa: RUF005  # as models write it


# Attributes -----------------------------------------------------------------------------------------------------------


def test_attributes_are_marked_in_tuples_and_lists_too() -> None:
    module = nn.Module()
    module.width, module.parts, module.ratio, module.flag = 8, [3, 5], 0.5, True
    values = mark_attributes(nn.Sequential(module))
    assert values == {Attribute("0", "width"): 8, Attribute("0", "parts", 0): 3, Attribute("0", "parts", 1): 5}
    assert str(Attribute("0", "parts", 1)) == "0.parts[1]"


@pytest.mark.parametrize(
    ("wanted", "fixed", "found"),
    [
        ([(Size.of(6, SIZE), 3)], set(), {SIZE: 3}),
        ([(Size.of(24, WIDE) // Size.of(4, HEADS), 3)], set(), {WIDE: 12}),  # a divisor does not change
        ([(Size.of(24, WIDE) // Size.of(4, HEADS), 3), (Size.of(4, HEADS), 2)], set(), {HEADS: 2, WIDE: 6}),
        ([(24 // Size.of(4, HEADS), 12)], set(), {HEADS: 2}),
        ([(Size.of(24, WIDE) - Size.of(6, SIZE), 9)], {SIZE}, {WIDE: 15}),
        ([(Size.of(6, SIZE), 6)], set(), {}),
        ([(2 * Size.of(6, SIZE), 7)], set(), {}),  # no integer solves it: the forward pass will show
    ],
)
def test_attributes_are_solved(wanted: list[tuple[Size, int]], fixed: set[Attribute], found: dict[Attribute, int]) -> None:
    assert solve(wanted, {HEADS: 4, SIZE: 6, WIDE: 24}, fixed) == found


# In a model -----------------------------------------------------------------------------------------------------------


class Asks(nn.Module):
    """[n, 3, 8, 8] -> two convolutions of 8 channels -> `step` -> convolution -> mean -> [n, 5]. Stores sizes as attributes."""

    def __init__(self, step: Callable[[nn.Module, Tensor], Tensor], width: int = 8) -> None:
        super().__init__()
        self.step, self.width, self.part, self.parts, self.half = step, 8, 3, [3, 5], 4
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Conv2d(width, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.step(self, self.second(self.first(x)))).mean((2, 3))


@pytest.mark.parametrize(
    ("step", "out", "groups", "counts"),
    [
        (lambda m, x: x.view(-1, m.width, 8, 8), 8, {"first": 8, "second": 8}, {"width": 4}),
        (lambda m, x: x.reshape(len(x), 2 * m.half, 8, 8), 8, {"first": 8, "second": 8}, {"half": 2}),
        (lambda m, x: x[:, : m.part], 3, {"first": 8, "second": 3 - 1, "second (2)": 5 - 1}, {"part": 2}),
        (lambda m, x: x[:, m.part :], 5, {"first": 8, "second": 3 - 1, "second (2)": 5 - 1}, {"part": 2}),
        (lambda m, x: x.split(m.parts, 1)[1], 5, {"first": 8, "second": 3 - 1, "second (2)": 5 - 1}, {"parts": [2, 3]}),
        (lambda m, x: x.narrow(1, 0, m.part), 3, {"first": 8, "second": 3 - 1, "second (2)": 5 - 1}, {"part": 2}),
        (lambda m, x: x.split(x.shape[1] // 2, 1)[0], 4, {"first": 8, "second": 4}, {}),
        (lambda m, x: x.unflatten(1, (2, m.half))[:, 0], 4, {"first": 8, "second": 4}, {"half": 2}),
    ],
    ids="view product before after split narrow shape unflatten".split(),
)
def test_sizes_kept_on_the_module_follow(
    step: Callable[[nn.Module, Tensor], Tensor], out: int, groups: dict[str, int], counts: dict[str, object]
) -> None:
    """Parts are pruned separately; at least one channel of each remains."""
    verified = cut_and_check(Asks(step, out))
    assert {group.name: group.size for group in verified.channels.groups} == groups
    assert verified.cut.counts.get("", {}) == counts


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (lambda m, x: x.view(-1, 8, 8, 8), "the model's code hard-codes its width, 8"),
        (lambda m, x: x.view(-1, m.width, m.width, 8), "width is also used for something other than channels"),
        (lambda m, x: x * x.shape[1] ** -0.5, "the model's code uses its width in arithmetic"),
        (lambda m, x: x / x.size(1), "the model's code uses its width in arithmetic"),
    ],
    ids="literal both power division".split(),
)
def test_sizes_that_cannot_follow_are_told(step: Callable[[nn.Module, Tensor], Tensor], reason: str) -> None:
    rows = {row.name: row.reason for row in analyse(liven(Asks(step)), (3, 8, 8)).frozen()}
    assert rows == {"second": reason, "last": "it is an output of the model"}


def test_a_width_asked_of_another_tensor_ties_the_two() -> None:
    class Same(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3), nn.Conv2d(16, 5, 3)

        def forward(self, x: Tensor) -> Tensor:
            a, b = self.left(x), self.right(x)
            return self.last(torch.cat([a, b.reshape(len(b), a.shape[1], *b.shape[2:])], 1)).mean((2, 3))

    assert {group.name: group.size for group in cut_and_check(Same()).channels.groups} == {"left": 8}
