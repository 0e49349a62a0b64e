"""One tiny network for each operator: the coupled channels, the frozen ones with the reason, and half of the rest pruned."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from random_cuts import apart, at_random, cut_and_check, liven
from torch import Tensor, nn
from torchvision.ops import roi_align

from compressor.channels import Channels, analyse, mask, remove

SHAPE = (3, 8, 8)


class Between(nn.Module):
    """[n, 3, 8, 8] -> conv of 8 channels -> `step` -> conv of 6 channels from `width` -> mean -> [n, 6]."""

    def __init__(self, step: Callable[[Tensor], Tensor], width: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.step = step  # a module, or a function
        self.last = nn.Conv2d(width, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.step(self.first(x))).mean((2, 3))


class Two(nn.Module):
    """Two convolutions of 8 channels side by side, `joined`, and a convolution of 6 channels."""

    def __init__(self, joined: Callable[[Tensor, Tensor], Tensor], width: int = 8) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
        self.joined = joined
        self.last = nn.Conv2d(width, 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.joined(self.left(x), self.right(x))).mean((2, 3))


def groups(channels: Channels) -> dict[str, tuple[int, set[str]]]:
    """Number of atoms, and the layers that produce the channels, by group."""
    return {group.name: (group.size, set(group.layers)) for group in channels.groups}


def coupled(model: nn.Module, shape: tuple[int, ...] = SHAPE) -> dict[str, tuple[int, set[str]]]:
    """The groups of `model`, after half of each was pruned and the result checked."""
    return groups(cut_and_check(model, shape).channels)


def why_frozen(model: nn.Module, shape: tuple[int, ...] = SHAPE) -> dict[str, str]:
    return {row.name: row.reason for row in analyse(liven(model), shape).frozen()}


# Layers ---------------------------------------------------------------------------------------------------------------


def test_convolution_joins_what_it_reads_and_keeps_the_outputs() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3))
    (group,) = cut_and_check(model).channels.groups
    assert {(m.tensor, m.dim, m.role) for m in group.members} == {
        ("0.weight", 0, "out"),
        ("0.bias", 0, "scale"),
        ("1.weight", 1, "in"),
    }
    assert why_frozen(model) == {"1": "it is an output of the model"}


def test_grouped_convolution_keeps_its_groups_equal() -> None:
    grouped = nn.Conv2d(8, 12, 3, padding=1, groups=4)
    verified = cut_and_check(Between(grouped, 12))
    assert groups(verified.channels) == {"first": (2, {"first"}), "step": (3, {"step"})}  # atoms of one channel a group
    small = verified.model.step
    assert (small.in_channels, small.out_channels, small.groups) == (4, 8, 4)


def test_depthwise_convolution_goes_with_its_input() -> None:
    verified = cut_and_check(Between(nn.Conv2d(8, 8, 3, groups=8)))
    assert groups(verified.channels) == {"first": (8, {"first"})}
    small = verified.model.step
    assert (small.in_channels, small.out_channels, small.groups) == (4, 4, 4)


def test_depthwise_convolution_with_a_multiplier() -> None:
    verified = cut_and_check(Between(nn.Conv2d(8, 24, 3, groups=8), 24))
    assert groups(verified.channels) == {"first": (8, {"first"})}
    small = verified.model.step
    assert (small.in_channels, small.out_channels, small.groups) == (4, 12, 4)


def test_transposed_convolution_has_its_outputs_in_dimension_one() -> None:
    verified = cut_and_check(Between(nn.ConvTranspose2d(8, 10, 2, stride=2), 10))
    assert groups(verified.channels) == {"first": (8, {"first"}), "step": (10, {"step"})}
    assert verified.cut.kept["step.weight"].keys() == {0, 1}


def test_grouped_transposed_convolution_stays() -> None:
    frozen = why_frozen(Between(nn.ConvTranspose2d(8, 8, 2, groups=8)))
    assert frozen["first"] == "it feeds a grouped transposed convolution"


def test_convolution_over_places_freezes_channels_that_lie_there() -> None:
    """[n, tokens, channels]: the convolution mixes tokens, with the channels as its spatial dimension."""

    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.mix, self.head = nn.Linear(4, 8), nn.Conv1d(5, 5, 1), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.mix(self.embed(x))).mean(1)

    frozen = why_frozen(Mixer(), (5, 4))
    assert frozen["embed"] == "a convolution uses it as a batch or spatial dimension"


def test_linear_layers_of_a_perceptron() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4))
    assert coupled(model) == {"1": (16, {"1"}), "3": (12, {"3"})}


def test_product_of_two_layers_joins_what_it_sums_over() -> None:
    """Attention without softmax: queries and keys share their channels, values keep their own."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.out = nn.Linear(8, 6), nn.Linear(8, 6), nn.Linear(8, 10), nn.Linear(10, 4)

        def forward(self, x: Tensor) -> Tensor:  # [n, tokens, 8]
            weights = torch.softmax(self.q(x) @ self.k(x).transpose(1, 2), -1)  # [n, tokens, tokens]
            return self.out(weights @ self.v(x)).mean(1)

    assert coupled(Attention(), (5, 8)) == {"q": (6, {"q", "k"}), "v": (10, {"v"})}


@pytest.mark.parametrize("dim", [0, 1])
def test_product_counts_what_no_weight_takes_part_in(dim: int) -> None:
    """Two activations are multiplied after an operator without a rule: the product still counts."""

    class Gram(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:  # [n, 5, 6]
            x = torch.cummax(self.second(self.first(x)), 1 + dim).values
            return self.head(x @ x.transpose(1, 2)).mean(1)

    assert coupled(Gram(), (5, 6)) == {"first": (8, {"first"})}


# Normalisation --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"affine": False}, {"track_running_stats": False}])
def test_batch_norm_goes_with_its_channels(settings: dict[str, bool]) -> None:
    verified = cut_and_check(Between(nn.BatchNorm2d(8, **settings)))
    assert groups(verified.channels) == {"first": (8, {"first"})}
    assert verified.model.step.num_features == 4
    names = {name.removeprefix("step.") for name in verified.cut.kept if name.startswith("step")}
    assert names == ({"weight", "bias"} if settings.get("affine", True) else set()) | (
        {"running_mean", "running_var"} if settings.get("track_running_stats", True) else set()
    )


def test_layer_norm_averages_over_what_remains() -> None:
    """By hand: the norm of the pruned network is a norm of only the kept channels."""
    model = liven(nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.Linear(8, 3))).double()
    verified = cut_and_check(model, (5,))
    (kept,) = verified.cut.kept["1.weight"].values()
    assert verified.model[1].normalized_shape == (4,)
    x = torch.randn(2, 5).double()
    narrow = F.layer_norm(model[0](x)[:, kept], (4,), model[1].weight[kept], model[1].bias[kept])  # [2, 4]
    by_hand = F.linear(narrow, model[2].weight[:, kept], model[2].bias)
    assert torch.allclose(verified.model.double()(x), by_hand)


def test_layer_norm_without_weights_keeps_its_width() -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8, elementwise_affine=False), nn.Linear(8, 3))
    assert why_frozen(model, (5,))["0"] == "a layer norm without weights averages over it"


def test_layer_norm_over_space_keeps_its_width() -> None:
    assert why_frozen(Between(nn.LayerNorm([8, 8, 8])))["first"] == "a layer norm averages over it and over spatial dimensions"


def test_group_norm_keeps_its_groups_equal() -> None:
    verified = cut_and_check(Between(nn.GroupNorm(2, 8)))
    assert groups(verified.channels) == {"first": (4, {"first"})}
    assert (verified.model.step.num_groups, verified.model.step.num_channels) == (2, 4)


def test_group_norm_of_single_channels_stays() -> None:
    assert why_frozen(Between(nn.GroupNorm(8, 8)))["first"] == "each of its channels is a group of a group norm"


def test_instance_norm_goes_with_its_channels() -> None:
    assert coupled(Between(nn.InstanceNorm2d(8, affine=True))) == {"first": (8, {"first"})}


# Element by element ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "joined",
    [
        lambda a, b: a + b,
        lambda a, b: a.clone().sub_(b),
        lambda a, b: a * b.sigmoid(),
        lambda a, b: torch.maximum(a, b),
        lambda a, b: torch.where(a > b, a, F.gelu(b)),
        lambda a, b: a.lerp(b, 0.3),
        lambda a, b: torch.addcmul(a, a, b),
        lambda a, b: a * b.mean((2, 3), keepdim=True),
    ],
    ids="add sub mul maximum where lerp addcmul gate".split(),
)
def test_element_wise_joins_both_sides(joined: Callable[[Tensor, Tensor], Tensor]) -> None:
    assert coupled(Two(joined)) == {"left": (8, {"left", "right"})}


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.SiLU(), nn.Hardswish(), nn.GELU(), nn.PReLU(8), nn.Sigmoid(), nn.ELU()])
def test_activations_carry_channels(activation: nn.Module) -> None:
    assert coupled(Between(activation)) == {"first": (8, {"first"})}


def test_broadcast_operands_join_nothing() -> None:
    assert coupled(Between(lambda x: x + x.sum(1, keepdim=True))) == {"first": (8, {"first"})}


def test_a_constant_of_the_same_width_freezes() -> None:
    frozen = why_frozen(Between(lambda x: x + torch.arange(8.0, device=x.device).view(1, 8, 1, 1)))
    assert frozen["first"] == "it is combined with values that no layer produces"


def test_a_bare_scale_goes_with_its_channels() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gamma = nn.Parameter(torch.ones(1, 8, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.gamma

    verified = cut_and_check(Between(Scale()))
    assert verified.model.step.gamma.shape == (1, 4, 1, 1)


# Concatenation and splitting ------------------------------------------------------------------------------------------


def test_concatenation_keeps_both_sides_apart() -> None:
    assert coupled(Two(lambda a, b: torch.cat([a, b], 1), 16)) == {"left": (8, {"left"}), "right": (8, {"right"})}


def test_concatenation_with_constants_keeps_their_places() -> None:
    verified = cut_and_check(Two(lambda a, b: torch.cat([a + b, a.new_ones(len(a), 1, *a.shape[2:])], 1), 9))
    assert verified.cut.kept["last.weight"][1][-1] == 8


@pytest.mark.parametrize(
    "step",
    [
        lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
        lambda x: torch.cat([x[:, x.shape[1] // 2 :], x[:, : x.shape[1] // 2]], 1),
        lambda x: x.chunk(2, 1)[0] * x.chunk(2, 1)[1].sigmoid(),
        lambda x: torch.cat(x.split(x.shape[1] // 2, 1)[::-1], 1),
    ],
    ids="chunk slice gate split".split(),
)
def test_equal_chunks_stay_equal(step: Callable[[Tensor], Tensor]) -> None:
    width = step(torch.zeros(1, 8, 1, 1)).shape[1]
    assert coupled(Between(step, width)) == {"first": (4, {"first"})}


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (lambda x: x[:, :3], "3 of 8 channels: the model's code hard-codes its width, 3"),
        (lambda x: x[:, -3:], "3 of 8 channels: the model's code hard-codes its width, 3"),
        (lambda x: x[:, 1:7:3], "the model slices it at fixed indices"),
        (lambda x: x.split([3, 5], 1)[0], "the model's code hard-codes its width, 3; the model's code hard-codes its width, 5"),
        (lambda x: x.chunk(3, 1)[0], "the model splits it into unequal parts"),
    ],
    ids="head tail stride split chunk".split(),
)  # fmt: skip
def test_parts_of_a_size_written_into_the_code_stay(step: Callable[[Tensor], Tensor], reason: str) -> None:
    width = step(torch.zeros(1, 8, 1, 1)).shape[1]
    assert why_frozen(Between(step, width))["first"] == reason


def test_every_second_channel_goes_with_the_one_after_it() -> None:
    assert coupled(Between(lambda x: x[:, 1::2], 4)) == {"first": (4, {"first"})}


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (lambda x: x.select(1, 2)[:, None] * x, "3 of 8 channels: the model selects it by index"),
        (lambda x: x.select(1, -1)[:, None] * x, "the model selects it by index"),
        (lambda x: x.unbind(1)[2][:, None] * x, "the model unbinds it"),
    ],
)
def test_a_picked_channel_holds_those_before_it(step: Callable[[Tensor], Tensor], reason: str) -> None:
    assert why_frozen(Between(step))["first"].endswith(reason)


def test_selecting_in_space_touches_no_channel() -> None:
    assert coupled(Between(lambda x: x[:, :, 2:6, ::2].select(3, 0).unsqueeze(-1).expand(-1, -1, -1, 4))) == {
        "first": (8, {"first"})
    }


def test_rows_that_are_put_into_a_new_tensor_keep_their_channels() -> None:
    def sorted_out(x: Tensor) -> Tensor:
        result = x.new_zeros(len(x), x.shape[1], 8, 8)
        rows = torch.arange(len(x), device=x.device)
        result[rows] = x
        return result

    assert coupled(Between(sorted_out)) == {"first": (8, {"first"})}


def test_regions_of_boxes_keep_the_channels() -> None:
    boxes = torch.tensor([[0, 0.0, 0.0, 4.0, 4.0], [0, 2.0, 2.0, 6.0, 6.0]])
    model = liven(Between(lambda x: roi_align(x, boxes.to(x), 4)))
    verified = remove(model, analyse(model, SHAPE), at_random(), SHAPE)
    assert groups(verified.channels) == {"first": (8, {"first"})}
    assert verified.model.first.out_channels == 4


# Views ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "step",
    [
        lambda x: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2),
        lambda x: x.transpose(1, -1).movedim(-1, 1),
        lambda x: x.unsqueeze(1).squeeze(1),
        lambda x: x[:, None].expand(-1, 2, -1, -1, -1).sum(1),
        lambda x: x.flatten(2).unflatten(2, (8, 8)),
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: x.roll(1, 2).flip(3),
        lambda x: x.reshape(len(x), x.shape[1], 4, 2, 4, 2).mean((3, 5)),
    ],
    ids="permute movedim squeeze expand flatten channels_last roll patches".split(),
)
def test_views_carry_channels(step: Callable[[Tensor], Tensor]) -> None:
    assert coupled(Between(step)) == {"first": (8, {"first"})}


def test_repeated_channels_go_with_all_their_copies() -> None:
    verified = cut_and_check(Between(lambda x: x.repeat(1, 3, 1, 1), 24))
    assert groups(verified.channels) == {"first": (8, {"first"})}
    assert verified.model.last.in_channels == 12


def test_interleaved_copies_go_together() -> None:
    assert coupled(Between(lambda x: x.repeat_interleave(2, 1), 16)) == {"first": (8, {"first"})}


@pytest.mark.parametrize("step", [lambda x: x.roll(1, 1), lambda x: x.flip(1), lambda x: x.roll(3)])
def test_moving_channels_about_freezes_them(step: Callable[[Tensor], Tensor]) -> None:
    assert why_frozen(Between(step))["first"] == "the model rolls or flips it"


def test_padded_channels_keep_their_places() -> None:
    """The shortcut of the CIFAR ResNets: two constant channels before, two after."""
    verified = cut_and_check(Between(lambda x: F.pad(x, (0, 0, 0, 0, 2, 2)), 12))
    kept = verified.cut.kept["last.weight"][1]
    assert kept[:2].tolist() == [0, 1] and kept[-2:].tolist() == [10, 11] and len(kept) == 8


def test_a_padded_sum_holds_the_channels_beside_the_padding() -> None:
    class Widen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide = nn.Conv2d(8, 12, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.wide(x) + F.pad(x, (0, 0, 0, 0, 2, 2))

    model = Between(Widen(), 12)
    assert coupled(model) == {"first": (8, {"first", "step.wide"})}
    assert why_frozen(model)["step.wide"] == "4 of 12 channels: it is combined with padding"


def test_cropped_channels_stay() -> None:
    assert why_frozen(Between(lambda x: F.pad(x, (0, 0, 0, 0, -1, -1)), 6))["first"] == "the model crops it by a fixed amount"


def test_flattened_maps_go_with_their_channel() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), nn.Flatten(), nn.Linear(32, 5))  # [n, 8, 2, 2] -> [n, 32]
    verified = cut_and_check(model)
    (group,) = verified.channels.groups
    assert group.size == 8
    assert next(m for m in group.members if m.tensor == "2.weight").indices[1].tolist() == [4, 5, 6, 7]


def shuffle(x: Tensor) -> Tensor:
    n, channels, height, width = x.shape
    return x.view(n, 2, channels // 2, height, width).transpose(1, 2).reshape(n, channels, height, width)


@pytest.mark.parametrize("step", [shuffle, nn.ChannelShuffle(2)], ids=["views", "module"])
def test_shuffled_channels_stay_in_equal_groups(step: Callable[[Tensor], Tensor]) -> None:
    assert coupled(Between(nn.Sequential(Step(step), nn.Conv2d(8, 8, 1, groups=2)))) == {
        "first": (2, {"first"}),  # shuffled, the channels of both halves meet in both groups of the convolution
        "step.1": (4, {"step.1"}),
    }


class Step(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def test_heads_keep_their_number_and_lose_channels_alike() -> None:
    """[n, tokens, heads * 4]: the last axis of a split is pruned, by the same indices in each head."""

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (f(x).unflatten(-1, (2, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))  # [n, 2, tokens, 4]
            mixed = torch.softmax(q @ k.transpose(2, 3), -1) @ v
            return self.head(self.out(mixed.transpose(1, 2).flatten(2))).mean(1)

    assert coupled(Heads(), (5, 8)) == {"q": (4, {"q", "k"}), "v": (4, {"v"}), "out": (8, {"out"})}


def test_two_sets_of_channels_flattened_into_one_stay() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(5, 4), nn.Linear(5, 6), nn.Linear(24, 3)

        def forward(self, x: Tensor) -> Tensor:  # [n, 5]
            return self.head((self.a(x)[:, :, None] * self.b(x)[:, None, :]).flatten(1))

    assert why_frozen(Outer(), (5,))["a"] == "two channel dimensions are flattened into one"


@pytest.mark.parametrize(
    ("step", "width", "atoms"), [(nn.PixelShuffle(2), 2, 2), (nn.PixelUnshuffle(2), 32, 8)], ids=["shuffle", "unshuffle"]
)
def test_pixel_shuffle_keeps_squares_of_channels(step: nn.Module, width: int, atoms: int) -> None:
    assert coupled(Between(step, width)) == {"first": (atoms, {"first"})}


# Space and reductions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "step",
    [
        nn.MaxPool2d(2),
        nn.AvgPool2d(3, 1),
        nn.AdaptiveAvgPool2d(3),
        nn.AdaptiveMaxPool2d(3),
        nn.Upsample(scale_factor=2),
        nn.Upsample(size=(5, 6), mode="bilinear"),
        nn.Upsample(scale_factor=1.5, mode="bicubic"),
        nn.ReflectionPad2d(1),
        nn.ReplicationPad2d(1),
        nn.ZeroPad2d(1),
    ],
    ids=lambda step: type(step).__name__ + str(getattr(step, "mode", "")),
)
def test_pooling_and_scaling_carry_channels(step: nn.Module) -> None:
    assert coupled(Between(step)) == {"first": (8, {"first"})}


def test_a_sum_over_channels_does_not_feel_what_is_gone() -> None:
    class Dot(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:  # [n, 4, 5] -> [n, 4] -> [n, 3]
            return self.head((self.a(x) * self.b(x)).sum(-1))

    assert coupled(Dot(), (4, 5)) == {"a": (8, {"a", "b"})}


@pytest.mark.parametrize("name", ["mean", "amax", "prod", "var", "argmax"])
def test_other_reductions_over_channels_freeze_them(name: str) -> None:
    frozen = why_frozen(Between(lambda x: x * getattr(x, name)(1, keepdim=True)))
    assert frozen["first"] == f"the model takes its {name} over channels"


@pytest.mark.parametrize("name", ["mean", "amax", "sum", "var"])
def test_reductions_over_space_carry_channels(name: str) -> None:
    assert coupled(Between(lambda x: x * getattr(x, name)((2, 3), keepdim=True))) == {"first": (8, {"first"})}


def test_softmax_over_channels_freezes_them() -> None:
    assert why_frozen(Between(lambda x: x.softmax(1)))["first"] == "the model takes a softmax over channels"
    assert coupled(Between(lambda x: x.softmax(2))) == {"first": (8, {"first"})}


def test_an_unknown_operator_freezes_what_it_touches_and_is_named() -> None:
    model = Between(nn.Sequential(nn.Conv2d(8, 10, 1), Step(lambda x: torch.cummax(x, 2).values)), 10)
    channels = cut_and_check(model).channels
    assert groups(channels) == {"first": (8, {"first"})}
    assert channels.unknown_operators() == {"aten.cummax.default": 1}
    assert why_frozen(model)["step.0"] == "operator aten.cummax.default has no rule"


def test_a_masked_channel_of_a_layer_norm_is_not_in_the_average() -> None:
    """There the plain masked model differs from the pruned one, as it must; batch norms are not affected."""
    model, choose = liven(Between(nn.GroupNorm(2, 8))), lambda channels: channels.all_kept() & (torch.arange(4) < 2).numpy()
    verified = remove(model, analyse(model, SHAPE), choose, SHAPE)
    assert apart(verified.model, mask(model, verified.cut), SHAPE, torch.float64) > 0.01
