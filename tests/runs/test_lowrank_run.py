"""Whole runs of `compress lowrank`: the report, loading the result, and combinations with pruning."""

from pathlib import Path
from typing import Any

import pytest
from small import answers, assert_same_result, compress, interrupt_at, stages_of

import compressor
from compressor.network.cost import count_macs, count_params
from compressor.report import Report, read_report
from compressor.training.recipe import Recipe
from compressor.training.train import Training

SHAPE = (1, 8, 8)
NETWORK = ("--arch", "compressor.demo:DigitsNet", "--arch-arg", "width=16")


def lowrank(model: Path, out: Path, **options: Any) -> Report:
    return compressor.lowrank(str(model), arch="compressor.demo:DigitsNet", arch_args={"width": 16}, out=out, **options)


@pytest.fixture(scope="module")
def factored(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half of the MACs removed; two epochs of training."""
    out = tmp_path_factory.mktemp("factored") / "run"
    lowrank(trained, out, rate=0.5, data="digits", keep=("down.*",), recipe=Recipe(epochs=2, lr=0.01))
    return out


# A run with images ----------------------------------------------------------------------------------------------------


def test_it_goes_through_six_stages(factored: Path) -> None:
    report = read_report(factored)
    assert stages_of(report) == ["original", "factored", "recalibrated", "repaired", "fine-tuned", "ONNX"]
    top1 = {stage.name: stage.scores[0].value for stage in report.stages if stage.scores}
    assert top1["repaired"] > top1["factored"] and top1["ONNX"] > 0.9
    assert report.compressed.scores == report.stages[-1].scores
    assert {stage.macs for stage in report.stages[1:]} == {report.compressed.macs}


def test_half_of_the_macs_are_removed_and_parameters_with_them(factored: Path) -> None:
    report, network = read_report(factored), compressor.load(factored)
    assert report.target.asked == 0.5 and report.target.reached == pytest.approx(0.5, abs=0.02)
    assert count_macs(network, SHAPE) == report.compressed.macs
    assert count_params(network) == report.compressed.params < report.baseline.params
    assert report.verification.masked is not None and report.verification.masked < 1e-10
    assert max(report.verification.onnx.values()) < 1e-4


def test_the_report_lists_factored_layers_and_why_others_are_kept(factored: Path) -> None:
    report, network = read_report(factored), compressor.load(factored)
    layers = {layer.name: layer for layer in report.layers}
    split = layers["stage2.conv1"]
    assert split.rank is not None and len(split.factors) == 2 and f"rank {split.rank} of " in split.group
    assert [list(part.weight.shape) for part in network.get_submodule("stage2.conv1")] == split.factors
    assert split.macs_after < split.macs and split.params_after < split.params
    frozen = {row.name: row.reason for row in report.frozen}
    assert frozen["down.0"] == "excluded by --keep down.*"
    assert layers["down.0"].factors == [] and layers["down.0"].group == frozen["down.0"]
    assert (report.method, report.settings["method"], report.settings["rate"]) == ("svd", "svd", 0.5)


def test_what_was_written_is_loaded_without_its_method(factored: Path) -> None:
    assert answers(factored).shape == (5, 10)


def test_a_resumed_run_ends_like_an_uninterrupted_one(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = (*NETWORK, "--rate", "0.4", "--data", "digits", "--epochs", "2", "--method", "tucker")
    assert compress("lowrank", trained, *options, "--out", tmp_path / "whole", "-q").exit_code == 0
    with monkeypatch.context() as patched:
        patched.setattr(Training, "_step", interrupt_at(11 + 5, Training._step))  # in the second epoch
        assert compress("lowrank", trained, *options, "--out", tmp_path / "a").exit_code == 130
    result = compress("lowrank", trained, *options, "--out", tmp_path / "a", "--resume")
    assert result.exit_code == 0 and "resumed after epoch 1 of 2\n" in result.stdout, result.output
    assert_same_result(tmp_path / "a", tmp_path / "whole")


# Without images -------------------------------------------------------------------------------------------------------


def test_without_images_the_weights_decide(trained: Path, tmp_path: Path) -> None:
    report = lowrank(trained, tmp_path / "a", rank=4, method="cp", inputs=SHAPE)
    assert stages_of(report) == ["original", "factored", "ONNX"]
    assert (report.target.quantity, report.target.text, report.settings["rank"]) == ("rank", "--rank 4", 4)
    assert {layer.rank for layer in report.layers if layer.factors} == {4}
    assert answers(tmp_path / "a").shape == (5, 10)


def test_layers_keep_their_energy(trained: Path, tmp_path: Path) -> None:
    report = lowrank(trained, tmp_path / "a", energy=0.8, inputs=SHAPE)
    assert report.target.quantity == "energy" and report.settings["energy"] == pytest.approx(0.8)
    assert report.target.asked == pytest.approx(0.2) and 0.1 < report.target.reached < 0.2


# With pruning ---------------------------------------------------------------------------------------------------------


def test_a_pruned_network_is_factored_and_a_factored_one_pruned(trained: Path, tmp_path: Path) -> None:
    """Each time the run directory is the model, and the result is one plan from the original."""
    first, second = {}, {}
    for command, other in (("prune", "lowrank"), ("lowrank", "prune")):
        one, two = tmp_path / command, tmp_path / f"{command}-{other}"
        result = compress(command, trained, *NETWORK, "--rate", "0.3", "--input", "1x8x8", "--out", one, "-q")
        assert result.exit_code == 0, result.output
        result = compress(other, one, "--rate", "0.3", "--out", two, "-q")
        assert result.exit_code == 0, result.output
        first[command], second[command] = read_report(one), read_report(two)
        assert second[command].baseline.macs == first[command].compressed.macs
        assert count_macs(compressor.load(two), SHAPE) == second[command].compressed.macs
        assert second[command].change.macs == pytest.approx(0.7, abs=0.03)
        assert answers(two).shape == (5, 10)


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ((), "Give exactly one of --rate 0.5"),
        (("--rate", "0.5", "--rank", "4"), "Give exactly one of --rate"),
        (("--rank", "0"), "--rank must be 1 or more; found 0"),
        (("--energy", "1.5"), "--energy is the share of a layer's energy to keep, between 0 and 1, both excluded; found 1.5"),
        (("--target", "filters=50%"), "--target filters=50% is for `compress prune`: use macs, params or size"),
        (("--rate", "0.5", "--method", "magnitude"), "--method magnitude belongs to `compress prune`"),
        (("--rate", "0.5", "--set", "splits=auto"), "svd has no setting 'splits'; did you mean 'split'?"),
        (("--rate", "0.5", "--set", "split=chanel"), "--set split=chanel is unknown: use auto, channel"),
        (("--rate", "0.5", "--keep", "stage3.*"), "--keep 'stage3.*' matches no layer"),
        (("--rate", "0.5", "--epochs", "1"), "--epochs 1 needs images to train on: give --data"),
    ],
)
def test_wrong_options_are_reported_in_a_line_or_two(
    trained: Path, tmp_path: Path, options: tuple[str, ...], told: str
) -> None:
    result = compress("lowrank", trained, *NETWORK, "--input", "1x8x8", "--out", tmp_path / "a", *options)
    assert result.exit_code == 2 and told in result.stderr, result.output
    assert len(result.stderr.splitlines()) <= 2 and not (tmp_path / "a").exists()
