"""Architecture strings: what they build, and the errors when nothing is found."""

import copy
import pickle
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from compressor.checkpoint import build, from_code, load_model, parse_arch_args
from compressor.checkpoint.arch import outline
from compressor.errors import ArchitectureError, CompressError, UsageError
from compressor.network.inputs import Inputs

CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes=3, scale=1.0):
        super().__init__()
        width = int(torch.linspace(4, 8, 2)[0].item())  # fails where every tensor is on the meta device
        self.conv = nn.Conv2d(3, width, 3)
        self.head = nn.Linear(width, num_classes)
        self.scale = scale

def make(num_classes):
    return Net(num_classes)

ready = Net()
number = 3
def none(): return None
def leave(): raise SystemExit("bye")
class Factory:
    @staticmethod
    def small(): return Net(2)
"""


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(CODE)
    return str(tmp_path / "nets.py")


def refused(arch: str, *words: str, **args: object) -> None:
    with pytest.raises(ArchitectureError) as caught:
        build(arch, args)
    assert len(str(caught.value).splitlines()) == 1
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_code_in_a_file_is_a_class_a_function_or_a_module(code: str) -> None:
    assert build(f"{code}:Net", {"num_classes": 7, "scale": 0.5}).head.out_features == 7
    assert build(f"{code}:make", {"num_classes": 5}).head.out_features == 5
    assert build(f"{code}:Factory.small").head.out_features == 2
    assert build("nets.py:Net").head.out_features == 3
    first, second = build(f"{code}:ready"), build(f"{code}:ready")
    assert first is not second and type(first) is type(second)


def test_a_module_from_a_file_can_be_copied_and_pickled(code: str) -> None:
    model = build(f"{code}:Net")
    assert type(copy.deepcopy(model)) is type(pickle.loads(pickle.dumps(model))) is type(build(f"{code}:Net"))


def test_an_importable_package_is_found_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "__init__.py").write_text("")
    (tmp_path / "own" / "nets.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert type(build("own.nets:Net", {"num_classes": 2})).__module__ == "own.nets"
    assert isinstance(build("torchvision.models:resnet18"), torchvision.models.ResNet)


PARSES = """
import argparse
import torch
parser = argparse.ArgumentParser()
parser.add_argument("--width", type=int, default=3)
def width():
    return parser.parse_args().width
WIDTH = width()
class Net(torch.nn.Linear):
    def __init__(self):
        super().__init__(WIDTH, width())
"""


@pytest.mark.parametrize("where", ["parses.py", "parses"])
def test_code_that_parses_arguments_is_not_given_ours(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "parses.py").write_text(PARSES)
    monkeypatch.delitem(sys.modules, "parses", raising=False)
    ours = ["compress", "prune", "net.pt", "--width", "5", "--rate", "0.5"]
    monkeypatch.setattr(sys, "argv", ours)
    net = build(f"{where}:Net")
    assert isinstance(net, nn.Linear) and net.weight.shape == (3, 3)
    assert sys.argv is ours


@pytest.mark.parametrize(
    ("arch", "words"),
    [
        ("{code}:Nat", ("has no 'Nat'", "did you mean 'Net'")),
        ("{code}:make", ("could not be built with no arguments", "num_classes", "--arch-arg")),
        ("{code}:number", ("is a int",)),
        ("{code}:none", ("returned a NoneType, not a torch.nn.Module",)),
        ("{code}:leave", ("SystemExit: bye",)),
        ("{code}", ("is not of the form",)),
        ("nts.py:Net", ("no file nts.py", "did you mean 'nets.py'")),
        ("nots:Net", ("could not be imported", "ModuleNotFoundError")),
        ("torchvison:resnet18", ("did you mean 'torchvision'",)),
        ("torchvision:resnet17", ("has no network 'resnet17'", "did you mean")),
        ("timm:resnet17", ("has no network 'resnet17'", "did you mean")),
        ("resnet18", ("did you mean torchvision:resnet18?",)),
    ],
)
def test_what_cannot_be_built_is_told(code: str, arch: str, words: tuple[str, ...]) -> None:
    refused(arch.format(code=code), *words)


def test_wrong_arguments_and_broken_code_are_told(code: str, tmp_path: Path) -> None:
    refused(f"{code}:ready", "takes no --arch-arg", width=3)
    refused(f"{code}:Net", "could not be built with depth=3", "TypeError", depth=3)
    (tmp_path / "broken.py").write_text("import nothing_of_the_kind")
    refused(f"{tmp_path}/broken.py:Net", "broken.py could not be imported", "nothing_of_the_kind")
    (tmp_path / "inside.py").write_text("from .nets import Net")
    refused(f"{tmp_path}/inside.py:Net", "package.module:NAME")


def test_timm_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    refused("timm:resnet18", "not installed", "pip install")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("torchvision:squeezenet1_1", (3, 224, 224)),
        ("timm:test_resnet", (3, 160, 160)),
        ("torchvision:vit_b_32", (3, 224, 224)),
    ],
)
def test_a_name_gives_a_network_with_random_weights(name: str, shape: tuple[int, int, int]) -> None:
    loaded = load_model(name, arch_args={"num_classes": 4})
    assert not loaded.model.training
    assert loaded.arch == loaded.source == name and loaded.arch_args == {"num_classes": 4}
    assert loaded.sha256 is None and loaded.inputs == Inputs.of(shape)
    assert "random" in loaded.notes[0]
    assert loaded.model(torch.zeros(1, *shape)).shape == (1, 4)


@pytest.mark.parametrize("name", ["resnet152", "regnet_y_128gf", "swin_b", "vit_h_14", "convnext_large", "deeplabv3_resnet101"])
def test_a_large_network_is_outlined_without_memory(name: str) -> None:
    model = outline(f"torchvision:{name}")
    assert sum(tensor.numel() for tensor in model.parameters() if not tensor.is_meta) < 1_000_000


def test_code_that_computes_while_it_is_built_is_outlined_too(code: str) -> None:
    assert outline(f"{code}:Net").conv.weight.is_meta
    assert isinstance(outline("torchvision:ssdlite320_mobilenet_v3_large"), nn.Module)  # runs a forward pass to find its widths


def test_arguments_are_typed() -> None:
    pairs = ["n=10", "x=1e-3", "a=true", "b=False", "c=null", "d=gelu", "e=(1, 2)", "f='3'", "g=a=b", "h="]
    assert parse_arch_args(pairs) == {
        "n": 10, "x": 1e-3, "a": True, "b": False, "c": None, "d": "gelu", "e": (1, 2), "f": "3", "g": "a=b", "h": "",
    }  # fmt: skip
    for wrong in ("num_classes", "=3", "a-b=3"):
        with pytest.raises(UsageError, match="name=value") as caught:
            parse_arch_args([wrong])
        assert isinstance(caught.value, CompressError)


def test_code_gives_a_network_with_its_own_weights(code: str) -> None:
    loaded = from_code(f"{code}:Net", {"num_classes": 4})
    assert (loaded.arch, loaded.arch_args, loaded.plan, loaded.sha256) == (f"{code}:Net", {"num_classes": 4}, None, None)
    assert "the weights are random" in loaded.notes[0]
