"""Common implementations of attention: the head dimension is reduced or whole heads are pruned, and counts are updated."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from random_cuts import EXACT, at_random, liven
from torch import Tensor, nn

from compressor.channels import Verified, analyse, remove

SHAPE = (3, 4, 4)  # sixteen tokens
WIDTH, HEADS = 24, 4


class Network(nn.Module):
    """Images [n, 3, 4, 4] -> tokens [n, 16, 24] -> attention with a residual connection -> norm -> mean -> [n, 5]."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.embed, self.norm1 = nn.Conv2d(3, WIDTH, 1), nn.LayerNorm(WIDTH)
        self.attention = attention
        self.norm2, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        return self.head(self.norm2(x + self.attention(self.norm1(x)))).mean(1)


class Fused(nn.Module):
    """One layer computes queries, keys and values; the number of heads and the head dimension are attributes of the module."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim = HEADS, WIDTH // HEADS
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.proj(x.reshape(n, tokens, self.num_heads * self.head_dim))


class Separate(nn.Module):
    """A layer for each; the number of heads is inferred, and both widths are attributes of the module."""

    def __init__(self) -> None:
        super().__init__()
        self.size, self.all_size = WIDTH // HEADS, WIDTH
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).view(*x.shape[:-1], -1, self.size).transpose(1, 2) for layer in (self.query, self.key, self.value))
        x = ((q @ k.transpose(-1, -2)) * 0.4).softmax(-1) @ v
        x = x.transpose(1, 2).contiguous()
        return self.proj(x.view(*x.shape[:-2], self.all_size))


class Torch(nn.Module):
    """PyTorch's module: the head dimension is the embedding dimension divided by the number of heads."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class Windowed(nn.Module):
    """As in Swin: the head dimension is computed from the embedding dimension, the scale from it, and each head has a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = HEADS
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.table = nn.Parameter(torch.zeros(31, HEADS))
        self.register_buffer("index", (torch.arange(16)[:, None] - torch.arange(16)[None]) + 15)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        qkv = self.qkv(x).reshape(n, tokens, 3, self.num_heads, width // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0] * (width // self.num_heads) ** -0.5, qkv[1], qkv[2]
        bias = self.table[self.index.view(-1)].view(tokens, tokens, -1).permute(2, 0, 1)
        x = (q @ k.transpose(-2, -1) + bias).softmax(-1) @ v
        return self.proj(x.transpose(1, 2).reshape(n, tokens, width))


class Shared(nn.Module):
    """Grouped queries: two heads share a key and a value."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = HEADS, HEADS // 2, WIDTH // HEADS
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key, self.value = nn.Linear(WIDTH, WIDTH // 2), nn.Linear(WIDTH, WIDTH // 2)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, _ = x.shape
        q = self.query(x).view(n, tokens, self.num_heads, self.head_dim).transpose(1, 2)
        k, v = (m(x).view(n, tokens, self.num_kv_heads, self.head_dim).transpose(1, 2) for m in (self.key, self.value))
        x = self.together(q, k, v).transpose(1, 2)
        return self.proj(x.reshape(n, tokens, -1))

    def together(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        times = self.num_heads // self.num_kv_heads
        return F.scaled_dot_product_attention(q, k.repeat_interleave(times, 1), v.repeat_interleave(times, 1))


class SharedByTorch(Shared):
    def together(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


class OverChannels(nn.Module):
    """As in XCiT: channels attend to channels, so that only whole heads can be pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = HEADS
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.temperature = nn.Parameter(torch.ones(HEADS, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        qkv = self.qkv(x).reshape(n, tokens, 3, self.num_heads, width // self.num_heads).permute(2, 0, 3, 4, 1)
        q, k, v = qkv.unbind(0)
        attention = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)) * self.temperature
        return self.proj((attention.softmax(-1) @ v).permute(0, 3, 1, 2).reshape(n, tokens, width))


def cut(attention: nn.Module, heads: str) -> Verified:
    model = liven(Network(attention))
    verified = remove(model, analyse(model, SHAPE, heads=heads), at_random(), SHAPE)
    assert not verified.channels.held
    assert verified.difference <= EXACT
    return verified


def groups(verified: Verified) -> dict[str, int]:
    return {group.name: group.size for group in verified.channels.groups}


@pytest.mark.parametrize(
    ("attention", "groups_", "counts"),
    [
        (Fused, {"embed": 24, "attention.qkv": 6}, {"head_dim": 3, "num_heads": 4}),
        (Separate, {"embed": 24, "attention.query": 6}, {"size": 3, "all_size": 12}),
        (Shared, {"embed": 24, "attention.query": 6}, {"head_dim": 3, "num_heads": 4, "num_kv_heads": 2}),
        (SharedByTorch, {"embed": 24, "attention.query": 6}, {"head_dim": 3, "num_heads": 4, "num_kv_heads": 2}),
    ],
)
def test_heads_get_narrower(attention: Callable[[], nn.Module], groups_: dict[str, int], counts: dict[str, int]) -> None:
    verified = cut(attention(), "width")
    assert groups(verified) == groups_
    small = verified.model.attention
    assert {name: getattr(small, name) for name in counts} == counts
    assert small.proj.in_features == 12


@pytest.mark.parametrize(
    ("attention", "groups_", "counts"),
    [
        (Fused, {"embed": 24, "attention.qkv": 4}, {"head_dim": 6, "num_heads": 2}),
        (Separate, {"embed": 24, "attention.query": 4}, {"size": 6, "all_size": 12}),
        (Shared, {"embed": 24, "attention.query": 2}, {"head_dim": 6, "num_heads": 2, "num_kv_heads": 1}),
        (SharedByTorch, {"embed": 24, "attention.query": 2}, {"head_dim": 6, "num_heads": 2, "num_kv_heads": 1}),
    ],
)
def test_whole_heads_go(attention: Callable[[], nn.Module], groups_: dict[str, int], counts: dict[str, int]) -> None:
    verified = cut(attention(), "whole")
    assert groups(verified) == groups_
    assert {name: getattr(verified.model.attention, name) for name in counts} == counts


@pytest.mark.parametrize("heads", ["width", "whole"])
def test_heads_that_share_out_the_stream_go_with_it(heads: str) -> None:
    """The heads of `nn.MultiheadAttention` are together as wide as its input."""
    verified = cut(Torch(), heads)
    assert groups(verified) == {"embed": 6 if heads == "width" else 4}
    small = verified.model.attention.attention
    assert (small.embed_dim, small.num_heads) == ((12, 4) if heads == "width" else (12, 2))
    assert verified.model.norm1.normalized_shape == (12,)


@pytest.mark.parametrize("attention", [Windowed, OverChannels])
def test_heads_that_must_keep_their_width_go_whole(attention: Callable[[], nn.Module]) -> None:
    """The head dimension is used in arithmetic, or mixed by a softmax: whole heads are pruned, and the embedding with them."""
    verified = cut(attention(), "width")
    assert groups(verified) == {"embed": 4}
    assert verified.model.attention.num_heads == 2
    assert verified.model.attention.qkv.weight.shape == (36, 12)
