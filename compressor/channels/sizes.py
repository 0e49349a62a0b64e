"""Where the sizes in a model's code come from: tensor shapes, attributes of modules, or the code itself.

A forward such as `x.view(n, self.num_heads, c // self.num_heads)` passes sizes. When channels are pruned, some of these sizes
follow automatically (`c`, read from a shape), some are attributes to be updated (`num_heads`), and some are hard-coded, so that
the channels they count are frozen. A `Size` is an int with its origin: a polynomial in symbols, each an `Attribute` of a module
or the `Width` of a tensor, which arithmetic updates. To the model's code it is a plain int.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Attribute:
    """An integer attribute of a module: `module.name`, or one item of a tuple or list there."""

    module: str
    name: str
    item: int | None = None

    def __str__(self) -> str:
        return f"{self.module}.{self.name}".lstrip(".") + ("" if self.item is None else f"[{self.item}]")


@dataclass(eq=False)
class Width:
    """The number of channels along one dimension of a tensor; `ids` are their labels.

    equal: sizes that the code compared it with and found equal. numbers: sizes computed from it that were used as values, as in
    `(c // heads) ** -0.5`.
    """

    ids: Ids
    equal: list[Size] = field(default_factory=list)
    numbers: list[Size] = field(default_factory=list)


Symbol = Attribute | Width
Monomial = frozenset[tuple[Symbol, int]]  # symbol and its power
ONE: Monomial = frozenset()


class Size(int):
    """An int with its origin: `terms` is a polynomial, monomial -> coefficient."""

    terms: dict[Monomial, Fraction]

    @staticmethod
    def of(value: int, symbol: Symbol) -> Size:
        return _size(value, {frozenset({(symbol, 1)}): Fraction(1)})

    @property
    def origin(self) -> frozenset[tuple[Monomial, Fraction]]:
        """Equal for sizes that are the same polynomial."""
        return frozenset(self.terms.items())

    @property
    def symbols(self) -> set[Symbol]:
        return {symbol for monomial in self.terms for symbol, _ in monomial}

    @property
    def widths(self) -> list[Width]:
        return [symbol for symbol in self.symbols if isinstance(symbol, Width)]

    @property
    def attributes(self) -> list[Attribute]:
        return [symbol for symbol in self.symbols if isinstance(symbol, Attribute)]

    @property
    def proportional(self) -> Width | None:
        """The one width that this is a multiple or a fraction of."""
        monomial = next(iter(self.terms)) if len(self.terms) == 1 else ONE
        widths = [(symbol, power) for symbol, power in monomial if isinstance(symbol, Width)]
        return widths[0][0] if len(widths) == 1 and widths[0][1] == 1 else None

    def __add__(self, other: Any) -> Any:
        return _sum(self, other, 1)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Any:
        return _sum(self, other, -1)

    def __rsub__(self, other: Any) -> Any:
        return -self + other

    def __neg__(self) -> Any:
        return self * -1

    def __mul__(self, other: Any) -> Any:
        if not isinstance(other, int):
            return _number(self, int.__mul__, other)
        table: dict[Monomial, Fraction] = {}
        for a, x in self.terms.items():
            for b, y in _terms(other).items():
                product = _product(a, b)
                table[product] = table.get(product, Fraction(0)) + x * y
        return _size(int(self) * int(other), table)

    __rmul__ = __mul__

    def __floordiv__(self, other: Any) -> Any:
        divisor = _terms(other) if isinstance(other, int) else {}
        if len(divisor) != 1 or not other or int(self) % int(other):
            return _number(self, int.__floordiv__, other)
        ((monomial, constant),) = divisor.items()
        inverse = frozenset((symbol, -power) for symbol, power in monomial)
        return _size(int(self) // int(other), {_product(a, inverse): x / constant for a, x in self.terms.items()})

    def __rfloordiv__(self, other: int) -> Any:
        return Size.__floordiv__(_size(int(other), {ONE: Fraction(int(other))}), self)

    def __eq__(self, other: object) -> bool:
        equal = int.__eq__(self, other)  # NotImplemented if `other` is not a number
        if equal is True and isinstance(other, Size):
            for mine, yours in ((self, other), (other, self)):
                if len(mine.widths) == 1 and mine.terms == {frozenset({(mine.widths[0], 1)}): 1} and not yours.widths:
                    mine.widths[0].equal.append(yours)
        return equal

    def __ne__(self, other: object) -> bool:
        equal = self == other
        return equal if equal is NotImplemented else not equal

    __hash__ = int.__hash__

    def __float__(self) -> float:
        return float(_number(self, int.__float__))

    def __truediv__(self, other: Any) -> Any:
        return _number(self, int.__truediv__, other)

    def __rtruediv__(self, other: Any) -> Any:
        return _number(self, int.__rtruediv__, other)

    def __pow__(self, other: Any, modulo: Any = None) -> Any:
        return _number(self, int.__pow__, other)

    def __rpow__(self, other: Any, modulo: Any = None) -> Any:
        return _number(self, int.__rpow__, other)

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        return int, (int(self),)  # a copy is a plain number


def _size(value: int, terms: dict[Monomial, Fraction]) -> Size:
    size = int.__new__(Size, value)
    size.terms = {monomial: constant for monomial, constant in terms.items() if constant}
    return size


def _terms(value: int) -> dict[Monomial, Fraction]:
    return value.terms if isinstance(value, Size) else {ONE: Fraction(int(value))}


def _product(a: Monomial, b: Monomial) -> Monomial:
    powers: dict[Symbol, int] = dict(a)
    for symbol, power in b:
        powers[symbol] = powers.get(symbol, 0) + power
    return frozenset((symbol, power) for symbol, power in powers.items() if power)


def _sum(a: Size, b: Any, sign: int) -> Any:
    if not isinstance(b, int):
        return _number(a, int.__add__ if sign > 0 else int.__sub__, b)
    table = dict(a.terms)
    for monomial, constant in _terms(b).items():
        table[monomial] = table.get(monomial, Fraction(0)) + sign * constant
    return _size(int(a) + sign * int(b), table)


def _number(size: Size, operation: Callable[..., Any], *others: Any) -> Any:
    """The result as a plain number without its origin; the widths in it are marked."""
    for number in (size, *others):
        if isinstance(number, Size):
            for width in number.widths:
                width.numbers.append(number)
    plain = [int(other) if isinstance(other, Size) else other for other in others]
    result = operation(int(size), *plain)
    return NotImplemented if result is NotImplemented else result


class Shape(tuple[int, ...]):
    """The value of `tensor.shape` while sizes are tracked: `torch.Size` would convert them to plain ints."""

    def __getitem__(self, index: Any) -> Any:
        found = tuple.__getitem__(self, index)
        return Shape(found) if isinstance(index, slice) else found

    def __add__(self, other: Any) -> Any:
        return Shape((*self, *other))

    def numel(self) -> int:
        return prod(self)


def mark_attributes(model: nn.Module) -> dict[Attribute, int]:
    """Replace all integer attributes of the modules of `model`, also in tuples and lists, by a `Size`. Returns their values."""
    values: dict[Attribute, int] = {}

    def marked(module: str, name: str, value: Any, item: int | None = None) -> Any:
        if type(value) is int and value > 0:
            attribute = Attribute(module, name, item)
            values[attribute] = value
            return Size.of(value, attribute)
        if type(value) in (tuple, list) and item is None:
            return type(value)(marked(module, name, entry, i) for i, entry in enumerate(value))
        return value

    for path, module in model.named_modules():
        for name, value in module.__dict__.items():
            module.__dict__[name] = marked(path, name, value)
    return values


def solve(wanted: Iterable[tuple[Size, int]], now: Mapping[Attribute, int], fixed: set[Attribute]) -> dict[Attribute, int]:
    """Values of attributes with which each size equals the wanted number; attributes that nothing determines keep their value.

    `now`: their current values; the attributes in `fixed` do not change. Contradictions are solved in part: the forward pass of
    the pruned network shows whether that is enough.
    """
    values = {attribute: now[attribute] for attribute in fixed if attribute in now}
    pending = [(size, number) for size, number in wanted]
    while pending:
        known = len(values)
        later = []
        for size, number in pending:
            unknown = [symbol for symbol in size.attributes if symbol not in values]
            if len(unknown) > 1:
                later.append((size, number))
            elif unknown and (value := _isolated(size, unknown[0], number, values)) is not None:
                values[unknown[0]] = value
        if later and len(values) == known:  # several unknowns in each: fix a divisor, or else the smallest
            powers = {s: power for m in later[0][0].terms for s, power in m if isinstance(s, Attribute) and s not in values}
            stays = min(powers, key=lambda s: (powers[s] > 0, now[s], str(s)))
            values[stays] = now[stays]
        pending = later
    return {attribute: value for attribute, value in values.items() if value != now[attribute]}


def _isolated(size: Size, unknown: Attribute, number: int, values: Mapping[Attribute, int]) -> int | None:
    """The value of `unknown` with which `size` is `number`; None if it would not be a positive integer."""
    known: Mapping[Any, int] = values
    rest, factors = Fraction(number), {1: Fraction(0), -1: Fraction(0)}  # factor of `unknown`, and of 1 / `unknown`
    for monomial, constant in size.terms.items():
        powers = dict(monomial)
        power = powers.pop(unknown, 0)
        value = constant * prod(Fraction(known[symbol]) ** p for symbol, p in powers.items())
        if power in factors:
            factors[power] += value
        elif power == 0:
            rest -= value
        else:
            return None
    direct, inverse = factors[1], factors[-1]
    if not rest or bool(direct) == bool(inverse):
        return None
    found = rest / direct if direct else inverse / rest
    return int(found) if found > 0 and found.denominator == 1 else None
