"""Whole runs of networks with several inputs, by position and by name, on the data of a user's function."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from small import compress, stages_of

import compressor
from compressor.report import read_report

NET = """
import torch
from torch import nn


class Fused(nn.Module):
    \"\"\"The class of a pair of images [n, 1, 16, 16] and [n, 2, 8, 8].\"\"\"

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(2, 8, 3, padding=1)
        self.norm, self.last = nn.BatchNorm2d(8), nn.Conv2d(8, 12, 3, padding=1)
        self.head = nn.Linear(12, 3)

    def forward(self, left, right):
        x = self.left(left) + nn.functional.interpolate(self.right(right), scale_factor=2.0)
        return self.head(self.last(self.norm(x).relu()).relu().mean((2, 3)))


class Conditioned(Fused):
    \"\"\"An image from an image and a number for each.\"\"\"

    def __init__(self):
        super().__init__()
        self.right, self.head = nn.Linear(1, 8), nn.Conv2d(12, 1, 1)

    def forward(self, image, *, level):
        x = self.left(image) + self.right(level)[..., None, None]
        return self.head(self.last(self.norm(x).relu()).relu())
"""
DATA = """
import torch
from torch.utils.data import DataLoader, Dataset


class Made(Dataset):
    def __init__(self, count, seed, kind):
        generator = torch.Generator().manual_seed(seed)
        self.left = torch.rand(count, 1, 16, 16, generator=generator) * 2 - 1
        self.right = torch.rand(count, 2, 8, 8, generator=generator) * 2 - 1
        self.kind = kind

    def __len__(self):
        return len(self.left)

    def __getitem__(self, index):
        left, right = self.left[index], self.right[index]
        if self.kind == "pairs":
            return (left, right), index % 3
        named = {"level": right.mean().view(1), "image": left}  # not in the order of forward
        return named if self.kind == "named" else (named, left.abs())


def pairs():
    return Made(60, 0, "pairs"), Made(20, 1, "pairs")


def named():
    return Made(60, 0, "named"), Made(20, 1, "named")


def restored():
    return Made(60, 0, "restored"), Made(20, 1, "restored")


def loaded():
    train, test = (DataLoader(Made(n, n, "pairs"), 7, collate_fn=list_of) for n in (60, 20))
    return {"train": train, "test": test, "classes": ["a", "b", "c"]}


def list_of(rows):
    inputs, targets = zip(*rows)
    return [torch.stack(each) for each in zip(*inputs)], torch.tensor(targets)


def nested():
    return [((torch.ones(1), (torch.ones(2), torch.ones(2))), 0)] * 30, [((torch.ones(1), (torch.ones(2), torch.ones(2))), 0)]
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the networks' file, their checkpoints, and the data."""
    folder = tmp_path_factory.mktemp("several")
    (folder / "net.py").write_text(NET)
    (folder / "data.py").write_text(DATA)
    made: dict[str, type[torch.nn.Module]] = {}
    exec(NET, made)
    for number, name in enumerate(("Fused", "Conditioned")):
        torch.manual_seed(number)
        torch.save(made[name]().state_dict(), folder / f"{name}.pt")
    return folder


@pytest.fixture(autouse=True)
def there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def prune(name: str, function: str, *arguments: object) -> list[str]:
    """The stages of a run in the directory of the function's name."""
    asked = ("prune", f"{name}.pt", "--arch", f"net.py:{name}", "--data", f"data.py:{function}", "--rate", "0.4")
    result = compress(*asked, "--out", function, *arguments)
    assert result.exit_code == 0, result.output
    return stages_of(read_report(Path(function)))


def scores_of(run: str, inputs: dict[str, np.ndarray], arguments: tuple[torch.Tensor, ...], **named: torch.Tensor) -> None:
    """Check that ONNX Runtime and the reloaded network agree on these inputs."""
    session = onnxruntime.InferenceSession(f"{run}/model.onnx")
    with torch.no_grad():
        wanted = compressor.load(run)(*arguments, **named).numpy()
    np.testing.assert_allclose(session.run(None, inputs)[0], wanted, rtol=1e-4, atol=1e-5)


def test_a_pair_of_inputs_is_pruned_repaired_trained_evaluated_and_verified(place: Path) -> None:
    assert {"original", "cut", "fine-tuned", "ONNX"} < {*prune("Fused", "pairs", "--epochs", "1")}
    report = read_report(Path("pairs"))
    assert report.inputs == {"input0": [1, 16, 16], "input1": [2, 8, 8]} and report.onnx_failure is None
    assert report.fidelity is not None and report.fidelity.n == 20
    left, right = torch.randn(5, 1, 16, 16), torch.randn(5, 2, 8, 8)
    scores_of("pairs", {"input0": left.numpy(), "input1": right.numpy()}, (left, right))

    result = compress("verify", "pairs", "--device", "cpu")
    assert result.exit_code == 0 and "of 20 test images" in result.stdout, result.output
    for what in ("pairs", "pairs/model.onnx"):
        result = compress("eval", what, "--data", "data.py:pairs", "--json")
        assert result.exit_code == 0, result.output
        told = json.loads(result.stdout)
        assert told["onnx"]["top1"] == report.compressed.scores[0].value == pytest.approx(by_hand("pairs"))


def by_hand(run: str) -> float:
    """Top-1 of a run on the test data."""
    made: dict[str, type] = {}
    exec(DATA, made)
    rows = [made["Made"](20, 1, "pairs")[index] for index in range(20)]
    network = compressor.load(run)
    with torch.no_grad():
        return sum(int(network(left[None], right[None]).argmax()) == label for (left, right), label in rows) / 20


def test_named_inputs_without_labels_are_pruned_and_verified(place: Path) -> None:
    stages = prune("Conditioned", "named", "--lr", "1e-3")
    assert {"recalibrated", "repaired"} & {*stages} and stages[-1] == "ONNX"
    report = read_report(Path("named"))
    assert report.task == "imitate" and report.inputs == {"level": [1], "image": [1, 16, 16]} and report.onnx_failure is None
    image, level = torch.randn(5, 1, 16, 16), torch.randn(5, 1)
    scores_of("named", {"image": image.numpy(), "level": level.numpy()}, (image,), level=level)
    result = compress("verify", "named", "--device", "cpu")
    assert result.exit_code == 0 and "ONNX Runtime against PyTorch" in result.stdout, result.output


def test_named_inputs_are_restored_shown_and_evaluated(place: Path) -> None:
    assert prune("Conditioned", "restored")[-1] == "ONNX"
    report = read_report(Path("restored"))
    assert report.task == "restore" and report.output == "image_out"  # an input is called image
    assert [score.name for score in report.compressed.scores] == ["psnr", "ssim"]
    result = compress("eval", "restored/model.onnx", "--data", "data.py:restored", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["onnx"]["psnr"] == pytest.approx(report.compressed.scores[0].value)


def test_lists_of_a_loader_are_inputs_by_position(place: Path) -> None:
    assert prune("Fused", "loaded", "--no-onnx")[-1] == "PyTorch"
    assert read_report(Path("loaded")).compressed.scores[0].n == 20


def test_several_inputs_are_quantized(place: Path) -> None:
    result = compress("quantize", "Fused.pt", "--arch", "net.py:Fused", "--data", "data.py:pairs", "--out", "int8")
    assert result.exit_code == 0, result.output
    assert read_report(Path("int8")).stages[-1].name == "INT8"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--data", "data.py:nested"), "data.py:nested has inputs within inputs"),
        (
            ("--data", "data.py:pairs", "--input", "1x8x8"),
            "--input 1x8x8 does not fit data.py:pairs, whose inputs are 1x16x16, 2x8x8",
        ),
    ],
)
def test_other_inputs_are_refused(place: Path, arguments: tuple[str, ...], told: str) -> None:
    result = compress("prune", "Fused.pt", "--arch", "net.py:Fused", "--rate", "0.4", *arguments, "--out", "refused")
    assert result.exit_code == 2 and told in result.stderr and result.stderr.count("\n") <= 2
