"""Replacements of a layer: a chain of plain torch layers, and a few modules that torch does not have.

A chain has the place and the name of the layer that it replaces. It is described in plain JSON, part by part, so that a network
with chains can be rebuilt (`make`) without pickle; the weights are in the network's state dict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Part = dict[str, Any]  # {"type": "Conv2d", ...}: the arguments for the constructor of that type
Pair = tuple[int, int]
LARGEST = 1 << 26  # entries in an index


@dataclass(frozen=True)
class Chains:
    """A step of a plan: module -> the parts of the chain that replaces it."""

    parts: Mapping[str, Sequence[Part]]


class Take(nn.Module):
    """Select the indices `index` along `dim`, in that order: [..., n, ...] -> [..., len(index), ...]. Indices may repeat."""

    index: Tensor

    def __init__(self, dim: int, index: Sequence[int]) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("index", torch.tensor(list(index)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(self.dim, self.index)

    def arguments(self) -> Part:
        return {"dim": self.dim, "index": self.index.tolist()}


class Patches(nn.Module):
    """The input patches of a convolution at some output positions: [n, c, height, width] -> [n, places, kernel * kernel * c].

    `places` are flat indices of output positions, row by row. A patch is laid out as (row, column, channel), so that one index
    copies all channels at once.
    """

    index: Tensor  # [places * kernel * kernel] into the padded feature map

    def __init__(self, size: Pair, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair, places: Sequence[int]) -> None:
        super().__init__()
        self.size, self.kernel, self.stride, self.padding, self.dilation = map(tuple, (size, kernel, stride, padding, dilation))
        self.places = list(places)
        if kernel[0] * kernel[1] * len(self.places) > LARGEST:
            raise ValueError(f"a kernel of {kernel[0]} x {kernel[1]} at {len(self.places)} positions has too many indices")
        width = size[1] + 2 * padding[1]
        columns = (width - dilation[1] * (kernel[1] - 1) - 1) // stride[1] + 1  # of the output
        here = torch.tensor(self.places)
        first = here // columns * stride[0] * width + here % columns * stride[1]  # [places] the upper left corner
        inside = (torch.arange(kernel[0]) * dilation[0] * width)[:, None] + torch.arange(kernel[1]) * dilation[1]
        self.register_buffer("index", (first[:, None] + inside.flatten()).flatten(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self.padding
        padded = F.pad(x, (columns, columns, rows, rows)).permute(0, 2, 3, 1).flatten(1, 2)  # [n, plane, c]
        read = padded.index_select(1, self.index)
        return read.reshape(len(x), len(self.places), -1)

    def arguments(self) -> Part:
        shapes = {name: list(getattr(self, name)) for name in ("size", "kernel", "stride", "padding", "dilation")}
        return {**shapes, "places": self.places}


class Fill(nn.Module):
    """A full feature map from some positions: [n, places, c] -> [n, c, height, width]; `index` [height * width] maps them."""

    index: Tensor

    def __init__(self, size: Pair, index: Sequence[int]) -> None:
        super().__init__()
        self.size = tuple(size)
        self.register_buffer("index", torch.tensor(list(index)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(1, self.index).reshape(len(x), *self.size, -1).permute(0, 3, 1, 2)

    def arguments(self) -> Part:
        return {"size": list(self.size), "index": self.index.tolist()}


class Apart(nn.Module):
    """Several chains with the same input, their outputs concatenated: [..., n] -> [..., sum of their outputs]."""

    def __init__(self, chains: Sequence[nn.Module]) -> None:
        super().__init__()
        self.chains = nn.ModuleList(chains)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([chain(x) for chain in self.chains], -1)

    def arguments(self) -> Part:
        return {"chains": [describe(chain) for chain in self.chains]}


class Attention(nn.Module):
    """`nn.MultiheadAttention` over one sequence, without masks, with separate linear layers for queries, keys and values.

    Takes the arguments of the original, and returns (output, None). Tensors are [n, tokens, width], or [tokens, n, width]
    without `batch_first`.
    """

    in_proj_bias = None  # `nn.TransformerEncoderLayer` then calls this module, instead of a fused operator on its weights

    def __init__(self, width: int, heads: int, bias: bool = True, batch_first: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out_proj = (nn.Linear(width, width, bias=bias) for _ in range(4))
        self.width, self.heads, self.bias, self.batch_first, self.dropout = width, heads, bias, batch_first, dropout

    def forward(self, query: Tensor, key: Tensor, value: Tensor, **_: object) -> tuple[Tensor, None]:
        made = (self.q(query), self.k(key), self.v(value))
        by_place = (x if self.batch_first else x.transpose(0, 1) for x in made)  # [n, tokens, width]
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in by_place)  # [n, heads, tokens, head dimension]
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        out = self.out_proj(out.transpose(1, 2).flatten(2))
        return out if self.batch_first else out.transpose(0, 1), None

    def arguments(self) -> Part:
        return {name: getattr(self, name) for name in ("width", "heads", "bias", "batch_first", "dropout")}


def describe(chain: nn.Module) -> list[Part]:
    """The parts of a chain, as `make` takes them: plain numbers and lists."""
    parts = list(chain) if isinstance(chain, nn.Sequential) else [chain]
    return [{"type": type(part).__name__, **_arguments(part)} for part in parts]


def _arguments(part: nn.Module) -> Part:
    if isinstance(part, nn.Linear):
        return {"in_features": part.in_features, "out_features": part.out_features, "bias": part.bias is not None}
    if isinstance(part, nn.Conv2d):
        pairs = {name: list(getattr(part, name)) for name in ("kernel_size", "stride", "padding", "dilation")}
        sizes = {"in_channels": part.in_channels, "out_channels": part.out_channels, "groups": part.groups}
        return {**sizes, **pairs, "bias": part.bias is not None}
    if isinstance(part, nn.ZeroPad2d):
        return {"padding": list(part.padding)}
    if isinstance(part, nn.Upsample):
        assert isinstance(part.size, tuple) and part.mode == "nearest"
        return {"size": list(part.size)}
    assert isinstance(part, Take | Patches | Fill | Apart | Attention), f"{type(part).__name__} is not a part of a chain"
    return part.arguments()


def make(parts: Sequence[Part]) -> nn.Module:
    """Build the module that `describe` has described, with new weights: a chain, or a single part.

    Raises TypeError, ValueError, KeyError or RuntimeError when the parts are not valid.
    """
    chain = [_part(dict(part)) for part in parts]
    return chain[0] if len(chain) == 1 else nn.Sequential(*chain)


def _part(arguments: Part) -> nn.Module:
    kind = arguments.pop("type")
    if kind == "Apart":
        return Apart([make(chain) for chain in arguments["chains"]])
    if kind not in KINDS:
        raise ValueError(f"{kind!r} is not a part of a chain: use one of {', '.join((*KINDS, 'Apart'))}")
    lists = {"index", "places"}  # all other lists are pairs
    return KINDS[kind](**{n: tuple(v) if isinstance(v, list) and n not in lists else v for n, v in arguments.items()})


KINDS: dict[str, type[nn.Module]] = {
    kind.__name__: kind for kind in (nn.Linear, nn.Conv2d, nn.ZeroPad2d, nn.Upsample, Take, Patches, Fill, Attention)
}


def replaced(model: nn.Module, chains: Mapping[str, nn.Module]) -> nn.Module:
    """Replace modules of `model` in place: `chains` maps the name of a module to its replacement. Returns `model`."""
    for name, chain in chains.items():
        model.set_submodule(name, chain.train(model.get_submodule(name).training))
        parent = model.get_submodule(name.rpartition(".")[0])
        if isinstance(parent, nn.TransformerEncoderLayer):  # it must call its layers, not a fused operator on their weights
            parent.activation_relu_or_gelu = 0
    return model
