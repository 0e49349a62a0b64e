"""Weights are loaded exactly, with an adapted number of classes, or refused with a readable difference."""

from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor

from compressor.checkpoint import build, load_model
from compressor.checkpoint.fit_weights import fit
from compressor.errors import CheckpointError

FILE = str(Path(__file__).parents[2] / "examples/cifar/resnet.py")
ARCH = f"{FILE}:resnet20"


@pytest.fixture
def weights() -> dict[str, Tensor]:
    return dict(build(ARCH).state_dict())


def refused(weights: dict[str, Tensor], *words: str, arch: str = ARCH, **args: object) -> None:
    with pytest.raises(CheckpointError) as caught:
        fit(arch, args, weights)
    assert len(str(caught.value).splitlines()) == 1
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_every_tensor_arrives(weights: dict[str, Tensor]) -> None:
    weights["bn1.num_batches_tracked"] += 7
    model, args, notes = fit(ARCH, {}, weights)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert (args, notes) == ({}, [])


def test_a_difference_is_counted_and_begun(weights: dict[str, Tensor]) -> None:
    del weights["bn1.weight"]
    weights["extra.a"] = weights["extra.b"] = torch.zeros(1)
    weights["conv1.weight"] = torch.zeros(16, 3, 7, 7)
    refused(
        weights,
        "1 missing (bn1.weight)",
        "2 unexpected (extra.a, extra.b)",
        "conv1.weight is 16x3x7x7 where the network has 16x3x3x3",
    )


def test_tensors_of_a_profiler_or_a_criterion_are_ignored_and_reported(weights: dict[str, Tensor]) -> None:
    wanted = set(weights)
    weights["total_ops"] = weights["layer1.0.conv1.total_params"] = torch.zeros(1)
    weights["criterion.weight"], weights["mean"] = torch.ones(10), torch.zeros(1, 3, 1, 1)
    model, _, notes = fit(ARCH, {}, weights)
    assert set(model.state_dict()) == wanted and torch.equal(model.conv1.weight, weights["conv1.weight"])
    assert notes == ["ignored 4 tensors that are not of the network (criterion.weight, layer1.0.conv1.total_params, mean ...)"]


@pytest.mark.parametrize("name", ["layer1.3.conv1.weight", "layer4.0.conv1.weight", "conv2.weight", "linear_2.weight"])
def test_layers_of_a_larger_network_are_never_ignored(weights: dict[str, Tensor], name: str) -> None:
    """ResNet-56's file has all names of ResNet-20, and more."""
    weights[name] = torch.zeros(16, 16, 3, 3)
    refused(weights, f"1 unexpected ({name})")


def test_nothing_is_ignored_where_something_is_missing(weights: dict[str, Tensor]) -> None:
    weights["criterion.weight"] = weights.pop("linear.bias")
    refused(weights, "1 missing (linear.bias)", "1 unexpected (criterion.weight)")


@pytest.mark.parametrize("prefix", ["generator.", "my_wrapper.", "student.module."])
def test_one_prefix_of_all_names_is_removed_and_reported(weights: dict[str, Tensor], prefix: str) -> None:
    renamed = {prefix + name: tensor for name, tensor in weights.items()}
    model, _, notes = fit(ARCH, {}, renamed)
    assert torch.equal(model.conv1.weight, weights["conv1.weight"])
    assert notes == [f"removed {prefix!r} from {len(weights)} of {len(weights)} names"]


def test_another_architecture_is_told(weights: dict[str, Tensor]) -> None:
    refused(weights, "180 missing (layer1.3.conv1.weight", "another architecture", arch=f"{FILE}:resnet56")


def test_the_class_count_is_mended_unless_it_was_asked_for() -> None:
    weights = dict(build(ARCH, {"num_classes": 7}).state_dict())
    model, args, notes = fit(ARCH, {}, weights)
    assert args == {"num_classes": 7} and model.linear.out_features == 7
    assert "7 classes" in notes[0]
    refused(weights, "linear.weight is 7x64 where the network has 5x64", "--arch-arg num_classes=7", num_classes=5)


def test_the_class_count_of_several_heads_is_mended() -> None:
    held = torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=2)
    model, args, _ = fit("torchvision:lraspp_mobilenet_v3_large", {}, dict(held.state_dict()))
    assert args == {"num_classes": 2}
    assert torch.equal(model.classifier.high_classifier.weight, held.classifier.high_classifier.weight)


def test_weights_saved_after_pruning_are_sent_to_their_run(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    weights["layer1.0.conv1.weight"] = weights["layer1.0.conv1.weight"][:9]
    weights["layer1.0.conv2.weight"] = weights["layer1.0.conv2.weight"][:, :9]
    for name in ("weight", "bias", "running_mean", "running_var"):
        weights[f"layer1.0.bn1.{name}"] = weights[f"layer1.0.bn1.{name}"][:9]
    refused(weights, "9x16x3x3 where the network has 16x16x3x3", "saved after pruning, give the run directory")
    (tmp_path / "plan.json").write_text("{}")
    torch.save(weights, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=f"{tmp_path} is a run directory: give that instead"):
        load_model(str(tmp_path / "model.pth"), arch=ARCH)


def test_masks_of_torch_are_told(weights: dict[str, Tensor]) -> None:
    weights["conv1.weight_orig"] = weights["conv1.weight_mask"] = weights.pop("conv1.weight")
    refused(weights, "prune.remove")


@pytest.mark.parametrize(
    ("name", "value", "word"), [("bn1.running_var", "nan", "NaN"), ("layer2.0.conv1.weight", "inf", "infinite")]
)
def test_numbers_that_are_none_are_told_with_their_place(
    tmp_path: Path, weights: dict[str, Tensor], name: str, value: str, word: str
) -> None:
    weights[name].view(-1)[1] = float(value)
    weights["linear.bias"][0] = float("nan") if name != "layer2.0.conv1.weight" else 0.0
    torch.save(weights, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=f"a.pth: {name} contains {word}"):
        load_model(str(tmp_path / "a.pth"), arch=ARCH)


def test_a_networks_own_code_may_translate_old_names(tmp_path: Path) -> None:
    (tmp_path / "old.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.head = nn.Linear(2, 3)\n"
        "    def _load_from_state_dict(self, state, prefix, *rest):\n"
        "        for name in ('weight', 'bias'):\n"
        "            state[prefix + 'head.' + name] = state.pop(prefix + 'fc.' + name)\n"
        "        super()._load_from_state_dict(state, prefix, *rest)\n"
    )
    weights = {"fc.weight": torch.ones(3, 2), "fc.bias": torch.zeros(3)}
    model, _, _ = fit(f"{tmp_path / 'old.py'}:Net", {}, weights)
    assert torch.equal(model.head.weight, weights["fc.weight"])


def test_sparse_weights_are_told(weights: dict[str, Tensor]) -> None:
    weights["linear.weight"] = weights["linear.weight"].to_sparse()
    refused(weights, "linear.weight is quantized, sparse or without data (float32)")


def test_a_batch_counter_of_another_shape_is_told(weights: dict[str, Tensor]) -> None:
    weights["bn1.num_batches_tracked"] = torch.zeros(1).expand(10**9)
    refused(weights, "bn1.num_batches_tracked is 1000000000 where the network has a scalar")
