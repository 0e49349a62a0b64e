"""Networks from random recipes: pruned at random, they must equal the masked network exactly."""

from math import gcd

import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from random_cuts import at_random, check, lively, liven
from torch import Tensor, nn

from compressor.channels import analyse, remove

SHAPE = (3, 6, 6)
WIDEST = 48  # wider than this, a network only gets slower

layer = st.one_of(
    st.tuples(st.just("conv"), st.sampled_from([4, 6, 8])),
    st.tuples(st.just("grouped"), st.sampled_from([2, 3, 4])),
    st.tuples(st.just("depthwise"), st.sampled_from([1, 2])),
    st.tuples(st.just("norm"), st.sampled_from(["batch", "group"])),
    st.tuples(st.just("pad"), st.sampled_from([0, 1, 2])),
    st.tuples(st.just("shuffle"), st.sampled_from([2, 3])),
    st.tuples(st.just("chunk"), st.sampled_from(["swap", "gate"])),
    st.tuples(st.just("gate"), st.sampled_from([2, 4])),
    st.tuples(st.just("tokens"), st.sampled_from([4, 6])),
    st.tuples(st.just("parts"), st.sampled_from([1, 3])),
    st.tuples(st.just("heads"), st.sampled_from([1, 2, 3])),
    st.tuples(st.just("attention"), st.sampled_from([2, 4])),
)
branch = st.lists(layer, min_size=1, max_size=3)
block = st.tuples(st.sampled_from(["residual", "padded", "cat"]), branch)
recipes = st.lists(st.one_of(layer, layer, block), min_size=1, max_size=7)


class Pad(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.amounts = (0, 0, 0, 0, before, after)

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, self.amounts)


class Shuffle(nn.Module):
    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)


class Chunk(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        return torch.cat([b, a], 1) if self.kind == "swap" else a * b.sigmoid()


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.excite(F.gelu(self.squeeze(x.mean((2, 3))))).sigmoid()[:, :, None, None]


class Tokens(nn.Module):
    """An MLP block over the channels of each position, as in ConvNeXt."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm, self.widen, self.back = nn.LayerNorm(width), nn.Linear(width, inner), nn.Linear(inner, width)
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.scale * self.back(F.gelu(self.widen(self.norm(x.permute(0, 2, 3, 1)))))).permute(0, 3, 1, 2)


class Parts(nn.Module):
    """Splits off the `first` channels, whose number is an attribute of the module, and appends them to the others."""

    def __init__(self, first: int, width: int) -> None:
        super().__init__()
        self.sizes = (first, width - first)

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.split(self.sizes, 1)
        return torch.cat([b, a.tanh()], 1)


class Heads(nn.Module):
    """Attention with a head dimension of its own, an attribute of the module."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.size = heads, 4
        self.qkv, self.proj = nn.Linear(width, 12 * heads), nn.Linear(4 * heads, width)

    def forward(self, x: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).view(n, height * width, 3, self.heads, self.size).permute(2, 0, 3, 1, 4)
        mixed = (q @ k.transpose(-1, -2) * 0.3).softmax(-1) @ v
        mixed = self.proj(mixed.transpose(1, 2).reshape(n, height * width, self.heads * self.size))
        return x + mixed.transpose(1, 2).reshape(n, channels, height, width)


class Attention(nn.Module):
    """PyTorch's module, where the heads divide the width of the input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        mixed = self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return x + mixed.transpose(1, 2).reshape(x.shape)


class Beside(nn.Module):
    """A branch combined with its input: added, added with padding, or concatenated."""

    def __init__(self, kind: str, inside: nn.Module, more: int) -> None:
        super().__init__()
        self.kind, self.inside, self.more = kind, inside, more

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "cat":
            return torch.cat([x, self.inside(x)], 1)
        return self.inside(x) + F.pad(x, (0, 0, 0, 0, self.more, self.more))


def build(recipe: list, width: int, shuffled: bool = False) -> tuple[nn.Module, int]:
    """The network of a recipe with `width` input channels, and its number of output channels; omits steps that do not fit.

    Channels are shuffled again only after a convolution that mixes them: the rule does not cover two consecutive shuffles of
    pruned channels, which the verification after surgery detects.
    """
    steps: list[nn.Module] = []
    for kind, value in recipe:
        match kind:
            case "conv":
                steps += [nn.Conv2d(width, value, 3, padding=1, bias=value == 6), nn.LeakyReLU(0.3)]
                width, shuffled = value, False
            case "grouped":
                groups = gcd(width, value)
                steps.append(nn.Conv2d(width, 2 * groups, 1, groups=groups))
                width = 2 * groups
            case "depthwise" if width * value <= WIDEST:
                steps.append(nn.Conv2d(width, width * value, 3, padding=1, groups=width))
                width *= value
            case "norm":
                steps.append(nn.BatchNorm2d(width) if value == "batch" else nn.GroupNorm(gcd(width, 2), width))
            case "pad" if width + 3 <= WIDEST:
                steps.append(Pad(value, 1))
                width += value + 1
            case "shuffle" if width % value == 0 and width > value and not shuffled:
                steps.append(Shuffle(value))
                shuffled = True
            case "chunk" if width % 2 == 0:
                steps.append(Chunk(value))
                width = width if value == "swap" else width // 2
            case "gate":
                steps.append(Gate(width, value))
            case "tokens":
                steps.append(Tokens(width, value))
            case "parts" if width > value:
                steps.append(Parts(value, width))
            case "heads":
                steps.append(Heads(width, value))
            case "attention" if width % value == 0:
                steps.append(Attention(width, value))
            case "cat" if width <= WIDEST // 2:
                inside, more = build(value, width, shuffled)
                steps.append(Beside("cat", inside, 0))
                width += more
            case "residual" | "padded":
                more = 1 if kind == "padded" and width + 2 <= WIDEST else 0
                inside, made = build(value, width, shuffled)
                closing = nn.Sequential(inside, nn.Conv2d(made, width + 2 * more, 1), nn.BatchNorm2d(width + 2 * more))
                steps.append(Beside(kind, closing, more))
                width += 2 * more
    return nn.Sequential(*steps), width


@settings(max_examples=500, deadline=None, derandomize=True)
@given(
    recipes,
    st.booleans(),
    st.sampled_from([0.3, 0.5, 0.8]),
    st.integers(0, 9),
    st.sampled_from(["coupled", "scatter"]),
    st.sampled_from(["width", "whole"]),
)
def test_any_network_can_be_cut(recipe: list, flat: bool, share: float, seed: int, residual: str, heads: str) -> None:
    inside, width = build(recipe, 8)
    head = [nn.Flatten(), nn.Linear(width * 36, 5)] if flat else [nn.AdaptiveAvgPool2d(2), nn.Conv2d(width, 5, 2)]
    model = liven(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), inside, *head))
    verified = remove(model, analyse(model, SHAPE, residual, heads), at_random(share, seed), SHAPE)
    assume(lively(verified.model, SHAPE))
    check(model, verified, SHAPE)
