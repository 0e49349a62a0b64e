"""Whole runs: their files, their reports, and that nothing is published that failed its checks."""

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from small import TRAINED, compress, prune, same, stages_of
from torch import nn

import compressor
from compressor.channels import surgery, verify
from compressor.checkpoint import build
from compressor.errors import UsageError
from compressor.network.cost import count_macs, count_params
from compressor.onnx.export import export_onnx
from compressor.report import read_report
from compressor.runs.run_directory import RESULTS

# A run with images ----------------------------------------------------------------------------------------------------


def test_a_run_with_images_goes_through_five_stages(finished: Path) -> None:
    report = read_report(finished / "half")
    assert stages_of(report) == ["original", "cut", "recalibrated", "fine-tuned", "ONNX"]
    assert {stage.scores[0].n for stage in report.stages if stage.scores} == {359}
    assert report.stages[2].note.startswith("batch-norm statistics of 1294 training images; ")
    assert report.stages[2].note.endswith(" % of 144 held-out images")
    assert [epoch.epoch for epoch in report.epochs] == [1, 2, 3]
    assert sum(report.times.values()) == pytest.approx(report.seconds)
    parts = {
        "reading",
        "choosing and removing",
        "recovery",
        "training",
        "evaluation",
        "export and its checks",
        "latency",
        "rest",
    }
    assert set(report.times) == parts and report.times["rest"] < report.seconds / 5
    assert report.baseline.scores == report.stages[0].scores
    assert report.compressed.scores == report.stages[-1].scores
    assert report.fidelity is not None and report.fidelity.inputs == "test images"


def test_half_of_the_macs_are_removed_from_the_network_itself(finished: Path) -> None:
    report = read_report(finished / "half")
    assert report.target.asked == 0.5 and report.target.reached == pytest.approx(0.5, abs=0.01)
    small = load_below(finished)
    assert count_macs(small, (1, 8, 8)) == report.compressed.macs
    assert count_params(small) == report.compressed.params
    assert report.change.macs == report.compressed.macs / report.baseline.macs
    assert report.compressed.size_bytes == (finished / "half" / "model.onnx").stat().st_size


def load_below(folder: Path) -> nn.Module:
    return compressor.load(folder / "half", arch=f"{folder / 'net.py'}:Net")


def test_the_onnx_file_matches_the_loaded_network(finished: Path) -> None:
    images = torch.randn(5, 1, 8, 8)
    session = onnxruntime.InferenceSession(finished / "half" / "model.onnx")
    (logits,) = session.run(None, {"images": images.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(logits, load_below(finished)(images).numpy(), rtol=1e-4, atol=1e-5)
    verification = read_report(finished / "half").verification
    assert set(verification.onnx) == {"1", "2", "3", "images"}
    assert max(verification.onnx.values()) < 1e-4
    assert verification.masked is not None and verification.masked < 1e-9


DEMO = ("--arch", "compressor.demo:DigitsNet", "--arch-arg", "width=16", "--data", "digits", "--rate", "0.5")


def test_consumers_of_pruned_channels_are_repaired_if_that_helps(trained: Path, tmp_path: Path) -> None:
    assert compress("prune", trained, *DEMO, "--epochs", "0", "--out", tmp_path / "repaired").exit_code == 0
    report = read_report(tmp_path / "repaired")
    assert stages_of(report) == ["original", "cut", "recalibrated", "repaired", "ONNX"]
    recalibrated, repaired = (stage.scores[0].value for stage in report.stages[2:4] if stage.scores)
    assert repaired > recalibrated and "held-out images" in report.stages[3].note
    compress("prune", trained, *DEMO, "--epochs", "0", "--no-repair", "--out", tmp_path / "bare")
    assert stages_of(read_report(tmp_path / "bare")) == ["original", "cut", "recalibrated", "ONNX"]


def test_training_distils_the_original_unless_a_paper_is_followed(trained: Path, tmp_path: Path) -> None:
    def terms(*options: str) -> set[str]:
        assert compress("prune", trained, *DEMO, "--epochs", "1", *options, "--out", tmp_path, "--force").exit_code == 0
        (epoch,) = read_report(tmp_path).epochs
        return set(epoch.losses)

    assert terms() == {"cross_entropy", "teacher"}
    assert terms("--teacher", "none") == {"cross_entropy"}
    assert terms("--recipe", "paper") == {"cross_entropy"}


def test_the_log_has_stages_and_epochs(finished: Path) -> None:
    events = [json.loads(line) for line in (finished / "half" / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    told = [event.get("name", event["event"]) for event in events]
    epochs = ["epoch"] * 3
    assert told == ["opened", "original", "cut", "recalibrated", *epochs, "fine-tuned", "ONNX", "done"]


def test_the_config_holds_the_settings(finished: Path) -> None:
    config = tomllib.loads((finished / "half" / "config.toml").read_text(encoding="utf-8"))
    decided = {"model": "net.pt", "arch": "net.py:Net", "rate": 0.5, "data": "digits", "method": "magnitude", "lr": 0.1}
    assert decided.items() <= config.items()
    assert (config["ema_decay"], config["weight_decay"], config["milestones"]) == (0.9, 1e-4, [0.5, 0.75])
    assert "keep" not in config and "target" not in config


def test_the_report_holds_settings_with_their_types(finished: Path) -> None:
    settings = read_report(finished / "half").settings
    assert (settings["epochs"], settings["lr"], settings["arch"]) == (3, 0.1, "net.py:Net")
    assert (settings["channels_last"], settings["milestones"]) == (None, "0.5, 0.75")


def test_a_finished_run_leaves_only_its_results(finished: Path) -> None:
    assert {path.name for path in (finished / "half").iterdir()} == set(RESULTS)


def test_resuming_a_finished_run_returns_its_report(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished)
    result = prune(*TRAINED, "--out", "half", "--resume", "--json")
    assert result.exit_code == 0
    assert result.stdout == (finished / "half" / "report.json").read_text(encoding="utf-8")


# Targets --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def squeezed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state dict of torchvision's SqueezeNet, pruned without data, with `--json`."""
    from torchvision.models import squeezenet1_1

    folder = tmp_path_factory.mktemp("squeezed")
    torch.save({"state_dict": squeezenet1_1(num_classes=10).state_dict()}, folder / "model.pt")
    result = compress("prune", folder / "model.pt", "--rate", "0.5", "--input", "3x32x32", "--out", folder / "run", "--json")
    assert result.exit_code == 0, result.output
    (folder / "stdout").write_text(result.stdout)
    (folder / "stderr").write_text(result.stderr)
    return folder


def test_without_images_nothing_is_trained_and_no_accuracy_reported(squeezed: Path) -> None:
    report = read_report(squeezed / "run")
    assert report.arch == "torchvision:squeezenet1_1"
    assert stages_of(report) == ["original", "cut", "ONNX"]
    assert [stage.scores for stage in report.stages] == [[]] * 3 and report.epochs == []
    assert report.baseline.scores == [] and report.change.scores == {}
    assert report.target.reached == pytest.approx(0.5, abs=0.01)
    assert set(report.verification.onnx) == {"1", "2", "3"}
    assert report.fidelity is not None and report.fidelity.inputs == "random inputs"
    assert "weights taken from 'state_dict'" in report.warnings
    assert "not measured" in (squeezed / "run" / "report.md").read_text(encoding="utf-8")


def test_with_json_standard_output_is_only_json(squeezed: Path) -> None:
    printed = (squeezed / "stdout").read_text(encoding="utf-8")
    assert json.loads(printed) == json.loads((squeezed / "run" / "report.json").read_text(encoding="utf-8"))
    assert "original: " in (squeezed / "stderr").read_text(encoding="utf-8")


def test_every_layer_of_a_scattered_stream_loses_its_share_of_filters(project: Path) -> None:
    result = prune("--target", "filters=40%", "--residual", "scatter", "--input", "1x8x8", "--out", "a", "-q")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    report = read_report(project / "a")
    assert (report.target.quantity, report.target.asked) == ("filters", 0.4)
    assert report.target.reached == pytest.approx(0.4, abs=0.05)
    widths = {layer.name: (layer.shape[0], layer.shape_after[0]) for layer in report.layers}
    assert widths == {"stem.0": (8, 5), "conv1": (16, 10), "conv2": (8, 5), "head": (10, 10)}


def test_a_limit_is_met_and_a_layer_kept(project: Path) -> None:
    result = prune("--target", "params<=1.8K", "--keep", "stem.*", "--round-to", "1", "--input", "1x8x8", "--out", "a")
    assert result.exit_code == 0, result.output
    report = read_report(project / "a")
    assert report.compressed.params == 1800  # eleven of conv1's sixteen channels
    assert next(layer for layer in report.layers if layer.name == "stem.0").shape_after[0] == 8
    assert ("stem.0", "excluded by --keep stem.*") in [(row.name, row.reason) for row in report.frozen]
    assert "report.html" in result.stdout and "scores not measured" in result.stdout


def test_a_file_size_is_met_with_rounded_widths(project: Path) -> None:
    result = prune("--target", "size<=10KB", "--round-to", "4", "--input", "1x8x8", "--out", "a")
    assert result.exit_code == 0, result.output
    report = read_report(project / "a")
    assert (project / "a" / "model.onnx").stat().st_size <= 10_000
    assert all(layer.shape_after[0] % 4 == 0 for layer in report.layers if layer.name != "head")


def test_a_run_of_a_run_is_one_plan_from_the_original(project: Path) -> None:
    """Pruned during training (SFP, scattered), and pruned again."""
    sfp = ("--method", "sfp", "--set", "mask_norms=false", "--residual", "scatter", "--ema-decay", "0.9")
    result = prune("--rate", "0.3", *sfp, "--data", "digits", "--epochs", "2", "--out", "once")
    assert result.exit_code == 0, result.output
    once = read_report(project / "once")
    assert stages_of(once) == ["original", "trained", "cut", "recalibrated", "ONNX"]
    assert (once.settings["method"], once.settings["set"]) == ("sfp", "mask_norms=False")
    assert once.target.reached == pytest.approx(0.3, abs=0.05)

    result = compress("prune", "once", "--rate", "0.3", "--out", "twice", "-q")
    assert result.exit_code == 0, result.output
    twice = read_report(project / "twice")
    assert twice.baseline.macs == once.compressed.macs
    assert twice.input_shape == [1, 8, 8]
    small = compressor.load("twice")
    weights = load_file("twice/model.safetensors")
    assert same(weights, {name: tensor for name, tensor in small.state_dict().items() if name in weights})
    assert count_macs(small, (1, 8, 8)) == twice.compressed.macs
    session = onnxruntime.InferenceSession("twice/model.onnx")
    images = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        found = small(images).numpy()
    np.testing.assert_allclose(session.run(None, {"images": images.numpy()})[0], found, rtol=1e-4, atol=1e-5)


def test_the_library_prunes_as_the_command_does(project: Path) -> None:
    report = compressor.prune("net.pt", arch="net.py:Net", rate=0.4, data="digits", out="runs/a")
    assert report == read_report(Path("runs/a"))
    assert [name for name in stages_of(report) if name != "repaired"] == ["original", "cut", "recalibrated", "ONNX"]
    assert (report.settings["rate"], report.settings["epochs"], report.command) == (0.4, 0, "compressor.prune(...)")


@pytest.mark.parametrize("amount", [{}, {"rate": 0.5, "target": "params=50%"}])
def test_the_library_requires_one_target(project: Path, amount: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="give either rate or target"):
        compressor.prune("net.pt", out="a", **amount)


CAPTIONED = """
import torch
from net import Net
from torch import nn


class Captioned(Net):
    def __init__(self):
        super().__init__()
        self.second, self.words = nn.Conv2d(1, 8, 3, padding=1), nn.Embedding(2, 10)

    def forward(self, image, other, *, ids):
        return {"out": super().forward(image + self.second(other).mean(1, keepdim=True)) + self.words(ids).sum(1)}


def make():
    torch.manual_seed(0)
    return Captioned()
"""


def test_a_network_of_several_inputs_is_pruned_measured_and_pruned_again(project: Path) -> None:
    (project / "captioned.py").write_text(CAPTIONED)
    torch.save(build("captioned.py:make").state_dict(), "captioned.pt")
    network = ("captioned.pt", "--arch", "captioned.py:make", "--rate", "0.4", "--out", "once")
    inputs = ("--input", "1x8x8", "--input", "1x8x8", "--input", "ids=1x4:int64")
    result = compress("prune", *network, *inputs, "--data", "digits")
    assert result.exit_code == 2 and "digits has only images: omit --data" in result.stderr
    result = compress("prune", *network, *inputs)
    assert result.exit_code == 0, result.output
    once = read_report(project / "once")
    assert once.inputs == {"input0": [1, 8, 8], "input1": [1, 8, 8], "ids": [4]}
    assert once.settings["input"] == "1x8x8, 1x8x8, ids=1x4:int64" and once.fidelity is not None
    measured = json.loads(compress("eval", "once/model.onnx", "--json").stdout)
    assert measured["inputs"] == once.inputs and len(measured["latency"]) == 2

    result = compress("prune", "once", "--rate", "0.3", "--out", "twice", "-q")
    assert result.exit_code == 0, result.output
    small = compressor.load("twice")
    image, ids = torch.randn(3, 1, 8, 8), torch.ones(3, 4, dtype=torch.int64)
    assert small(image, image, ids=ids)["out"].shape == (3, 10)


# Checks that fail -----------------------------------------------------------------------------------------------------


def test_a_wrong_cut_is_not_published(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model: nn.Module, cut: surgery.Cut) -> nn.Module:
        small = real(model, cut)
        with torch.no_grad():
            next(small.parameters()).mul_(1.01)
        return small

    real = surgery.apply
    monkeypatch.setattr(verify.surgery, "apply", wrong)
    result = prune("--rate", "0.5", "--input", "1x8x8", "--out", "a")
    assert result.exit_code == 4
    assert result.stderr.startswith("error: The pruned model is not equal to the masked one")
    assert not Path("a").exists()


def test_a_wrong_onnx_file_is_not_published_but_the_network_is(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model: nn.Module, shape: tuple[int, int, int], path: Path, *form: object) -> None:
        for parameter in model.parameters():
            parameter.data.mul_(1.001)
        export_onnx(model, shape, path, *form)
        for parameter in model.parameters():
            parameter.data.div_(1.001)

    monkeypatch.setattr("compressor.onnx.export.export_onnx", wrong)
    (project / "a").mkdir()
    (project / "a" / "notes.txt").write_text("mine")
    result = prune("--rate", "0.5", "--input", "1x8x8", "--out", "a", "--force")
    assert result.exit_code == 6 and "differs from PyTorch by" in result.stderr
    names = {path.name for path in (project / "a").iterdir()}
    assert names == {"notes.txt", *RESULTS} - {"model.onnx"}
