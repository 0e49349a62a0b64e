"""Decompositions: measured errors equal the predicted ones, and chains compute the product of their factors."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from splits import SPLITS
from torch import Tensor, nn

from compressor.data import Batch
from compressor.errors import UsageError
from compressor.methods.lowrank.decompositions import ROWS, Layer, Moments, Seen, watch
from compressor.network.cost import count_macs
from compressor.network.replacements import describe

CONVS = ["channel", "input", "separable", "tucker", "cp"]
MATRICES = ["linear", "channel", "input", "separable"]
WHITENING = [name for name, split in SPLITS.items() if split.whitens]


def layer_for(way: str, bias: bool = True) -> Layer:
    """A layer with pairwise different sizes."""
    if way == "linear":
        return nn.Linear(7, 5, bias=bias)
    return nn.Conv2d(6, 8, (3, 5), stride=(2, 1), padding=(1, 3), dilation=(2, 1), bias=bias)


def like(layer: Layer, weight: Tensor, bias: Tensor | None) -> Layer:
    """`layer` in float64 with other weights."""
    other = copy.deepcopy(layer).double()
    other.weight.data = weight
    other.bias = None if bias is None else nn.Parameter(bias.double())
    return other


def images(n: int, *sizes: int) -> Tensor:
    """Correlated channels [n, channels, *sizes] of different variance, with non-zero mean."""
    channels = sizes[0]
    mixed = torch.randn(channels, channels) @ torch.diag(0.5 ** torch.arange(channels))
    return torch.einsum("oc,nc...->no...", mixed, torch.randn(n, *sizes)) + torch.randn(channels, *[1] * (len(sizes) - 1))


def batches(x: Tensor, size: int) -> Iterator[Batch]:
    for part in x.split(size):
        yield Batch(part, torch.zeros(len(part)), torch.zeros(len(part)))


def seen_by(layer: Layer, x: Tensor) -> Seen:
    return watch(nn.Sequential(layer), ["0"], batches(x, 10))["0"]


def lost(layer: Layer, chain: nn.Module, x: Tensor) -> float:
    """The fraction of the variance of the layer's output on `x` that the chain loses."""
    with torch.no_grad():
        right, found = layer.double()(x.double()), chain.double()(x.double())
    places = [dim for dim in range(right.dim()) if dim != (1 if right.dim() == 4 else right.dim() - 1)]
    return float((right - found).square().sum() / (right - right.mean(places, keepdim=True)).square().sum())


def weights_lost(way: str, layer: Layer, rank: int) -> float:
    """The fraction of the squared weights that a chain without images loses."""
    weight = layer.weight.detach().double()
    split = SPLITS[way]
    return float((weight - split.dense(split.factor(layer, rank))).square().sum() / weight.square().sum())


# Without images -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", MATRICES)
def test_what_is_lost_is_the_tail_of_the_singular_values(way: str) -> None:
    layer, split = layer_for(way), SPLITS[way]
    singular = split.singular(layer)
    assert len(singular) == split.most(layer) == min(split.shape(layer))
    ranks = list(range(1, split.most(layer)))
    tails = [float(singular[rank:].square().sum() / layer.weight.detach().double().square().sum()) for rank in ranks]
    assert split.errors(layer, ranks) == pytest.approx(tails)
    assert [weights_lost(way, layer, rank) for rank in ranks] == pytest.approx(tails, rel=1e-5)


@pytest.mark.parametrize("way", [*MATRICES, "tucker"])
@pytest.mark.parametrize("looks", [False, True])
def test_the_highest_rank_gives_the_layer_back(way: str, looks: bool) -> None:
    layer, split = layer_for(way), SPLITS[way]
    x = images(30, 7) if way == "linear" else images(4, 6, 9, 9)
    seen = seen_by(layer, x) if looks else None
    chain = split.factor(layer, split.most(layer), seen)
    assert split.errors(layer, [0, split.most(layer)], seen) == pytest.approx([1, 0], abs=1e-8)
    torch.testing.assert_close(split.dense(chain), layer.weight.double(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(chain(x), layer(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("way", SPLITS)
@pytest.mark.parametrize("bias", [False, True])
def test_a_chain_computes_what_its_weights_stand_for(way: str, bias: bool) -> None:
    layer, split = layer_for(way, bias), SPLITS[way]
    chain = split.factor(layer, 3)
    dense = like(layer, split.dense(chain), chain[-1].bias)
    x = torch.randn(2, 7) if way == "linear" else torch.randn(2, 6, 11, 12)
    torch.testing.assert_close(chain.double()(x.double()), dense(x.double()), atol=1e-10, rtol=1e-10)
    assert (chain[-1].bias is None) == (layer.bias is None)


@pytest.mark.parametrize("way", ["linear", "channel", "input", "separable"])
def test_both_factors_are_equally_long(way: str) -> None:
    layer = layer_for(way)
    first, last = (part.weight for part in SPLITS[way].factor(layer, 3))
    singular = SPLITS[way].singular(layer)[:3].float().sqrt()
    torch.testing.assert_close(first.flatten(1).norm(dim=1), singular)
    torch.testing.assert_close(last.transpose(0, 1).flatten(1).norm(dim=1), singular)


def test_a_one_by_one_convolution_is_split_by_channels() -> None:
    layer = nn.Conv2d(6, 8, 1, stride=2)
    chain, x = SPLITS["channel"].factor(layer, 6), torch.randn(2, 6, 7, 7)
    torch.testing.assert_close(chain(x), layer(x), atol=1e-5, rtol=1e-4)


def test_tucker_goes_on_from_what_its_errors_tell() -> None:
    layer = layer_for("tucker")
    told = SPLITS["tucker"].errors(layer, [2, 4])
    reached = [weights_lost("tucker", layer, rank) for rank in (2, 4)]
    assert reached[0] < told[0] and reached[1] < told[1]
    assert reached == pytest.approx(told, rel=0.1)


def test_tucker_cuts_each_side_at_its_width() -> None:
    layer = nn.Conv2d(2, 30, 3)
    split = SPLITS["tucker"]
    assert split.most(layer) == 18  # the number of values at one input position
    assert [tuple(part.weight.shape) for part in split.chain(layer, 5)] == [(2, 2, 1, 1), (5, 2, 3, 3), (30, 5, 1, 1)]
    assert weights_lost("tucker", layer, 18) < 1e-10


def test_cp_finds_a_tensor_of_rank_two() -> None:
    layer = layer_for("cp")
    parts = [torch.randn(size, 2) for size in layer.weight.shape]
    layer.weight.data = torch.einsum("nr,cr,yr,xr->ncyx", *parts)
    assert weights_lost("cp", layer, 2) < 1e-8
    assert SPLITS["cp"].errors(layer, [1, 2])[0] > 0.01 > SPLITS["cp"].errors(layer, [1, 2])[1]


def test_cp_errors_of_many_ranks_lie_on_lines_between_fits_of_a_few() -> None:
    layer, split, ranks = layer_for("cp"), SPLITS["cp"], list(range(1, 41))
    errors = split.errors(layer, ranks)
    assert errors[[0, -1]] == pytest.approx([split.errors(layer, [1])[0], split.errors(layer, [40])[0]])
    assert (np.diff(errors) <= 0).all()


def test_cp_does_not_diverge_where_there_is_no_nearest_tensor() -> None:
    """This sum of three products, of which two factors are shared, has rank 3, but is a limit of tensors of rank 2."""
    a, b = torch.eye(3)[:2]
    layer = nn.Conv2d(3, 3, 3)
    products = [torch.einsum("n,c,y,x->ncyx", *vectors) for vectors in ((a, a, b, a), (a, b, a, a), (b, a, a, a))]
    layer.weight.data = torch.stack(products).sum(0)
    chain = SPLITS["cp"].factor(layer, 2)
    assert max(float(part.weight.detach().abs().max()) for part in chain) < 10
    assert weights_lost("cp", layer, 2) < 0.05


def test_cp_is_as_near_as_that_of_tensorly() -> None:
    from tensorly.cp_tensor import cp_to_tensor
    from tensorly.decomposition import parafac

    layer = layer_for("cp")
    tensor = layer.weight.detach().double().numpy()
    other = cp_to_tensor(parafac(tensor, 6, init="random", random_state=0))
    assert weights_lost("cp", layer, 6) == pytest.approx(((tensor - other) ** 2).sum() / (tensor**2).sum(), rel=0.05)


@pytest.mark.parametrize("way", SPLITS)
def test_a_dead_layer_loses_nothing(way: str) -> None:
    layer = layer_for(way)
    layer.weight.data.zero_()
    assert SPLITS[way].errors(layer, [2]) == 0
    assert (SPLITS[way].dense(SPLITS[way].factor(layer, 2)) == 0).all()


# With images ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["linear", "channel"])
@pytest.mark.parametrize("bias", [False, True])
def test_what_the_output_loses_was_foretold(way: str, bias: bool) -> None:
    layer, split = layer_for(way, bias), SPLITS[way]
    x = images(60, 7) if way == "linear" else images(20, 6, 9, 9)
    seen = seen_by(layer, x)
    for rank in (1, 2, 4):
        found = lost(layer, split.factor(layer, rank, seen), x)
        assert found == pytest.approx(split.errors(layer, [rank], seen)[0], rel=1e-5)
        assert found < lost(layer, split.factor(layer, rank), x)


@pytest.mark.parametrize("way", ["input", "tucker"])
def test_foretold_also_where_the_places_of_a_patch_are_uncorrelated(way: str) -> None:
    """Each image is one patch: orthogonal columns, with the same mixing of channels at each position."""
    layer, split = nn.Conv2d(4, 6, 3, bias=False), SPLITS[way]
    columns = torch.randn(200, 9 * 4, dtype=torch.float64)
    columns = torch.linalg.qr(columns - columns.mean(0)).Q.reshape(200, 9, 4)
    mixed = columns @ torch.randn(4, 4).double() + torch.randn(4)
    x = mixed.mT.reshape(200, 4, 3, 3)
    seen = seen_by(layer.double(), x)
    for rank in (1, 2, 3):
        foretold = split.errors(layer, [rank], seen)[0]
        assert lost(layer, split.factor(layer, rank, seen), x) == pytest.approx(foretold, rel=1e-5)


@pytest.mark.parametrize("way", ["input", "tucker"])
def test_less_is_lost_than_by_the_weights(way: str) -> None:
    layer, split = nn.Conv2d(6, 8, 3, padding=1), SPLITS[way]
    x = images(20, 6, 9, 9)
    seen = seen_by(layer, x)
    for rank in (2, 4):
        assert lost(layer, split.factor(layer, rank, seen), x) < 0.5 * lost(layer, split.factor(layer, rank), x)


@pytest.mark.parametrize("way", ["separable", "cp"])
def test_some_ways_do_not_care_what_was_seen(way: str) -> None:
    layer, split = layer_for(way, bias=False), SPLITS[way]
    seen = seen_by(layer, images(4, 6, 9, 9))
    assert torch.equal(split.dense(split.factor(layer, 2, seen)), split.dense(split.factor(layer, 2)))
    assert split.errors(layer, [2], seen) == split.errors(layer, [2])
    assert split.factor(layer, 2, seen)[-1].bias is None


def test_what_was_never_seen_follows_the_weights() -> None:
    """Two inputs have a weak activation; of the others, those with the largest weights come next."""
    layer = nn.Linear(6, 6, bias=False)
    layer.weight.data = torch.diag(torch.tensor([0.1, 0.2, 1.0, 5.0, 2.0, 3.0]))
    seen = seen_by(layer, torch.diag(torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0, 0.0]))[:3])
    dense = SPLITS["linear"].dense(SPLITS["linear"].factor(layer, 4, seen))
    torch.testing.assert_close(dense.diag().float(), torch.tensor([0.1, 0.2, 0.0, 5.0, 0.0, 3.0]), atol=1e-4, rtol=1e-3)


# Cache ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", MATRICES)
@pytest.mark.parametrize("looks", [False, True])
def test_a_layer_is_decomposed_once(way: str, looks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch)
    layer, split = layer_for(way), SPLITS[way]
    seen = seen_by(layer, images(30, 7) if way == "linear" else images(4, 6, 9, 9)) if looks else None
    split.errors(layer, [1, 2], seen)
    first = len(calls)
    split.singular(layer, seen), split.factor(layer, 2, seen), split.factor(layer, 3, seen)
    assert len(calls) == first > 0


def test_a_layer_that_has_changed_is_decomposed_anew() -> None:
    layer, split = nn.Linear(7, 5), SPLITS["linear"]
    seen = seen_by(layer, images(30, 7))
    before, looking = split.singular(layer), split.singular(layer, seen)
    assert not torch.equal(before, looking) and torch.equal(split.singular(layer), before)
    layer.weight.data *= 2  # does not change the version counter of the tensor
    assert torch.allclose(split.singular(layer), 2 * before)
    assert split.singular(layer.double()).dtype == torch.float64


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The decompositions computed, in order."""
    calls: list[str] = []

    def counting(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def decompose(*args: Any, **options: Any) -> Any:
            calls.append(name)
            return real(*args, **options)

        return decompose

    for name in ("svd", "eigh"):
        monkeypatch.setattr(torch.linalg, name, counting(name, getattr(torch.linalg, name)))
    return calls


# Structure ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", SPLITS)
@pytest.mark.parametrize("looks", [False, True])
def test_a_chain_is_known_before_its_weights(way: str, looks: bool) -> None:
    layer, split = layer_for(way, bias=False).eval(), SPLITS[way]
    seen = seen_by(layer, images(10, 7) if way == "linear" else images(4, 6, 9, 9)) if looks else None
    known, made = split.chain(layer, 3, bias=looks and split.whitens), split.factor(layer, 3, seen)
    assert all(p.is_meta for p in known.parameters())
    assert describe(known) == describe(made)
    assert not any(part.training for part in (*known, *made))


PARAMS = {  # for a convolution from 6 to 8 channels, k = 3, rank 5, without bias
    "channel": 5 * (9 * 6 + 8),
    "input": 5 * (6 + 9 * 8),
    "separable": 3 * 5 * (6 + 8),
    "tucker": 6 * 5 + 9 * 5 * 5 + 5 * 8,
    "cp": 5 * (6 + 2 * 3 + 8),
}


@pytest.mark.parametrize("way", CONVS)
def test_cost(way: str) -> None:
    """With stride 1 each weight is used once per position."""
    chain = SPLITS[way].factor(nn.Conv2d(6, 8, 3, padding=1, bias=False), 5)
    assert sum(p.numel() for p in chain.parameters()) == PARAMS[way]
    assert count_macs(chain, (6, 10, 12)) == PARAMS[way] * 10 * 12


def test_cost_of_linear_layers() -> None:
    chain = SPLITS["linear"].factor(nn.Linear(7, 9), 4)
    assert sum(p.numel() for p in chain.parameters()) == 4 * (7 + 9) + 9
    assert count_macs(chain, (7,)) == 4 * (7 + 9)


@pytest.mark.parametrize("way", SPLITS)
def test_type_and_bias_stay(way: str) -> None:
    layer = layer_for(way).to(torch.bfloat16)
    chain = SPLITS[way].factor(layer, 2)
    assert {p.dtype for p in chain.parameters()} == {torch.bfloat16}
    assert torch.equal(chain[-1].bias, layer.bias)


class Own(nn.Conv2d):
    """A subclass of a convolution."""


@pytest.mark.parametrize(
    ("layer", "ways", "why"),
    [
        (nn.Conv2d(8, 8, 3), CONVS, ""),
        (nn.Linear(8, 8), ["linear"], ""),
        (nn.Linear(8, 8), CONVS, "not a Conv2d"),
        (nn.Conv2d(8, 8, 3), ["linear"], "not a Linear"),
        (nn.Conv2d(8, 8, 3, groups=2), CONVS, "a grouped convolution"),
        (nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), CONVS, "reflect padding"),
        (nn.Conv2d(8, 8, 3, padding="same"), CONVS, "padding 'same' instead of numbers"),
        (Own(8, 8, 3), CONVS, "its class Own is a subclass of Conv2d"),
        (nn.Conv2d(8, 8, 1), ["channel"], ""),
        (nn.Conv2d(8, 8, 1), ["input", "separable", "tucker", "cp"], "a 1 x 1 convolution"),
        (nn.Conv2d(8, 8, (1, 7)), ["channel", "input", "tucker"], ""),
        (nn.Conv2d(8, 8, (1, 7)), ["separable", "cp"], "its 1 x 7 kernel is already separable"),
    ],
)
def test_why_not(layer: Layer, ways: list[str], why: str) -> None:
    assert {SPLITS[way].why_not(layer) for way in ways} == {why}


@pytest.mark.parametrize("rank", [0, 6])
def test_a_rank_that_is_none_is_refused(rank: int) -> None:
    with pytest.raises(UsageError, match=f"Rank {rank} is out of range for weights of 5 x 7 .linear.: use 1 to 5"):
        SPLITS["linear"].chain(nn.Linear(7, 5), rank)


# Activation statistics ------------------------------------------------------------------------------------------------


def test_moments_come_batch_by_batch() -> None:
    x = 1000 + images(50, 4)
    moments = Moments()
    for part in x.split([1, 29, 20]):
        moments.add(part)
    assert moments.count == 50
    assert moments.mean.numpy() == pytest.approx(x.double().mean(0).numpy())
    assert moments.covariance.numpy() == pytest.approx(np.cov(x.double().numpy().T, bias=True))


def test_watching_leaves_no_trace() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 2, 1), nn.Conv2d(2, 2, 1))
    model[2].eval()
    state, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    x = torch.randn(6, 3, 5, 5)
    seen = watch(model, ["0", "3"], batches(x, 4))
    assert list(seen) == ["0", "3"]
    assert seen["3"].inputs is None  # 1 x 1
    torch.testing.assert_close(seen["0"].inputs.mean, x.double().mean((0, 2, 3)))
    torch.testing.assert_close(seen["0"].outputs.mean, model[0](x).double().mean((0, 2, 3)))
    assert not seen["0"].outputs.mean.requires_grad
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_layers_that_are_not_called_are_absent() -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    model[0].unused = nn.Linear(3, 3)
    assert list(watch(model, ["0", "0.unused"], batches(torch.randn(2, 3), 2))) == ["0"]


def test_of_many_places_some_count_all_over_the_plane() -> None:
    layer = nn.Conv2d(2, 1, 1, bias=False)
    layer.weight.data.fill_(1.0)
    places = torch.stack(torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij"))
    seen = seen_by(layer, torch.stack([places, places, -places, -places]))  # rows plus columns, and the negatives
    assert seen.outputs.count == ROWS
    assert float(seen.outputs.mean) == pytest.approx(0, abs=3)  # of 146
    assert float(seen.outputs.covariance) == pytest.approx(2 * (127 * 255 / 6) + 2 * 63.5**2, rel=0.01)
