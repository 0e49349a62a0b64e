"""Whole runs of `compress quantize`: their reports and files, and the warnings when INT8 costs too much accuracy."""

import tomllib
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto
from small import compress, same, stages_of

import compressor
from compressor.data import open_data
from compressor.report import Report, read_report
from compressor.runs.quantize import LOOKED_AT, Quantizing, Wish
from compressor.runs.run import Order
from compressor.runs.sources import Images, Source
from compressor.training.recipe import Recipe

NETWORK = ("--arch", "compressor.demo:DigitsNet", "--arch-arg", "width=16")
INPUT = ("--input", "1x8x8")


@pytest.fixture(scope="module")
def quantized(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("quantized") / "int8"
    options = ("--data", "digits", "--keep", "head", "--calibrate", "200", "--out", out)
    result = compress("quantize", trained, *NETWORK, *options)
    assert result.exit_code == 0, result.output
    assert "INT8: " in result.stdout and "top-1" in result.stdout
    return out


# INT8 with images -----------------------------------------------------------------------------------------------------


def test_it_goes_through_three_stages(quantized: Path) -> None:
    report = read_report(quantized)
    assert stages_of(report) == ["original", "ONNX", "INT8"]
    original, floating, whole = report.stages
    assert original.scores and floating.scores and whole.scores
    assert floating.scores[0].value == original.scores[0].value and abs(whole.scores[0].value - original.scores[0].value) < 0.05
    assert (floating.size_bytes, whole.size_bytes) == (report.baseline.size_bytes, (quantized / "model.onnx").stat().st_size)
    assert floating.latency == report.baseline.latency and whole.latency == report.compressed.latency
    assert [latency.batch for latency in whole.latency] == [1, 32]
    assert report.fidelity is not None and 0.9 < report.fidelity.scores[0].value < 1.0001


def test_only_the_file_is_smaller(trained: Path, quantized: Path) -> None:
    report = read_report(quantized)
    assert report.baseline.macs == report.compressed.macs
    assert report.change.size_bytes is not None and report.change.size_bytes < 0.6
    assert (report.target.quantity, report.target.asked, report.target.text) == ("size", 0.75, "--to int8")
    assert report.target.reached == pytest.approx(1 - report.change.size_bytes)
    assert "ONNX file (-" in report.verdict and report.verdict.endswith("checks passed")
    assert any(warning.startswith("only model.onnx is INT8") for warning in report.warnings)
    assert same(compressor.load(quantized).state_dict(), torch.load(trained, weights_only=True))


def test_each_layer_is_reported_with_its_precision(quantized: Path) -> None:
    report = read_report(quantized)
    remarks = {layer.name: layer.group for layer in report.layers}
    assert remarks.pop("head") == "excluded by --keep head" and set(remarks.values()) == {"INT8"}
    assert [(row.name, row.reason) for row in report.frozen] == [("head", "excluded by --keep head")]
    held = {tensor.name: tensor.data_type for tensor in onnx.load(quantized / "model.onnx").graph.initializer}
    assert held["head.weight"] == TensorProto.FLOAT and held["stage2.conv1.weight_quantized"] == TensorProto.INT8


def test_its_settings_are_those_of_the_command(quantized: Path) -> None:
    settings = tomllib.loads((quantized / "config.toml").read_text())
    own = {"to", "keep", "calibrate", "ranges", "reduce_range"}
    assert settings.keys() == own | {"do", "model", "arch", "arch_arg", "data", "seed"}


def test_calibration_images_are_not_augmented(tmp_path: Path) -> None:
    data = open_data("digits", seed=5)
    order = Order(Source("any"), Images("digits"), Recipe(seed=5), tmp_path)
    batches = Quantizing(order, Wish(calibrate=20))._looked_at(data, None)
    assert batches is not None and [len(batch.targets) for batch in batches] == [LOOKED_AT, LOOKED_AT, 4]
    looked_at = {int(index): image for batch in batches for index, image in zip(batch.indices, batch.inputs, strict=True)}
    as_they_are = data.batches("train", batch_size=len(data.positions["train"]), device="cpu", augment=False)
    (whole,) = as_they_are
    assert len(looked_at) == 20
    found = {int(index): image for index, image in zip(whole.indices, whole.inputs, strict=True)}
    assert all(torch.equal(image, found[index]) for index, image in looked_at.items())


def test_a_loss_of_accuracy_is_reported_with_a_remedy_that_works(trained: Path, tmp_path: Path) -> None:
    """One channel a thousand times as large as the others, which its consumers compensate: no scale suits them all."""
    state = torch.load(trained, weights_only=True)
    for name, factor in (("bn1.weight", 1000), ("bn1.bias", 1000)):
        state[f"stage2.{name}"][0] *= factor
    state["stage2.conv2.weight"][:, 0] /= 1000
    torch.save(state, tmp_path / "wide.pt")

    def run(*keep: str) -> Report:
        return compressor.quantize(
            str(tmp_path / "wide.pt"),
            arch="compressor.demo:DigitsNet",
            arch_args={"width": 16},
            data="digits",
            keep=keep,
            out=tmp_path / f"kept{len(keep)}",
        )

    ruined, kept = run(), run("stage2.conv*")
    assert ruined.change.scores["top1"].value < -0.05
    assert any("leave layers in float32 (--keep PATTERN" in warning for warning in ruined.warnings)
    assert kept.change.scores["top1"].value > -0.01
    assert not any("--keep PATTERN" in warning for warning in kept.warnings)


# Without images -------------------------------------------------------------------------------------------------------


def test_without_images_convolutions_stay_in_float32(trained: Path, tmp_path: Path) -> None:
    result = compress("quantize", trained, *NETWORK, *INPUT, "--out", tmp_path / "a", "-q")
    assert result.exit_code == 0, result.output
    report = read_report(tmp_path / "a")
    remarks = {layer.name: layer.group for layer in report.layers}
    assert remarks.pop("head") == "INT8" and set(remarks.values()) == {"float32: no images for calibration"}
    assert any(warning.startswith("without --data only linear layers are in INT8") for warning in report.warnings)
    assert report.fidelity is not None and report.fidelity.inputs == "random inputs"


def test_fp16_halves_the_file(trained: Path, tmp_path: Path) -> None:
    result = compress("quantize", trained, *NETWORK, *INPUT, "--to", "fp16", "--out", tmp_path / "a", "-q")
    assert result.exit_code == 0, result.output
    report = read_report(tmp_path / "a")
    assert stages_of(report) == ["original", "ONNX", "FP16"] and report.method == "fp16"
    assert report.change.size_bytes is not None and 0.45 < report.change.size_bytes < 0.6 and report.target.asked == 0.5


def test_a_network_that_overflows_fp16_is_not_published(trained: Path, tmp_path: Path) -> None:
    state = torch.load(trained, weights_only=True)
    state["stem.1.weight"] *= 1e6
    torch.save(state, tmp_path / "huge.pt")
    result = compress("quantize", tmp_path / "huge.pt", *NETWORK, *INPUT, "--to", "fp16", "--out", tmp_path / "a")
    assert result.exit_code == 4 and "FP16 is too imprecise for this network: keep layers in float32" in result.stderr
    assert len(result.stderr.splitlines()) <= 2 and not (tmp_path / "a").exists()


def test_a_dry_run_writes_nothing(trained: Path, tmp_path: Path) -> None:
    result = compress("quantize", trained, *NETWORK, *INPUT, "--out", tmp_path / "a", "--dry-run")
    assert result.exit_code == 0 and "(0.0 %)" in result.stdout, result.output
    assert not (tmp_path / "a").exists()


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "status", "told"),
    [
        (("--calibrate", "0"), 2, "--calibrate is a number of training images, 1 or more; found 0"),
        (("--to", "fp16", "--reduce-range"), 2, "--reduce-range is for INT8, not for --to fp16"),
        (("--to", "fp16", "--ranges", "entropy"), 2, "--ranges entropy is for INT8, not for --to fp16"),
        (("--ranges", "entropy"), 2, "--ranges entropy needs images for calibration: give --data"),
        (("--keep", "haed"), 2, "--keep 'haed' matches no layer; did you mean 'head'?"),
        (("--keep", "head"), 3, "No layer of this network can be quantized (without images, only"),
    ],
)
def test_wrong_options_are_reported_in_a_line_or_two(
    trained: Path, tmp_path: Path, options: tuple[str, ...], status: int, told: str
) -> None:
    result = compress("quantize", trained, *NETWORK, *INPUT, "--out", tmp_path / "a", *options)
    assert result.exit_code == status and told in result.stderr, result.output
    assert len(result.stderr.splitlines()) <= 2 and not (tmp_path / "a").exists()
