"""The torchvision network is recognised from weights alone."""

from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from compressor.checkpoint import load_model, recognise
from compressor.checkpoint.arch import outline
from compressor.errors import CheckpointError
from compressor.network.inputs import Inputs


def state(name: str, **args: object) -> dict[str, Tensor]:
    return dict(outline(f"torchvision:{name}", args).state_dict())


@pytest.mark.parametrize("name", torchvision.models.list_models(module=torchvision.models))
def test_every_classifier_is_recognised(name: str) -> None:
    found = recognise(state(name))
    assert (found.arch, found.args) == (f"torchvision:{name}", {})


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("resnet18", {"num_classes": 10}),
        ("vgg11_bn", {"num_classes": 2}),
        ("squeezenet1_0", {"num_classes": 5}),
        ("vit_b_16", {"num_classes": 21843}),
        ("googlenet", {"num_classes": 7}),
        ("googlenet", {"aux_logits": False}),
        ("inception_v3", {"aux_logits": False, "num_classes": 3}),
        ("fcn_resnet50", {}),
        ("deeplabv3_resnet50", {"aux_loss": True, "num_classes": 2}),
        ("lraspp_mobilenet_v3_large", {"num_classes": 2}),
    ],
)
def test_other_heads_are_recognised(name: str, args: dict[str, object]) -> None:
    found = recognise(state(name, **args))
    assert (found.arch, found.args) == (f"torchvision:{name}", args)


def test_wrapped_names_and_company_do_not_hide_a_network() -> None:
    weights = {
        f"model.module.{name}": tensor for name, tensor in state("resnet18", num_classes=4).items() if "num_batches" not in name
    }
    found = recognise({**weights, "teacher.weight": torch.zeros(3, 3)})
    assert (found.arch, found.args) == ("torchvision:resnet18", {"num_classes": 4})


def test_a_recognised_file_loads_with_its_classes(tmp_path: Path) -> None:
    model = torchvision.models.squeezenet1_1(num_classes=6).eval()
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in model.state_dict().items()}}, tmp_path / "a.pth")
    loaded = load_model(str(tmp_path / "a.pth"))
    assert loaded.arch == "torchvision:squeezenet1_1" and loaded.arch_args == {"num_classes": 6}
    assert loaded.inputs == Inputs.of((3, 224, 224))
    assert any("recognised as torchvision:squeezenet1_1 with 6 classes" in note for note in loaded.notes)
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(loaded.model(images), model(images))


def test_nothing_fits_is_told_with_the_nearest() -> None:
    weights = state("resnet34")
    del weights["fc.weight"]
    with pytest.raises(CheckpointError, match=r"nearest, resnet34, differs: 1 missing \(fc.weight\).*--arch") as caught:
        recognise(weights)
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(CheckpointError, match="No torchvision network"):
        recognise(nn.Linear(2, 2).state_dict())


def test_a_pruned_network_is_sent_to_its_run_directory() -> None:
    weights = state("resnet18")
    for name in [name for name in weights if name.startswith("layer1.0.bn1") and weights[name].dim()]:
        weights[name] = weights[name][:40]
    weights["layer1.0.conv1.weight"] = weights["layer1.0.conv1.weight"][:40]
    weights["layer1.0.conv2.weight"] = weights["layer1.0.conv2.weight"][:, :40]
    with pytest.raises(CheckpointError, match=r"those of torchvision:resnet18, but tensors are smaller.*run directory"):
        recognise(weights)
