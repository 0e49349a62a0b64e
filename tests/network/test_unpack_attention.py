"""Attention with queries, keys and values in one weight: splitting keeps the outputs, and each part has a rank of its own."""

import copy
import json

import pytest
import torch
from torch import Tensor, nn
from toy import job

from compressor.checkpoint.plan import Plan, rebuild
from compressor.methods.lowrank.papers.svd import Svd
from compressor.methods.lowrank.verify import gap_between
from compressor.network.replacements import describe, make, replaced
from compressor.network.unpack_attention import unpacked

SHAPE = (3, 8, 8)


class Tokens(nn.Module):
    """One attention block over 16 tokens: [n, 3, 8, 8] -> [n, 5]."""

    def __init__(self, attention: nn.Module, batch_first: bool = True) -> None:
        super().__init__()
        self.stem, self.attention, self.head = nn.Conv2d(3, 32, 2, stride=2), attention, nn.Linear(32, 5)
        self.batch_first = batch_first

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        x = x if self.batch_first else x.transpose(0, 1)
        x = x + self.attended(x)
        return self.head(x.mean(1 if self.batch_first else 0))

    def attended(self, x: Tensor) -> Tensor:
        out: Tensor = self.attention(x, x, x, need_weights=False)[0]
        return out


class Masked(Tokens):
    def attended(self, x: Tensor) -> Tensor:
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        out: Tensor = self.attention(x, x, x, attn_mask=mask, need_weights=False)[0]
        return out


class Weighing(Tokens):
    """It uses the attention weights, which the replacement does not return."""

    def attended(self, x: Tensor) -> Tensor:
        out, weights = self.attention(x, x, x)
        return out * weights.amax()


class Fused(nn.Module):
    """Queries, keys and values from one linear layer, as in most vision transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(32, 96, bias=False), nn.Linear(32, 32)

    def forward(self, x: Tensor, *_: Tensor, **__: object) -> tuple[Tensor, None]:
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.proj(nn.functional.scaled_dot_product_attention(q, k, v)), None


@pytest.mark.parametrize(
    "attention",
    [nn.MultiheadAttention(32, 4, batch_first=True), nn.MultiheadAttention(32, 2, bias=False, batch_first=True), Fused()],
    ids=["heads", "no bias", "fused"],
)
def test_taken_apart_it_answers_as_before(attention: nn.Module) -> None:
    model = Tokens(copy.deepcopy(attention)).eval()
    (name, part), *more = unpacked(model, SHAPE).items()
    assert not more and name == ("attention.qkv" if isinstance(attention, Fused) else "attention")
    other = replaced(copy.deepcopy(model), {name: part})
    assert gap_between(model, other, SHAPE) < 1e-12
    again = make(json.loads(json.dumps(describe(part))))
    again.load_state_dict(part.state_dict())
    assert gap_between(model, replaced(copy.deepcopy(model), {name: again}), SHAPE) < 1e-12


def test_places_may_come_first() -> None:
    model = Tokens(nn.MultiheadAttention(32, 4), batch_first=False).eval()
    assert gap_between(model, replaced(copy.deepcopy(model), unpacked(model, SHAPE)), SHAPE) < 1e-12


def test_attention_with_a_mask_is_left_alone() -> None:
    assert not unpacked(Masked(nn.MultiheadAttention(32, 4, batch_first=True)), SHAPE)


@pytest.mark.parametrize("kind", [Tokens, Fused])
def test_its_parts_are_factored_apart(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = Tokens(nn.MultiheadAttention(32, 4, batch_first=True) if kind is Tokens else Fused()).eval()
    with torch.no_grad():  # keys of rank 2: they can be factored without loss
        keys = model.attention.in_proj_weight[32:64] if kind is Tokens else model.attention.qkv.weight[32:64]
        keys.copy_(torch.randn(32, 2) @ torch.randn(2, 32))
    task = job("params=10%", model, SHAPE, images=None)
    method = Svd(task)
    method.prepare()
    key = "attention.k" if kind is Tokens else "attention.qkv.chains.1"
    assert key in method.ranks
    assert method.difference is not None and method.difference < 1e-10
    made = method.made()
    again = copy.deepcopy(model)
    for name, parts in made.step.parts.items():
        again.set_submodule(name, make(parts))
    again.load_state_dict(method.model.state_dict())
    assert gap_between(method.model, again, SHAPE) == 0


def test_what_stays_whole_stays_in_one_piece() -> None:
    model = Tokens(nn.MultiheadAttention(32, 4, batch_first=True)).eval()
    kept = Svd(job("params=1%", model, SHAPE, images=None, keep=("attention*",)))
    with torch.no_grad():
        model.stem.weight.copy_(torch.randn(32, 1, 1, 1) * torch.randn(1, 3, 2, 2))
    kept.prepare()
    assert isinstance(kept.model.attention, nn.MultiheadAttention) and list(kept.made().step.parts) == ["stem"]


def test_a_network_that_reads_the_weights_of_attention_keeps_it() -> None:
    method = Svd(job("params=5%", Weighing(nn.MultiheadAttention(32, 4, batch_first=True)).eval(), SHAPE, images=None))
    method.unpack()
    assert isinstance(method.model.attention, nn.MultiheadAttention)


class Encoder(nn.Module):
    """PyTorch's own transformer, whose layers run a fused operator on their weights in eval mode: [n, 3, 8, 8] -> [n, 5]."""

    def __init__(self, norm_first: bool = False) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 32, 2, stride=2), nn.Linear(32, 5)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.stem(x).flatten(2).transpose(1, 2))[:, 0])


@pytest.mark.parametrize("keep", [(), ("*self_attn*",), ("*linear*",)], ids=["all", "attention kept", "attention alone"])
@pytest.mark.parametrize("norm_first", [False, True])
def test_layers_of_pytorchs_own_transformer_are_factored(keep: tuple[str, ...], norm_first: bool) -> None:
    torch.manual_seed(0)
    model = Encoder(norm_first).eval()
    method = Svd(job("params=30%" if keep else "params=60%", copy.deepcopy(model), SHAPE, images=None, keep=keep))
    method.prepare()
    assert method.difference is not None and method.difference < 1e-10
    factored = {name.rpartition(".")[2] for name in method.ranks}
    assert factored.isdisjoint({"linear1", "linear2"}) == ("*linear*" in keep)
    assert factored.isdisjoint({"q", "k", "v", "out_proj"}) == ("*self_attn*" in keep)
    again = rebuild(copy.deepcopy(model), Plan("nets:Encoder", {}, SHAPE, (method.made().step,)), method.model.state_dict())
    assert gap_between(method.model, again, SHAPE) == 0
