"""Exported files give the outputs of the module for every batch size; errors of the export are two lines."""

import copy
import importlib.util
import io
import tarfile
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import onnx
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.transforms.functional import normalize, to_tensor

from compressor.channels.surgery import Spread, attach
from compressor.data import Batch
from compressor.errors import CompressError, Infeasible, OutputError, VerificationFailed
from compressor.network.cost import weight_bytes
from compressor.network.inputs import Input, Inputs
from compressor.onnx import export
from compressor.onnx.export import Differences, check_onnx, export_onnx
from compressor.onnx.runtime import onnx_predict
from compressor.tasks.classify import Classify

SHAPE = (1, 8, 8)
QUICK = ["shufflenet_v2_x1_0", "mobilenet_v3_small"]
THOROUGH = """resnet18 resnet50 resnext50_32x4d vgg16_bn alexnet densenet121 googlenet inception_v3 mobilenet_v2 mnasnet1_0
    efficientnet_b0 squeezenet1_1 regnet_y_400mf convnext_tiny swin_t""".split()


class Small(nn.Module):
    """[n, 1, 8, 8] -> logits [n, 10], with a batch norm that has statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 10)
        self.bn.running_mean.normal_()
        self.bn.running_var.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.bn(self.conv(x))).mean((2, 3)))


class Heads(Small):
    def forward(self, x: Tensor) -> dict[str, object]:
        logits = super().forward(x)
        return {"main": logits, "others": (logits.softmax(1), None, logits[:, :2])}


@dataclass
class Answer:
    hidden: Tensor
    logits: Tensor


class Captioned(Small):
    """Images, and token ids by name; the output is a dataclass that is not registered with torch."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(2, 10)

    def forward(self, x: Tensor, *, ids: Tensor) -> Answer:  # type: ignore[override]
        logits = super().forward(x) + self.words(ids).sum(1)
        return Answer(logits.softmax(1), logits)


class Branching(Small):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() >= 0 else -x)


class OneBatchSize(Small):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.view(2, 1, 8, 8))


class Overflowing(Small):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * torch.inf


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.onnx"


def operators(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


@pytest.mark.parametrize("name", QUICK + [pytest.param(name, marks=pytest.mark.slow) for name in THOROUGH])
def test_torchvision_networks_answer_the_same(name: str, path: Path) -> None:
    model = get_model(name, weights=None, **({"init_weights": True} if name in ("googlenet", "inception_v3") else {}))
    shape = (3, 75, 75) if name == "inception_v3" else (3, 64, 64)
    export_onnx(model, shape, path)
    assert set(check_onnx(model, path, shape)) == {"1", "2", "3"}
    # Where a batch norm comes before its convolution, as in DenseNet, there is a ReLU between them.
    assert "BatchNormalization" not in operators(path) or name == "densenet121"


def test_names_and_shapes_are_those_promised(path: Path) -> None:
    export_onnx(Small(), SHAPE, path)
    model = onnx.load(path)
    (images,), (logits,) = model.graph.input, model.graph.output
    sizes = [dim.dim_param or dim.dim_value for dim in images.type.tensor_type.shape.dim]
    assert (images.name, sizes, logits.name) == ("images", ["batch", 1, 8, 8], "logits")
    assert model.producer_name == "compressor" and model.producer_version


def test_the_file_is_little_more_than_its_weights_and_tells_no_paths(path: Path) -> None:
    model = Small()
    export_onnx(model, SHAPE, path)
    assert path.stat().st_size < weight_bytes(model) + 2000
    assert b".py" not in path.read_bytes()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_several_outputs_are_numbered(path: Path) -> None:
    export_onnx(Heads(), SHAPE, path)
    assert [output.name for output in onnx.load(path).graph.output] == ["output0", "output1", "output2"]


def test_several_inputs_keep_their_order_and_names_and_the_main_answer_is_first(path: Path) -> None:
    model, inputs = Captioned(), Inputs((Input((4,), "ids", "int64"), Input(SHAPE)))
    export_onnx(model, inputs, path)
    check_onnx(model, path, inputs)
    graph = onnx.load(path).graph
    sizes = {entry.name: [dim.dim_param or dim.dim_value for dim in entry.type.tensor_type.shape.dim] for entry in graph.input}
    assert sizes == {"ids": ["batch", 4], "input1": ["batch", 1, 8, 8]}
    assert "words.weight" in {weight.name for weight in graph.initializer}
    ids, images = inputs.random(3)
    with torch.no_grad():
        torch.testing.assert_close(onnx_predict(path)(ids, images), model.eval()(images, ids=ids).logits)


def test_all_outputs_are_compared(path: Path) -> None:
    model = Heads()
    export_onnx(model, SHAPE, path)
    check_onnx(model, path, SHAPE)
    with pytest.raises(VerificationFailed):
        check_onnx(Small(), path, SHAPE)


def test_scattered_channels_are_written_too(path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten())
    attach(model[1], Spread(kept=(0, 2, 5), width=6, dim=1))
    export_onnx(model, SHAPE, path)
    check_onnx(model, path, SHAPE)


def test_the_model_is_left_alone(path: Path) -> None:
    model = Small().half().train()
    model.head.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    export_onnx(model, SHAPE, path)
    check_onnx(model, path, SHAPE)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.training and model.conv.weight.requires_grad and not model.head.weight.requires_grad


def test_given_images_are_compared_as_well(path: Path) -> None:
    model = Small()
    export_onnx(model, SHAPE, path)
    differences = check_onnx(model, path, SHAPE, batch_sizes=(4,), images=torch.rand(5, *SHAPE))
    assert set(differences) == {"4", "images"} and max(differences.values()) < 1e-5


def test_other_weights_are_found_out(path: Path) -> None:
    export_onnx(Small(), SHAPE, path)
    with pytest.raises(VerificationFailed, match="for a batch of 1 images; at most"):
        check_onnx(Small(), path, SHAPE)


COLOR = (3, 8, 8)


class Curves(nn.Module):
    """Light-enhancement curves, applied again and again to values from 0 to 1: outside, they diverge.

    As in Guo et al., "Zero-Reference Deep Curve Estimation for Low-Light Image Enhancement", CVPR 2020.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        curve = torch.tanh(self.conv(x))
        for _ in range(12):
            x = x + curve * (x * x - x)
        return x


def test_a_network_that_diverges_on_normal_noise_is_compared_on_noise_from_0_to_1(path: Path) -> None:
    torch.manual_seed(0)
    model = Curves()
    assert not model(3 * torch.randn(2, *COLOR)).abs().max() < 1e6
    export_onnx(model, COLOR, path)
    found = check_onnx(model, path, COLOR)
    assert set(found) == {f"{n} (inputs from 0 to 1)" for n in (1, 2, 3)} and max(found.values()) <= found.tolerance == 1e-4
    with pytest.raises(VerificationFailed, match=r"for a batch of 1 images \(inputs from 0 to 1\); at most 0.0001"):
        check_onnx(Curves(), path, COLOR)


class Amplifying(nn.Module):
    """A small difference of two large numbers: with a `size` of 3000, float32 is good for three digits."""

    def __init__(self, size: float = 3000.0) -> None:
        super().__init__()
        self.conv, self.size = nn.Conv2d(3, 3, 3), size

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return (y + self.size) * 0.37 - 0.37 * self.size


def test_a_network_that_amplifies_rounding_errors_too_much_is_told_apart(path: Path) -> None:
    """Its own float32 and float64 outputs differ by more than the check could allow."""
    torch.manual_seed(0)
    export_onnx(Amplifying(), COLOR, path)
    with pytest.raises(VerificationFailed, match="The network amplifies rounding errors: in PyTorch, float32 and"):
        check_onnx(Amplifying(1e6), path, COLOR, images=torch.rand(2, *COLOR), batch_sizes=())


def test_a_network_of_large_rounding_errors_may_differ_four_times_as_much(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, images = Amplifying(), torch.rand(2, *COLOR)
    with torch.no_grad():
        plain, exact = model(images), copy.deepcopy(model).double()(images.double()).float()
    rounding = float((plain - exact).abs().max() / exact.abs().max())
    assert 2e-5 < rounding < 1e-3
    export_onnx(model, COLOR, path)

    def differs_by(share: float) -> Differences:
        monkeypatch.setattr("compressor.onnx.export._compared", lambda *_: share)
        return check_onnx(model, path, COLOR, images=images, batch_sizes=(), tolerance=1e-6)

    assert differs_by(3 * rounding).tolerance == pytest.approx(4 * rounding, rel=0.1)
    with pytest.raises(VerificationFailed):
        differs_by(5 * rounding)


def test_nan_does_not_pass(path: Path) -> None:
    model = Overflowing()
    export_onnx(model, SHAPE, path)
    with pytest.raises(VerificationFailed, match="nan"):
        check_onnx(model, path, SHAPE)


def test_a_file_for_one_batch_size_is_found_out(path: Path) -> None:
    model = Small().eval()
    torch.onnx.export(model, (torch.zeros(2, *SHAPE),), path, dynamo=True, verbose=False)
    with pytest.raises(VerificationFailed, match="has a fixed batch size of 2"):
        check_onnx(model, path, SHAPE)


def test_a_file_that_only_claims_any_batch_size_is_found_out(path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 18]>
        flatten (float[batch, 1, 8, 8] images) => (float[rows, 64] logits) <int64[2] two_rows = {2, 64}>
        { logits = Reshape(images, two_rows) }"""
    onnx.save(onnx.parser.parse_model(text), path)
    assert check_onnx(nn.Flatten(), path, SHAPE, batch_sizes=(2,)) == {"2": 0.0}
    with pytest.raises(VerificationFailed, match="batch of 1 images"):
        check_onnx(nn.Flatten(), path, SHAPE)


@pytest.mark.parametrize("model", [Branching(), OneBatchSize()])
def test_what_onnx_cannot_hold_is_said_in_two_lines(model: nn.Module, path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path.write_text("what was there before")
    with pytest.raises(Infeasible) as caught:
        export_onnx(model, SHAPE, path)
    assert len(str(caught.value).splitlines()) == 2
    assert caught.value.__cause__ is not None
    assert capfd.readouterr() == ("", "")
    assert path.read_text() == "what was there before"
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_exporting_is_silent(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    export_onnx(Heads(), SHAPE, path)
    assert capfd.readouterr() == ("", "")


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file, not a folder")
    with pytest.raises(OutputError, match="taken"):
        export_onnx(Small(), SHAPE, tmp_path / "taken" / "model.onnx")


def test_an_invalid_file_is_not_published(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def to_nonsense(*_: object) -> onnx.ModelProto:
        text = '<ir_version: 8, opset_import: ["" : 18]> net (float[n] images) => (float[n] y) { y = Lost(absent) }'
        return onnx.parser.parse_model(text)

    monkeypatch.setattr(export, "_convert", to_nonsense)
    with pytest.raises(VerificationFailed, match="invalid"):
        export_onnx(Small(), SHAPE, path)
    assert list(path.parent.iterdir()) == []


def test_too_many_weights_for_one_file_are_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "LARGEST", 100)
    with pytest.raises(CompressError, match="weights take"):
        export_onnx(Small(), SHAPE, path)


@pytest.mark.shared
def test_a_trained_network_keeps_its_accuracy(shared: Path, path: Path) -> None:
    """ResNet-20 has a top-1 accuracy of 87.96 %; the outputs of the file must equal those of the module on real images."""
    source = importlib.util.spec_from_file_location("resnet", Path(__file__).parents[2] / "examples/cifar/resnet.py")
    resnet = importlib.util.module_from_spec(source)
    source.loader.exec_module(resnet)
    model = resnet.resnet20()
    model.load_state_dict(torch.load(shared / "checkpoints/resnet20-jpeg.pt", weights_only=True)["state_dict"])
    images = planes(shared / "data/cifar10.tar.gz", 300)
    export_onnx(model, (3, 32, 32), path)
    assert max(check_onnx(model, path, (3, 32, 32), images=images).values()) < 1e-5
    batch = Batch(images, torch.zeros(300, dtype=torch.long), torch.arange(300))
    assert Classify().measure(onnx_predict(path, threads=1), [batch]).compute()[0].value > 0.8


def planes(archive: Path, n: int) -> Tensor:
    """The first `n` aeroplanes (class 0) of the archive, [n, 3, 32, 32]."""
    with tarfile.open(archive) as tar:
        members = islice((m for m in tar if m.isfile() and "/airplane/" in m.name), n)
        images = [to_tensor(Image.open(io.BytesIO(tar.extractfile(m).read()))) for m in members]
    return normalize(torch.stack(images), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
