"""Networks with unusual code: the prunable channels are pruned exactly, and the others are kept with a reason."""

import copy

import pytest
import torch
import torch.nn.functional as F
from random_cuts import EXACT, answers, apart, at_random, cut_and_check, liven, macs
from resnet import resnet20  # found through the line above
from torch import Tensor, nn
from torchvision.models import get_model

from compressor.channels import Channels, Mask, Residual, Verified, analyse, mask, remove
from compressor.channels.trace import RuleFailed, Trace
from compressor.channels.verify import TOLERANCE, difference
from compressor.errors import UsageError, VerificationFailed

SHAPE = (3, 8, 8)


def sizes(channels: Channels) -> dict[str, int]:
    return {group.name: group.size for group in channels.groups}


def cut(model: nn.Module, shape: tuple[int, ...] = SHAPE, residual: Residual = "coupled") -> Verified:
    """Prune half of every group, as far as the network allows."""
    return remove(model, analyse(model, shape, residual), at_random(), shape)


# Common ResNets ---------------------------------------------------------------------------------------------------------


def test_resnet20_coupled_cuts_the_stream_beside_its_padding() -> None:
    """The 16 channels of the first stage run through all three stages; channels that a shortcut pads with zeros are frozen."""
    verified = cut_and_check(resnet20(), (3, 32, 32))
    widths = sizes(verified.channels)
    assert widths.pop("conv1") == 16
    assert sorted(widths.values()) == [16] * 3 + [32] * 3 + [64] * 3  # the inside of each block
    stage = verified.channels.frozen()
    assert {row.name: row.reason for row in stage}["layer2.0.conv2"] == "16 of 32 channels: it is combined with padding"
    assert verified.model.conv1.out_channels == 8
    assert verified.model.layer2[0].conv2.out_channels == 16 + 8


def test_resnet20_scattered_cuts_every_convolution() -> None:
    """As reported in papers: every layer has channels of its own, and the residual stream keeps its width."""
    verified = cut_and_check(resnet20(), (3, 32, 32), residual="scatter")
    convolutions = {name for name, module in resnet20().named_modules() if isinstance(module, nn.Conv2d)}
    assert sizes(verified.channels).keys() == convolutions
    assert verified.model.layer1[0].bn2.num_features == 8
    assert verified.model.layer1[1].conv1.in_channels == 16
    assert not any(isinstance(m, nn.Conv2d) and m.out_channels == 64 for m in verified.model.modules())


# Hard-coded widths ------------------------------------------------------------------------------------------------------


class Flat(nn.Module):
    """Hard-codes the length of its flattened features."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(512, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x)).view(-1, 512))


class Reshaped(nn.Module):
    """Stores its width as an attribute of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 8
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x))
        return self.head(self.norm(x.reshape(len(x), self.width, -1).transpose(1, 2))).mean(1)


class Checked(nn.Module):
    """Raises for any other width."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x))
        if x.shape[1] != 8:
            raise ValueError("8 channels are needed")
        return self.last(x).mean((2, 3))


def test_a_width_written_into_the_code_is_frozen_and_told() -> None:
    verified = cut(liven(Flat()))
    reasons = {row.name: row.reason for row in verified.channels.frozen()}
    assert reasons["second"] == "the model's code hard-codes its width, 512"
    assert not verified.channels.held
    assert (verified.model.first.out_channels, verified.model.second.out_channels) == (4, 8)


def test_a_width_kept_on_a_module_is_set_anew() -> None:
    verified = cut_and_check(Reshaped())
    assert verified.model.width == verified.model.second.out_channels == 4
    assert verified.cut.counts[""] == {"width": 4}


def test_a_width_that_the_code_insists_on_is_held_and_told() -> None:
    verified = cut(liven(Checked()))
    assert verified.channels.held == {"second": "the model's code relies on its width: 8 channels are needed"}
    assert {row.name for row in verified.channels.frozen()} == {"last", "second"}
    assert (verified.model.first.out_channels, verified.model.second.out_channels) == (4, 8)
    assert verified.difference <= EXACT


def test_a_cut_that_runs_but_is_wrong_is_found_out() -> None:
    """A zero channel does not change a sum over channels, but the sigmoid of zero is a half."""

    class Summed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(1, 5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.second(self.first(x)).sigmoid().sum(1, keepdim=True)).mean((2, 3))

    verified = cut(liven(Summed()))
    assert verified.channels.held.keys() == {"second"}
    assert "the pruned model differs from the masked one by" in verified.channels.held["second"]
    assert verified.model.first.out_channels == 4


def test_a_network_that_never_answers_twice_alike_cannot_be_shown_equal() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(F.dropout(self.first(x), 0.5, training=True))

    with pytest.raises(VerificationFailed, match=r"is not equal to the masked one[\s\S]*Nothing was written"):
        cut(liven(Noisy()))


def test_a_wrong_cut_is_found_in_a_network_that_hardly_answers() -> None:
    """The outputs are a large constant plus a small part that depends on the image: a wrong cut must still be detected."""
    model = liven(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 5, 3)))
    with torch.no_grad():
        model[2].weight.mul_(1e-7)
        model[2].bias.fill_(1.0)
    verified = cut(model)
    assert verified.difference <= TOLERANCE
    verified.model[1].weight.data = verified.model[1].weight.data.flip(1)
    assert difference(model, verified.model, verified.cut, SHAPE) > 0.01


def test_a_wrong_cut_is_found_in_a_detector_that_finds_nothing() -> None:
    """Its output is empty, before and after pruning: its unpruned hidden layers are compared."""

    class Detector(nn.Sequential):
        def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
            scores = super().forward(x).flatten(1)
            return [{"scores": each[each > 1e6], "labels": (each > 1e6).nonzero()} for each in scores]

    model = liven(Detector(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 5, 3)))
    verified = cut(model)
    assert verified.difference <= EXACT and verified.model[0].out_channels == 4
    verified.model[1].weight.data = verified.model[1].weight.data.flip(1)
    assert difference(model, verified.model, verified.cut, SHAPE) > 0.01


# Shared weights ---------------------------------------------------------------------------------------------------------


class Twice(nn.Module):
    """One convolution, called twice in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.shared(F.relu(self.shared(self.stem(x))))).mean((2, 3))


def test_a_layer_used_twice_has_one_set_of_channels() -> None:
    assert sizes(cut_and_check(Twice()).channels) == {"stem": 8}


class Tied(nn.Module):
    """Two layers that share one weight under two names; the second is depthwise, with its groups as a count of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 5, 3)
        self.one, self.two = (nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False) for _ in range(2))
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(F.relu(self.one(self.stem(x))))).mean((2, 3))


def test_tied_weights_stay_tied_and_both_layers_know_their_width() -> None:
    verified = cut_and_check(Tied())
    assert sizes(verified.channels) == {"stem": 8}
    assert verified.model.one.weight is verified.model.two.weight
    assert verified.model.one.groups == verified.model.two.groups == 4


@pytest.mark.parametrize("residual", ["coupled", "scatter"])
def test_a_norm_shared_by_two_layers_of_a_stream(residual: Residual) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)
            self.one, self.two, self.norm = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            x = x + self.norm(self.one(x))
            return self.head((x + self.norm(self.two(x))).mean((2, 3)))

    channels = cut_and_check(Shared(), residual=residual).channels
    assert sizes(channels) == ({"stem": 8} if residual == "coupled" else {"stem": 8, "one": 8, "two": 8})


def test_a_grouped_convolution_in_a_stream_keeps_its_groups_equal_when_scattered() -> None:
    class Grouped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)
            self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.head((x + self.grouped(x)).mean((2, 3)))

    verified = cut_and_check(Grouped(), residual="scatter")
    assert sizes(verified.channels) == {"stem": 8, "grouped": 4}
    small = verified.model.grouped
    assert (small.in_channels, small.out_channels, small.groups) == (8, 4, 2)


# Heads, modes, values ---------------------------------------------------------------------------------------------------


def test_heads_that_only_train_are_cut_along() -> None:
    model = liven(get_model("googlenet", num_classes=10, init_weights=False))
    verified = cut(model, (3, 64, 64))
    verified.model.train()
    outputs = verified.model(torch.randn(2, 3, 224, 224))
    assert verified.model.aux1.conv.conv.in_channels == 256
    assert outputs.aux_logits1.shape == outputs.aux_logits2.shape == (2, 10)


class Choosy(nn.Module):
    """Its control flow depends on values, so it cannot run without data."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.drop = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5)
        self.last = nn.Conv2d(8, 5, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x = self.drop(self.norm(self.first(x)))
        return self.last(x if x.sum() > -1e9 else -x).mean((2, 3))


def test_a_network_that_reads_values_is_traced_on_real_tensors() -> None:
    assert sizes(cut_and_check(Choosy()).channels) == {"first": 8}


def test_a_width_in_the_code_of_a_network_that_reads_values() -> None:
    class ChoosyChecked(Checked):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if x.sum() > -1e9 else -x)

    assert cut(liven(ChoosyChecked())).channels.held.keys() == {"second"}


@pytest.mark.parametrize("network", [Choosy, resnet20])
def test_analysing_leaves_the_network_as_it_was(network: type[nn.Module]) -> None:
    model = network().train()
    norm = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    norm.eval()  # the usual way to freeze a norm in a network that is trained
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    marks = [vars(tensor).copy() for tensor in model.parameters()]
    random = torch.get_rng_state()
    analyse(model, (3, 32, 32))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert [vars(tensor) for tensor in model.parameters()] == marks
    if network is resnet20:
        assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_weights_of_other_types(dtype: torch.dtype) -> None:
    model = liven(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 5, 3))).to(dtype)
    verified = cut(model)
    assert sizes(verified.channels) == {"0": 8}
    assert verified.model[0].weight.dtype == dtype


def test_images_of_another_size_than_the_network_takes() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(288, 5))
    with pytest.raises(UsageError, match=r"does not run on images of 3x16x16: .+\n.*--input 3x224x224"):
        analyse(model, (3, 16, 16))


def test_a_rule_that_fails_is_not_blamed_on_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trace, "join", lambda *args: 1 / 0)
    with pytest.raises(RuleFailed, match=r"the rule of aten.convolution.default failed on tensors of \[\(2, 3, 8, 8\)"):
        analyse(Flat(), SHAPE)


def test_a_network_of_linear_layers() -> None:
    model = nn.Sequential(
        nn.Flatten(), *(layer for _ in range(3) for layer in (nn.Linear(192, 192), nn.ReLU())), nn.Linear(192, 4)
    )
    verified = cut_and_check(model)
    assert sizes(verified.channels) == {"1": 192, "3": 192, "5": 192}
    assert [m.out_features for m in verified.model if isinstance(m, nn.Linear)] == [96, 96, 96, 4]


# Repeated pruning -------------------------------------------------------------------------------------------------------


def test_a_compact_network_can_be_cut_again() -> None:
    once = cut_and_check(resnet20(), (3, 32, 32))
    twice = cut_and_check(once.model, (3, 32, 32))
    assert twice.model.conv1.out_channels == 4
    assert macs(twice.model, (3, 32, 32)) < macs(once.model, (3, 32, 32)) < macs(resnet20(), (3, 32, 32))


def test_a_scattered_network_can_be_cut_again() -> None:
    """Scattered layers are frozen; the inner channels of the blocks can still be pruned."""
    once = cut_and_check(resnet20(), (3, 32, 32), residual="scatter")
    twice = cut_and_check(once.model, (3, 32, 32))
    assert sizes(twice.channels) == {f"layer{s}.{b}.conv1": 2 ** (2 + s) for s in (1, 2, 3) for b in (0, 1, 2)}
    assert not twice.channels.unknown_operators()


def test_nothing_cut_is_the_same_network() -> None:
    model = liven(resnet20())
    verified = remove(model, analyse(model, (3, 32, 32)), Channels.all_kept, (3, 32, 32))
    assert not verified.cut.kept and verified.difference == 0


def test_one_channel_of_each_group_may_remain() -> None:
    def all_but_one(channels: Channels) -> Mask:
        return channels.join({group.name: torch.arange(group.size).eq(2).numpy() for group in channels.groups})

    model = liven(Twice())
    verified = remove(model, analyse(model, SHAPE), all_but_one, SHAPE)
    assert verified.model.shared.weight.shape == (1, 1, 3, 3)
    assert apart(verified.model, mask(model, verified.cut), SHAPE, torch.float64) <= EXACT


def test_the_original_keeps_its_answers() -> None:
    model, images = liven(resnet20()), torch.randn(2, 3, 32, 32)
    before = answers(model, images)[0].clone()
    cut(model, (3, 32, 32), "scatter")
    assert torch.equal(answers(model, images)[0], before)
