"""Re-estimated layers compensate for removed channels: exactly if other channels or a bias can, in part otherwise."""

import copy
from collections.abc import Sequence

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional
from toy import SHAPE, Toy

from compressor.channels import Channels, Mask, Residual, Verified, analyse, remove
from compressor.data import Batch
from compressor.network.inputs import AnyInputs
from compressor.network.outputs import logits_of
from compressor.recovery.least_squares import Squares
from compressor.recovery.repair import Repaired, refit


def cut(model: nn.Module, inputs: AnyInputs, residual: Residual = "coupled", **gone: Sequence[int]) -> Verified:
    """`model` without the channels `gone` of the groups that have these names (with _ for a dot)."""

    def choose(channels: Channels) -> Mask:
        masks = channels.split(channels.all_kept())
        for name, places in gone.items():
            masks[name.replace("_", ".")][list(places)] = False
        return channels.join(masks)

    with torch.random.fork_rng():
        return remove(model.eval(), analyse(model, inputs, residual), choose, inputs)


def halved(model: nn.Module, inputs: AnyInputs, residual: Residual = "coupled") -> Verified:
    """`model` without every second channel of each group."""

    def choose(channels: Channels) -> Mask:
        return channels.join({group.name: torch.arange(group.size).numpy() % 2 == 0 for group in channels.groups})

    return remove(model.eval(), analyse(model, inputs, residual), choose, inputs)


def batches(shape: Sequence[int], count: int = 64, size: int = 64) -> list[Batch]:
    images = torch.randn(count, *shape, generator=torch.Generator().manual_seed(1))
    nothing = torch.zeros(size, dtype=torch.int64)
    return [Batch(part, nothing, nothing) for part in images.split(size)]


def error(original: nn.Module, small: nn.Module, shape: Sequence[int]) -> float:
    """Mean squared difference of the outputs for held-out images."""
    images = torch.randn(64, *shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return float((logits_of(original.eval()(images)) - logits_of(small.eval()(images))).square().mean())


def linear(rows: Sequence[Sequence[float]], bias: Sequence[float] | None = None) -> nn.Linear:
    """A layer with these weights."""
    layer = nn.Linear(len(rows[0]), len(rows), bias=bias is not None)
    layer.weight.data = torch.tensor(rows)
    if bias is not None:
        layer.bias.data = torch.tensor(bias)
    return layer


def test_a_channel_that_others_add_up_to_is_made_up_for_exactly() -> None:
    model = nn.Sequential(linear([[1.0, 0.0], [0.0, 1.0], [2.0, 3.0]]), linear([[1.0, 1.0, 10.0]], [5.0]))
    small = cut(model, (2,), **{"0": [2]})  # 2 of the first and 3 of the second channel
    assert small.model[1].weight.tolist() == [[1, 1]]
    assert refit(model, small.model, small.cut, batches((2,)), (2,), ridges=(1e-9,)) == Repaired(["1"], {})
    assert torch.allclose(small.model[1].weight, torch.tensor([[21.0, 31.0]]), atol=1e-4)
    assert torch.allclose(small.model[1].bias, torch.tensor([5.0]), atol=1e-4)


def test_a_strong_ridge_leaves_the_weights() -> None:
    model = nn.Sequential(linear([[1.0, 0.0], [0.0, 1.0], [2.0, 3.0]]), linear([[1.0, 1.0, 10.0]]))
    small = cut(model, (2,), **{"0": [2]})
    refit(model, small.model, small.cut, batches((2,)), (2,), ridges=(1e9,))
    assert torch.allclose(small.model[1].weight, torch.ones(1, 2), atol=1e-4)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_strides_borders_dilation_and_groups_are_those_of_the_convolution(groups: int, mode: str) -> None:
    torch.manual_seed(0)
    first = nn.Conv2d(2, 6, 1, bias=False)
    for last in (2, 5):  # of either group: the sum of the other two
        first.weight.data[last] = first.weight.data[last - 2] + first.weight.data[last - 1]
    second = nn.Conv2d(6, 4, (3, 2), stride=(2, 1), padding=(2, 1), dilation=(2, 1), groups=groups, padding_mode=mode)
    model, shape = nn.Sequential(first, second), (2, 9, 8)
    channels = analyse(model, shape).groups[0]
    gone = [2, 5] if channels.size == 6 else [2]  # in groups, a choice is one channel of each
    small = cut(model, shape, **{"0": gone})
    assert small.model[1].weight.shape[1] == 4 // groups
    assert error(model, small.model, shape) > 1e-3
    refit(model, small.model, small.cut, batches(shape), shape, ridges=(1e-9,))
    assert error(model, small.model, shape) < 1e-9


class Sum(nn.Module):
    """[n, 2] -> [n, 1]: a shortcut from x itself, and a branch with two equal last inner channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shortcut = linear([[1.0, 0.0], [0.0, 1.0]]), linear([[1.0, 1.0]])
        self.inner, self.last = linear([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]), linear([[4.0, 1.0, 1.0]])

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(self.first(x)) + self.last(self.inner(x))


def test_a_branch_gives_what_its_shortcut_lacks() -> None:
    model = Sum()
    small = cut(model, (2,), first=[1], inner=[2])
    assert refit(model, small.model, small.cut, batches((2,)), (2,), ridges=(1e-9,)).layers == ["shortcut", "last"]
    (first, second), (own,) = small.model.last.weight[0].tolist(), small.model.shortcut.weight[0].tolist()
    assert first + own == pytest.approx(5, abs=1e-4)  # the original's 4 and 1
    assert second == pytest.approx(3, abs=1e-4)  # its 1 and 1, and the 1 that is missing in the shortcut


class Normed(nn.Module):
    """[n, 1, 4, 4] -> [n, 1, 4, 4]: the second of two inner channels is always 5."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 2, 1, bias=False), nn.BatchNorm2d(2)
        self.conv2, self.bn2 = nn.Conv2d(2, 1, 1, bias=False), nn.BatchNorm2d(1)
        self.bn1.weight.data, self.bn1.bias.data = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 5.0])
        self.conv2.weight.data = torch.tensor([2.0, 3.0]).reshape(1, 2, 1, 1)
        self.bn2.running_mean.fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))


def test_refit_puts_the_intercept_into_the_norm_where_there_is_no_bias() -> None:
    model, shape = Normed(), (1, 4, 4)
    small = cut(model, shape, conv1=[1])
    refit(model, small.model, small.cut, batches(shape), shape)
    assert small.model.bn2.running_mean.item() == pytest.approx(1 - 3 * 5)
    assert small.model.conv2.weight.item() == pytest.approx(2)
    assert error(model, small.model, shape) < 1e-9


def paired() -> Toy:
    """A network with pairs of equal channels, so that half of them are redundant."""
    torch.manual_seed(0)
    model = Toy()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("head"):
                parameter[1::2] = parameter[::2]
    return model


@pytest.mark.parametrize("residual", ["coupled", "scatter"])
def test_a_network_of_pairs_is_repaired_through_all_its_layers(residual: Residual) -> None:
    model = paired()
    small = halved(model, SHAPE, residual)
    before = error(model, small.model, SHAPE)
    assert refit(model, small.model, small.cut, batches(SHAPE), SHAPE, ridges=(1e-9,)).left == {}
    assert error(model, small.model, SHAPE) < 1e-6 * before


def test_the_size_of_batches_does_not_matter_and_a_second_call_changes_nothing() -> None:
    model = paired()
    one = halved(model, SHAPE)
    many = copy.deepcopy(one.model)
    refit(model, one.model, one.cut, batches(SHAPE), SHAPE, ridges=(1e-6,))
    once = copy.deepcopy(one.model.state_dict())
    refit(model, many, one.cut, batches(SHAPE, size=8), SHAPE, ridges=(1e-6,))
    refit(model, one.model, one.cut, batches(SHAPE), SHAPE, ridges=(1e-6,))
    for name, value in once.items():
        assert torch.allclose(value, many.state_dict()[name], rtol=1e-5), name
        assert torch.allclose(value, one.model.state_dict()[name], rtol=1e-3, atol=1e-3), name


def test_the_ridge_is_the_one_that_does_best_on_images_that_nothing_was_fitted_to() -> None:
    model = nn.Sequential(linear(torch.eye(40).tolist()), linear([[1.0] * 40], [0.0]))
    errors = {}
    for ridges in ((1e-9,), (1.0,), (1.0, 1e-9)):
        small = cut(model, (40,), **{"0": [0]})
        refit(model, small.model, small.cut, batches((40,)), (40,), ridges=ridges)  # others are independent
        errors[ridges] = error(model, small.model, (40,))
    assert errors[1.0, 1e-9] == errors[1.0,] < errors[1e-9,]


def test_a_transformer_called_by_name_comes_nearer_to_the_original() -> None:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    model = ViTForImageClassification(ViTConfig(image_size=16, patch_size=4, num_labels=5, **sizes))
    shape, inputs = (3, 16, 16), {"pixel_values": (3, 16, 16)}
    small = halved(model, inputs)

    before = error(model, small.model, shape)
    repaired = refit(model, small.model, small.cut, batches(shape), inputs)
    assert error(model, small.model, shape) < before / 2
    assert repaired.left == {} and len([name for name in repaired.layers if "attention" in name]) == 8


class Odd(nn.Module):
    """[n, 4] -> [n, 4]: the consumers of pruned channels are not torch modules, share weights, or depend on themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.own, self.one, self.other, self.again = Own(6, 4), nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(6, 6)
        self.other.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.own(x) + self.one(x) * self.other(x) + self.again(self.again(x).relu())[:, :4]


class Own(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


def test_layers_of_which_too_little_is_known_are_left_alone() -> None:
    model = Odd()
    small = cut(model, (4,), first=[0])
    before = copy.deepcopy(small.model.state_dict())
    repaired = refit(model, small.model, small.cut, batches((4,)), (4,))
    assert repaired.layers == [] and list(repaired.left) == ["own", "one", "again"]
    assert all(torch.equal(value, before[name]) for name, value in small.model.state_dict().items())


# Layers that are called several times ----------------------------------------------------------------------------------


class Levels(nn.Module):
    """[n, 1, 8, 8] -> [n, 2, 8, 8] and [n, 2, 4, 4]: a head for both levels of a pyramid."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 2, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        fine, coarse = self.levels(x)
        return self.head(fine), self.head(coarse)

    def levels(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.first(x).relu()
        return x, functional.max_pool2d(x, 2)


def test_a_head_shared_by_two_levels_is_the_least_squares_solution_for_the_rows_of_both() -> None:
    torch.manual_seed(0)
    model, shape = Levels(), (1, 10, 10)
    small = cut(model, shape, first=[0, 3])
    assert refit(model, small.model, small.cut, batches(shape), shape, ridges=(1e-12,)) == Repaired(["head"], {})

    images = torch.cat([batch.inputs for batch in batches(shape)])
    with torch.no_grad():
        patches = [functional.unfold(level, 3, padding=1).mT.flatten(0, 1) for level in small.model.levels(images)]
        targets = [level.movedim(1, -1).flatten(0, 2) for level in model(images)]
    assert [len(rows) for rows in patches] == [64 * 64, 64 * 16]
    x = functional.pad(torch.cat(patches).double(), (0, 1), value=1.0)
    solution = torch.linalg.lstsq(x, torch.cat(targets).double()).solution.T.float()
    assert torch.allclose(small.model.head.weight.flatten(1), solution[:, :-1], atol=1e-4)
    assert torch.allclose(small.model.head.bias, solution[:, -1], atol=1e-4)


def test_the_positions_of_all_calls_together_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    model, shape, added, add = Levels(), (1, 10, 10), list[int](), Squares.add

    def note(squares: Squares, patches: Tensor, wanted: Tensor) -> None:
        added.append(len(patches))
        add(squares, patches, wanted)

    monkeypatch.setattr(Squares, "add", note)
    small = cut(model, shape, first=[0, 3])
    refit(model, small.model, small.cut, batches(shape), shape, rows=1000)
    assert added == [600, 200, 150, 50]  # of 4096 and 1024 positions, three quarters to fit to and one to choose the ridge with


class Twin(nn.Module):
    """Two views of an image through one network."""

    def __init__(self) -> None:
        super().__init__()
        self.net = paired()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * self.net(x.flip(-1) + 1)


@pytest.mark.parametrize(("residual", "rows"), [("coupled", 1 << 15), ("scatter", 1 << 15), ("coupled", 500)])
def test_a_network_that_is_called_twice_is_repaired_through_all_its_layers(residual: Residual, rows: int) -> None:
    model = Twin()
    small = halved(model, SHAPE, residual)
    before = error(model, small.model, SHAPE)
    assert refit(model, small.model, small.cut, batches(SHAPE), SHAPE, ridges=(1e-9,), rows=rows).left == {}
    assert error(model, small.model, SHAPE) < 1e-6 * before


class Norms(nn.Module):
    """[n, 1, 4, 4] -> [n, 1, 4, 4]: a convolution without bias that two norms follow; its second input is always 5."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn = nn.Conv2d(1, 2, 1), nn.ModuleList(nn.BatchNorm2d(1) for _ in range(2))
        self.conv2 = nn.Conv2d(2, 1, 1, bias=False)
        self.conv1.weight.data = torch.tensor([1.0, 0.0]).reshape(2, 1, 1, 1)
        self.conv1.bias.data = torch.tensor([0.0, 5.0])
        self.conv2.weight.data = torch.tensor([2.0, 3.0]).reshape(1, 2, 1, 1)
        self.bn[1].running_mean.fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn[0](self.conv2(self.conv1(x))) + 3 * self.bn[1](self.conv2(self.conv1(x + 1)))


def test_each_norm_after_a_shared_layer_takes_its_intercept() -> None:
    model, shape = Norms(), (1, 4, 4)
    small = cut(model, shape, conv1=[1])
    assert refit(model, small.model, small.cut, batches(shape), shape, ridges=(1e-9,)).layers == ["conv2"]
    assert [norm.running_mean.item() for norm in small.model.bn] == pytest.approx([-15, 1 - 15], abs=1e-4)
    assert error(model, small.model, shape) < 1e-9


class Sums(nn.Module):
    """[n, 2] -> [n, 2]: an output is added to one that depends on it, and two are added to each other, and one once more."""

    def __init__(self) -> None:
        super().__init__()
        self.first = linear([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        self.a, self.b, self.c, self.d, self.e = (nn.Linear(size, 2) for size in (3, 2, 3, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        a, c, d = self.a(x), self.c(x), self.d(x)
        return (a + self.b(a).relu()) * (c + d) * (c + self.e(x).relu())


def test_sums_of_what_depends_on_a_layer_or_comes_later_do_not_change_its_target() -> None:
    torch.manual_seed(0)
    model = Sums()
    small = cut(model, (2,), first=[2])
    assert error(model, small.model, (2,)) > 1e-2
    assert refit(model, small.model, small.cut, batches((2,)), (2,), ridges=(1e-9,)).left == {}
    assert error(model, small.model, (2,)) < 1e-9


# Calls that cannot be paired -------------------------------------------------------------------------------------------


class Steps(nn.Module):
    """[n, 2] -> [n, 2]: `head` is called `large` or `small` times, depending on the values of its input."""

    def __init__(self, large: int, small: int) -> None:
        super().__init__()
        self.large, self.small = large, small
        self.first, self.head, self.tail = linear([[1.0, 0.0], [0.0, 100.0], [1.0, 1.0]]), nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        times = self.large if x.abs().sum(1).mean() > 50 else self.small
        return self.tail(torch.stack([self.head(x + i) for i in range(times)]).sum(0))


@pytest.mark.parametrize(("large", "small"), [(2, 1), (1, 2), (3, 2), (2, 3)])
def test_a_layer_whose_number_of_calls_depends_on_the_data_is_left_alone_and_told(large: int, small: int) -> None:
    torch.manual_seed(0)
    model = Steps(large, small)
    pruned = cut(model, (2,), first=[1])
    before = copy.deepcopy(pruned.model.head.state_dict())
    repaired = refit(model, pruned.model, pruned.cut, batches((2,)), (2,))
    assert repaired.left == {"head": f"the original calls it {large} times, the pruned network {small}"}
    assert repaired.layers == ["tail"]
    assert all(torch.equal(value, before[name]) for name, value in pruned.model.head.state_dict().items())


class Chosen(nn.Module):
    """[n, 2] -> [rows, 2]: the rows that reach `head` are chosen by their values."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.first = kind, linear([[1.0, 0.0], [0.0, 100.0], [1.0, 1.0]])
        self.body, self.head = nn.Linear(2, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        score = self.first(x).sum(1)
        if self.kind == "top":
            x = x[score.topk(len(x) // 2).indices]
        elif self.kind == "above":
            x = x[score > 0]
        elif self.kind == "into":
            kept = torch.zeros_like(x)
            kept[: len(x) // 2] = x[score.argsort()[::2][: len(x) // 2]]
            x = kept
        elif self.kind == "nms":
            corners = torch.cat([x, x + 1], 1)
            x = x[torchvision.ops.nms(corners, score, 0.5)]
        elif self.kind == "count":
            x = x[: 1 + int(score.abs().mean() > 10)]
        return self.head(self.body(x))


SELECTED = "its positions are selected by values: those of the two networks do not correspond"


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        *((kind, SELECTED) for kind in ("top", "above", "into", "nms")),
        ("count", "its input has other positions: [2] in the original, [1] now"),
    ],
)
def test_rows_that_are_chosen_by_their_values_are_not_paired(kind: str, reason: str) -> None:
    torch.manual_seed(0)
    model = Chosen(kind)
    pruned = cut(model, (2,), first=[1], body=[0])
    before = copy.deepcopy(pruned.model.state_dict())
    repaired = refit(model, pruned.model, pruned.cut, batches((2,)), (2,))
    assert repaired.layers == [] and repaired.left["head"] == reason
    assert all(torch.equal(value, before[name]) for name, value in pruned.model.state_dict().items())


def test_rows_that_are_chosen_by_the_inputs_alone_are_paired() -> None:
    class ByInput(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = linear([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.first(x)[x[:, 0].argsort()])

    model = ByInput()
    pruned = cut(model, (2,), first=[2])
    assert refit(model, pruned.model, pruned.cut, batches((2,)), (2,), ridges=(1e-9,)) == Repaired(["head"], {})
    images = torch.randn(9, 2)
    assert torch.allclose(model(images), pruned.model(images), atol=1e-4)


class OneNorm(Norms):
    """One norm follows two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Conv2d(2, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        return self.bn[0](self.conv2(x)) + 3 * self.bn[0](self.other(x))


def test_a_norm_that_follows_two_layers_takes_no_intercept_of_either() -> None:
    model, shape = OneNorm(), (1, 4, 4)
    pruned = cut(model, shape, conv1=[1])
    left = dict.fromkeys(["conv2", "other"], "the batch norm after it also follows something else")
    assert refit(model, pruned.model, pruned.cut, batches(shape), shape) == Repaired([], left)


def test_without_images_nothing_changes() -> None:
    model = Normed()
    small = cut(model, (1, 4, 4), conv1=[1])
    assert refit(model, small.model, small.cut, [], (1, 4, 4)) == Repaired([], {"conv2": "there were no images"})
    assert small.model.conv2.weight.item() == 2


def test_modes_are_given_back_and_no_hook_stays() -> None:
    model, shape = Normed(), (1, 4, 4)
    small = cut(model, shape, conv1=[1])
    model.train()
    small.model.bn1.train()
    refit(model, small.model, small.cut, batches(shape), shape)
    assert model.bn1.training and small.model.bn1.training and not small.model.bn2.training
    modules = [*model.modules(), *small.model.modules()]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)
