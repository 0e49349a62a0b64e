"""Stages: each is measured once, also in a resumed run, and on the same test images."""

import json
from pathlib import Path

import onnx
import pytest
import torch
from small import make_net
from torch import Tensor, nn

from compressor.data import Batches, Data, open_data
from compressor.errors import UsageError
from compressor.network.cost import count_macs
from compressor.network.inputs import Inputs
from compressor.onnx.export import export_onnx
from compressor.runs.journal import Journal
from compressor.runs.stages import Stages, on_random_inputs
from compressor.tasks.classify import Classify
from compressor.tasks.imitate import Imitate

SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def digits() -> Data:
    return open_data("digits")


class Counting(nn.Module):
    """Counts the images that it is evaluated on."""

    def __init__(self) -> None:
        super().__init__()
        self.net = make_net()
        self.images = 0

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu":  # the cost is counted without data
            self.images += len(x)
        logits: Tensor = self.net(x)
        return logits


def make_stages(folder: Path, data: Data | None, identity: str = "abc") -> Stages:
    return Stages(SHAPE, data, Classify(), torch.device("cpu"), Journal(), folder / "stages.json", identity)


def save_onnx(operator: str, path: Path) -> None:
    """A network of one operator, for images of any shape."""
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("images", "y"))
    graph = onnx.helper.make_graph([onnx.helper.make_node(operator, ["images"], ["y"])], operator, [x], [y])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8), path)


def test_a_stage_is_accuracy_and_cost(digits: Data, tmp_path: Path) -> None:
    stages, model = make_stages(tmp_path, digits), Counting()
    stages.original(model)
    stages.add("cut", model, note="why")
    first, second = stages.rows
    assert (first.name, second.name, second.note) == ("original", "cut", "why")
    assert first.scores == second.scores and first.scores
    assert (first.scores[0].n, first.macs) == (359, count_macs(model, SHAPE))


def test_the_original_is_evaluated_once(digits: Data, tmp_path: Path) -> None:
    stages, model = make_stages(tmp_path, digits), Counting()
    stages.original(model)
    export_onnx(model.net, SHAPE, tmp_path / "a.onnx")
    fidelity = stages.written(model.net, model, tmp_path / "a.onnx", seed=0)
    assert model.images == 359
    assert fidelity is not None and (fidelity.n, fidelity.inputs) == (359, "test images")
    agreement, divergence = fidelity.scores
    assert (agreement.name, agreement.value) == ("agreement", 1) and divergence.value < 1e-6
    assert stages.rows[1].name == "ONNX" and stages.rows[1].scores


def test_without_images_both_networks_are_compared_on_random_inputs(tmp_path: Path) -> None:
    stages = make_stages(tmp_path, None)
    stages.original(make_net())
    save_onnx("Flatten", tmp_path / "a.onnx")
    fidelity = stages.written(make_net(), nn.Flatten(), tmp_path / "a.onnx", seed=0)
    assert fidelity is not None and (fidelity.n, fidelity.inputs, fidelity.scores[0].value) == (64, "random inputs", 1)
    assert [row.scores for row in stages.rows] == [[], []]


@pytest.mark.parametrize(("macs", "n"), [(0, 64), (10**8, 64), (10**9, 48), (2 * 10**9, 24), (10**12, 8)])
def test_large_networks_are_compared_on_fewer_random_inputs(macs: int, n: int) -> None:
    def same(images: Tensor) -> Tensor:
        return images.flatten(1)

    fidelity = on_random_inputs(Classify(), same, same, Inputs.of(SHAPE), 0, macs)
    assert (fidelity.n, fidelity.scores[0].value) == (n, 1)


def test_maps_are_compared_by_their_error(tmp_path: Path) -> None:
    """Of values from a normal distribution, |x| differs from relu(x) by as much as relu(x) is large."""
    save_onnx("Abs", tmp_path / "a.onnx")
    stages = make_stages(tmp_path, None)
    stages.task = Imitate(make_net().eval())
    fidelity = stages.written(make_net(), nn.ReLU(), tmp_path / "a.onnx", seed=0)
    assert fidelity is not None and fidelity.scores[0].value == pytest.approx(1, abs=0.02)


def test_both_networks_are_asked_about_the_same_images(digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Test images that come in another order each time are still compared one with itself, and differences are paired."""

    class Shuffled(Stages):
        times = 0

        def test(self) -> Batches:
            Shuffled.times += 1
            batches = super().test()
            return batches.with_plan(batches.plan[::-1]) if Shuffled.times > 1 else batches

    model = make_net()
    export_onnx(model, SHAPE, tmp_path / "a.onnx")
    stages = Shuffled(SHAPE, digits, Classify(), torch.device("cpu"), Journal(), tmp_path / "stages.json", "abc")
    stages.original(model)
    fidelity = stages.written(model, model, tmp_path / "a.onnx", seed=0)
    assert fidelity is not None and fidelity.scores[0].value == 1
    assert stages.differences["top1"].value == 0


def test_without_a_file_the_network_itself_is_measured(digits: Data, tmp_path: Path) -> None:
    stages, model, other = make_stages(tmp_path, digits), make_net(), make_net()
    stages.original(model)
    fidelity = stages.written(other, model, None, seed=0, name="PyTorch")
    stages.add("again", other)
    assert [row.name for row in stages.rows] == ["original", "PyTorch", "again"]
    assert stages.rows[1].scores == stages.rows[2].scores != stages.rows[0].scores
    assert fidelity is not None and fidelity.scores[0].value < 1


def test_a_resumed_run_does_not_measure_again(digits: Data, tmp_path: Path) -> None:
    first, model = make_stages(tmp_path, digits), Counting()
    first.original(model)
    first.add("cut", model)
    second = make_stages(tmp_path, digits)
    second.original(model)
    asked = model.images
    second.add("cut", model)
    assert model.images == asked
    second.add("fine-tuned", model)
    assert model.images > asked
    assert [row.name for row in second.rows] == ["original", "cut", "fine-tuned"]
    assert second.rows[1] == first.rows[1]


def test_measurements_of_another_model_are_refused(digits: Data, tmp_path: Path) -> None:
    make_stages(tmp_path, None).original(make_net())
    assert json.loads((tmp_path / "stages.json").read_text(encoding="utf-8"))["identity"] == "abc"
    with pytest.raises(UsageError, match="the model's file is not the one this run was started with"):
        make_stages(tmp_path, None, identity="other")


@pytest.mark.parametrize(
    "text", ["", "[" * 100_000, "[]", "{}", '{"identity": "abc", "stages": [{"name": 3}]}', "9" * 5000, "\x80"]
)
def test_damaged_stages_are_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "stages.json").write_text(text, encoding="latin1")
    with pytest.raises(UsageError, match=r"stages\.json is damaged\. --force starts the run over"):
        make_stages(tmp_path, None)
