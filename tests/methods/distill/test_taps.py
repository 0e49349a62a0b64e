"""Ends of stages, the layers after them, and branches, on networks that were not written for it."""

import copy
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models import VisionTransformer
from toy import SHAPE, Toy, Wide

from compressor.demo import DigitsNet
from compressor.errors import UsageError
from compressor.methods.distill.branches import Branch, Rest, Separable, Tail, fresh, near
from compressor.methods.distill.taps import Anatomy, ask

DIGITS = (1, 8, 8)


def fcn() -> nn.Module:
    return torchvision.models.segmentation.fcn_resnet50(weights=None, weights_backbone=None, aux_loss=True)


def transformer() -> nn.Module:
    return VisionTransformer(32, 8, num_layers=6, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=5)


def images(shape: tuple[int, ...], n: int = 3) -> Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(1))


# Anatomy --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "taps", "head"),
    [
        ("resnet18", ("layer1", "layer2", "layer3", "layer4"), "fc"),
        ("mobilenet_v3_small", ("features.1", "features.3", "features.8", "features"), "classifier.3"),
        ("densenet121", ("features.denseblock1", "features.denseblock2", "features.denseblock3", "features"), "classifier"),
        ("shufflenet_v2_x0_5", ("maxpool", "stage2", "stage3", "conv5"), "fc"),
        ("squeezenet1_1", ("features.1", "features.4", "features.7", "features"), None),
    ],
)
def test_stages_end_where_an_image_gets_smaller(name: str, taps: tuple[str, ...], head: str | None) -> None:
    model = torchvision.models.get_model(name, num_classes=5)
    anatomy = Anatomy.of(model, (3, 64, 64))
    assert (anatomy.taps, anatomy.head, anatomy.classes) == (taps, head, 5)
    assert not any(parameter.grad is not None for parameter in model.parameters())


def test_a_network_that_never_gets_smaller_is_cut_in_three() -> None:
    anatomy = Anatomy.of(transformer(), (3, 32, 32))
    assert anatomy.taps == tuple(f"encoder.layers.encoder_layer_{i}" for i in (1, 3, 5))
    assert (anatomy.head, anatomy.width) == ("heads.head", 16)


def test_the_answer_holds_what_is_asked_for() -> None:
    model = DigitsNet(8).eval()
    anatomy = Anatomy.of(model, DIGITS)
    answer = anatomy.ask(model, images(DIGITS))
    assert anatomy.taps == ("stage1", "stage2") and [f.shape for f in answer.features] == [(3, 8, 8, 8), (3, 16, 4, 4)]
    assert answer.embedding.shape == (3, 16) == (3, anatomy.width)
    assert torch.equal(model.head(answer.embedding), answer.logits) and answer.output is not None
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()), "all hooks are removed"


def test_named_taps_must_be_taps() -> None:
    assert Anatomy.of(DigitsNet(8), DIGITS, ("stem", "down")).taps == ("stem", "down")
    with pytest.raises(UsageError, match="another path bypasses this module"):
        Anatomy.of(DigitsNet(8), DIGITS, ("stage1.conv1",))
    with pytest.raises(UsageError, match="did you mean 'stage1'"):
        Anatomy.of(DigitsNet(8), DIGITS, ("stage_1",))


def test_a_network_with_maps_has_no_head() -> None:
    anatomy = Anatomy.of(nn.Conv2d(3, 5, 3), (3, 8, 8))
    assert (anatomy.head, anatomy.classes) == (None, 5)


# Dense networks -------------------------------------------------------------------------------------------------------


def example(name: str) -> ModuleType:
    """A module of examples/segmentation or examples/restoration."""
    (path,) = Path(__file__).parents[3].glob(f"examples/*/{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Deep(nn.Module):
    """A U-Net with three levels, convolutions without padding, and an auxiliary head."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Sequential(nn.Conv2d(i, o, 3), nn.ReLU()) for i, o in ((3, 4), (4, 6)))
        self.bottom = nn.Sequential(nn.Conv2d(6, 8, 3), nn.ReLU(inplace=True))
        self.up = nn.ModuleList(nn.Sequential(nn.Conv2d(i, o, 3), nn.ReLU(inplace=True)) for i, o in ((14, 6), (10, 4)))
        self.head, self.auxiliary = nn.Conv2d(4, 2, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        first = self.down[0](x)
        second = self.down[1](F.max_pool2d(first, 2))
        deep = self.bottom(F.max_pool2d(second, 2))
        for up, skip in zip(self.up, (second, first), strict=True):
            deep = up(torch.cat([F.interpolate(deep, size=skip.shape[2:]), skip], 1))
        return {"out": self.head(deep), "auxiliary": self.auxiliary(deep)}


@pytest.mark.parametrize(
    ("model", "side", "taps", "sizes"),
    [
        (lambda: example("unet").UNet(), 32, ("bottom", "up"), (16, 32)),
        (Deep, 94, ("bottom", "up.0", "up.1"), (20, 42, 90)),
        (lambda: example("espnet").espnet(), 64, ("br", "combine_l2_l3", "conv"), (8, 16, 32)),
        (lambda: example("imdn").imdn_x2(), 24, ("IMDB2", "IMDB4", "IMDB6"), (24, 24, 24)),
        (lambda: example("dncnn").DnCNN(3), 24, ("dncnn.16", "dncnn.31", "dncnn.46"), (24, 24, 24)),
        (fcn, 64, ("backbone.relu", "backbone.layer1", "classifier.3"), (32, 16, 8)),
    ],
)
def test_a_dense_network_has_taps_at_the_last_module_of_each_resolution(
    model: Callable[[], nn.Module], side: int, taps: tuple[str, ...], sizes: tuple[int, ...]
) -> None:
    network = model().eval()
    anatomy = Anatomy.of(network, (3, side, side))
    assert anatomy.taps == taps and anatomy.head is None
    features = anatomy.ask(network, images((3, side, side))).features
    assert tuple(each.shape[-1] for each in features) == sizes


def test_dense_networks_take_any_module_on_a_path_by_name_but_no_branch_from_it() -> None:
    model, shape = Deep(), (3, 94, 94)
    anatomy = Anatomy.of(model, shape, ("down.1", "up.1"))
    assert anatomy.taps == ("down.1", "up.1")
    with pytest.raises(UsageError, match="auxiliary: this module is not on a path from the image to the main output"):
        Anatomy.of(model, shape, ("auxiliary",))
    with pytest.raises(UsageError, match=r"down\.1: another path bypasses this module"):
        Branch(model, anatomy, "down.1")


# Layers after a tap ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "shape"), [(Toy(), SHAPE), (Wide(), SHAPE), (DigitsNet(8), DIGITS), (transformer(), (3, 32, 32))]
)
def test_the_rest_goes_on_from_every_tap_as_the_network_does(model: nn.Module, shape: tuple[int, ...]) -> None:
    model.eval()
    anatomy = Anatomy.of(model, shape)
    answer = anatomy.ask(model, images(shape))
    for tap, features in zip(anatomy.taps, answer.features, strict=True):
        rest = Rest(model, tap, shape).eval()
        torch.testing.assert_close(rest(features), answer.logits)
        torch.testing.assert_close(rest.ask(features).embedding, answer.embedding)
        names = {name.partition(".")[0] for name, _ in rest.network.named_parameters()}
        assert "stem" not in names and "conv_proj" not in names, "layers before the tap have no weights there"


class Both(nn.Module):
    """Its output also depends on the input directly, so that the layers after the tap need more than its output."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.then = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.seen = 0
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        self.scale = float(x.detach().abs().sum()) if not x.is_meta else 1.0  # a number, which autograd does not track
        return self.head(F.relu(self.then(F.relu(self.first(x)))).mean((2, 3))) * self.scale


def test_where_a_network_cannot_go_on_separable_convolutions_do() -> None:
    model = Both()
    anatomy = Anatomy.of(model, (3, 8, 8))
    with pytest.raises(UsageError, match="need more than its output"):
        Rest(model, "first", (3, 8, 8))
    branch = Branch(model, anatomy, "first", outputs=7, deeper=2)
    assert isinstance(branch.rest, Tail)
    answer = branch(torch.randn(3, 4, 8, 8))
    assert answer.logits.shape == (3, 7) and answer.features[0].shape == (3, 6, 4, 4)
    assert sum(isinstance(module, Separable) for module in branch.modules()) == 3


# Branches -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "shape"), [(Toy(), SHAPE), (DigitsNet(8), DIGITS), (transformer(), (3, 32, 32))])
def test_a_branch_has_weights_and_a_head_of_its_own_and_all_of_them_learn(model: nn.Module, shape: tuple[int, ...]) -> None:
    anatomy = Anatomy.of(model, shape)
    features = anatomy.ask(model, images(shape)).features[0].detach()
    branch = Branch(model, anatomy, anatomy.taps[0], outputs=20)
    answer = branch(features)
    assert answer.logits.shape == (3, 20)
    answer.logits.square().mean().backward()
    own = {name: parameter for name, parameter in branch.named_parameters() if "class_token" not in name}
    assert all(p.grad is not None for name, p in own.items() if "pos_embedding" not in name)
    assert not {id(p) for p in model.parameters()} & {id(p) for p in branch.parameters()}


def test_a_branch_is_deeper_by_new_blocks_of_the_last_stage() -> None:
    model = DigitsNet(8)
    anatomy = Anatomy.of(model, DIGITS)
    features = anatomy.ask(model, images(DIGITS)).features[0]
    plain, deeper = (Branch(model, anatomy, "stage1", deeper=more) for more in (0, 2))
    assert [type(block).__name__ for block in deeper.more] == ["Block", "Block"]
    assert not torch.equal(deeper.more[0].conv1.weight, deeper.more[1].conv1.weight)
    assert plain(features).features[0].shape == deeper(features).features[0].shape == (3, 16, 4, 4)
    more = sum(p.numel() for p in deeper.parameters()) - sum(p.numel() for p in plain.parameters())
    assert more == 2 * sum(p.numel() for p in model.stage2.parameters())


# Weights --------------------------------------------------------------------------------------------------------------


def test_new_weights_are_new_and_of_the_usual_size() -> None:
    model = nn.Sequential(nn.Conv2d(16, 64, 3), nn.BatchNorm2d(64), nn.Flatten(), nn.Linear(64, 5))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    fresh(model)
    assert model[0].weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.1)
    assert model[1].weight.eq(1).all() and model[1].bias.eq(0).all()
    assert model[0].bias.eq(0).all() and model[3].bias.eq(0).all() and not model[3].weight.eq(7).any()


def test_near_a_network_norms_stay_and_weights_move_by_a_tenth() -> None:
    model = Toy()
    moved = near(copy.deepcopy(model))
    for (name, before), after in zip(model.named_parameters(), moved.parameters(), strict=True):
        if before.dim() == 1:
            assert torch.equal(before, after), name
        else:
            assert (after - before).std().item() == pytest.approx(0.1 * before.std().item(), rel=0.4)


def test_asking_without_taps_is_asking() -> None:
    model = Toy().eval()
    answer = ask(model, images(SHAPE))
    assert torch.equal(answer.logits, model(images(SHAPE))) and answer.features == []
    assert answer.embedding is answer.logits
