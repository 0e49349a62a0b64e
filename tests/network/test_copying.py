"""Networks as their owners wrote them: attributes that cannot be copied, or that hide a method of `nn.Module`."""

import math
import threading
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from compressor.channels import analyse
from compressor.errors import UsageError
from compressor.network.copying import clone_network
from compressor.network.cost import count_macs, layer_macs, weight_bytes
from compressor.network.inputs import Inputs
from compressor.network.meta_device import meta_copy
from compressor.onnx.export import export_onnx
from compressor.runs.prune import prune

SHAPE = (3, 8, 8)


class Odd(nn.Module):
    """Holds an imported module, a lock and a generator; `self.modules` is a list, as in many detectors."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 10)
        self.modules = [self.conv1, self.conv2]  # type: ignore[assignment]
        self.math, self.lock, self.numbers = math, threading.Lock(), (n for n in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for module in self.modules:  # type: ignore[attr-defined]
            x = module(x).relu()
        return self.head(x.mean((2, 3)) * self.math.sqrt(4.0))


def normalized() -> nn.Sequential:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # it is the old one that is deprecated
        return nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 4, 3)), nn.Flatten(), nn.Linear(144, 10))


@pytest.mark.parametrize("make", [Odd, normalized])
def test_a_copy_computes_the_same_and_shares_no_weights(make: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model, images = make().eval(), torch.rand(2, *SHAPE)
    expected = model(images).detach()  # with a graph: the weight of weight_norm is no leaf now
    twin = clone_network(model)
    assert torch.equal(twin(images), expected)
    assert not {id(p) for p in model.parameters()} & {id(p) for p in twin.parameters()}
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(model(images), expected)
    assert all(parameter.is_meta for parameter in meta_copy(model).parameters())


def test_the_layers_in_a_list_of_a_copy_are_its_own() -> None:
    model = Odd()
    twin = clone_network(model)
    assert twin.modules[0] is twin.conv1 and twin.modules[0] is not model.conv1  # type: ignore[index]
    assert twin.math is math and twin.lock is model.lock


def test_an_attribute_that_would_be_shared_with_its_layers_is_refused() -> None:
    model = Odd()
    model.cache = {"lock": threading.Lock(), "layer": model.conv1}
    with pytest.raises(UsageError, match="The attribute cache cannot be copied"):
        clone_network(model)


def test_such_a_network_is_measured_and_exported(tmp_path: Path) -> None:
    model = Odd().eval()
    macs = 36 * 8 * 27 + 16 * 8 * 72 + 80
    assert count_macs(model, SHAPE) == sum(layer_macs(model, SHAPE).values()) == macs
    assert weight_bytes(model) == 4 * (8 * 27 + 8 + 8 * 72 + 8 + 80 + 10)
    assert {group.name for group in analyse(model, SHAPE).groups} >= {"conv1"}
    export_onnx(model, Inputs.of(SHAPE), tmp_path / "model.onnx")


def test_such_a_network_is_pruned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = Path(__file__).read_text().split("class Odd")[1].split("\ndef ")[0]
    (tmp_path / "odd.py").write_text(f"import math, threading\nfrom torch import Tensor, nn\nclass Odd{source}")
    torch.manual_seed(0)
    torch.save(Odd().state_dict(), tmp_path / "odd.pt")
    report = prune("odd.pt", arch="odd.py:Odd", rate=0.4, inputs=SHAPE, out=tmp_path / "run")
    assert report.target.reached >= 0.4
    assert all(value <= report.verification.onnx_tolerance for value in report.verification.onnx.values())
