"""A verified network is published whether or not it can be written as ONNX; whether it could is in the exit status."""

import json
from pathlib import Path

import pytest
import torch
from small import compress, prune, stages_of

import compressor
from compressor.errors import UsageError
from compressor.report import read_report
from compressor.report.feeding import feeding
from compressor.runs.run_directory import NETWORK

STUBBORN = """
import torch
from net import Net


class Stubborn(Net):
    \"\"\"Its control flow depends on values, which no exporter can write.\"\"\"

    def forward(self, x):
        if x.device.type != "meta" and x.sum() == 12345:
            x = -x
        return super().forward(x)
"""
CUT = ("--rate", "0.5", "--data", "digits", "--epochs", "0", "--no-repair")


@pytest.fixture
def stubborn(project: Path) -> Path:
    (project / "stubborn.py").write_text(STUBBORN)
    return project


def prune_stubborn(*arguments: object):
    return compress("prune", "net.pt", "--arch", "stubborn.py:Stubborn", *arguments)


def test_no_onnx_publishes_the_network_alone(project: Path) -> None:
    result = prune(*CUT, "--no-onnx", "--out", "a")
    assert result.exit_code == 0 and result.stderr == "", result.output
    assert "model.onnx" not in result.stdout and not Path("a/model.onnx").exists()
    report = read_report(Path("a"))
    assert stages_of(report) == ["original", "cut", "recalibrated", "PyTorch"]
    assert report.compressed.scores == report.stages[-1].scores == report.stages[-2].scores
    for profile in (report.baseline, report.compressed):
        assert profile.size_bytes is None and profile.latency == []
    assert report.verification.onnx == {} and report.verification.masked is not None
    assert report.onnx_failure is None and report.settings["onnx"] is False
    assert report.fidelity is not None and report.fidelity.scores[0].value < 1
    assert "no ONNX file, checks passed" in report.verdict and feeding(report) == ""
    assert compressor.load("a")(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert "onnx = false" in Path("a/config.toml").read_text()
    assert not any(warning.startswith("there is no ONNX") for warning in report.warnings)

    assert compress("report", "a", "--out", "pages").exit_code == 0
    assert "Run model.onnx" not in Path("pages/report.html").read_text()
    checked = compress("check", "a", "--budget", "macs<=60%", "--max-size", "1MB")
    assert checked.exit_code == 1 and "not measured; it needs model.onnx: rerun without --no-onnx" in checked.output
    assert compress("check", "a", "--budget", "macs<=60%").exit_code == 0

    result = compress("export", "a", "--out", "later.onnx")
    assert result.exit_code == 0 and "ONNX Runtime matches PyTorch" in result.stdout


def test_a_target_for_the_file_needs_the_file(project: Path) -> None:
    result = prune("--target", "size<=4kB", "--input", "1x8x8", "--no-onnx", "--out", "a")
    assert result.exit_code == 2
    assert result.stderr == (
        "error: A target for size is the size of the ONNX file: omit --no-onnx, or give a target for params.\n"
    )


def test_what_cannot_be_exported_is_published_without_its_file(stubborn: Path) -> None:
    result = prune_stubborn(*CUT, "--out", "a")
    assert result.exit_code == 6
    first, second = result.stderr.splitlines()
    assert first.startswith("error: a holds the verified network for PyTorch, but no ONNX file: PyTorch's exporter cannot")
    assert second == 'compressor.load("a") loads it; --no-onnx does without the file.'
    assert {path.name for path in Path("a").iterdir()} >= {"model.safetensors", "plan.json", "report.json"}
    assert not Path("a/model.onnx").exists() and not Path("a/state").exists()
    report = read_report(Path("a"))
    assert report.onnx_failure is not None and report.stages[-1].name == "PyTorch"
    told = [warning.partition(": PyTorch's exporter cannot")[0] for warning in report.warnings if "exporter" in warning]
    assert told == ["the original's size and latency were not measured", "there is no ONNX file"]
    assert prune_stubborn(*CUT, "--out", "a", "--resume").exit_code == 6  # it is finished: the same report again
    assert prune_stubborn(*CUT, "--no-onnx", "--out", "b").exit_code == 0
    assert Path("a/model.safetensors").read_bytes() == Path("b/model.safetensors").read_bytes()


def test_a_target_for_the_file_ends_before_anything_was_cut(stubborn: Path) -> None:
    result = prune_stubborn("--target", "size<=4kB", "--input", "1x8x8", "--out", "a")
    assert result.exit_code == 3 and "exporter cannot" in result.stderr and not Path("a").exists()


def test_no_file_of_an_earlier_run_stays_beside_other_weights(stubborn: Path) -> None:
    assert prune("--rate", "0.3", "--input", "1x8x8", "--out", "a").exit_code == 0
    assert Path("a/model.onnx").exists()
    assert prune_stubborn("--rate", "0.5", "--input", "1x8x8", "--out", "a", "--force").exit_code == 6
    assert not Path("a/model.onnx").exists() and set(NETWORK) - {"model.onnx"} < {path.name for path in Path("a").iterdir()}


def test_a_failure_of_our_own_does_not_cost_the_network_either(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("surprise")

    monkeypatch.setattr("compressor.onnx.export._convert", broken)
    result = prune("--rate", "0.5", "--input", "1x8x8", "--out", "a")
    assert result.exit_code == 6 and "internal error: KeyError: 'surprise'" in result.stderr
    assert compressor.load("a")(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_a_file_that_cannot_be_timed_is_not_published_nor_its_stage_reported(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise UsageError("The ONNX network does not run on inputs of 32x1x8x8.")

    monkeypatch.setattr("compressor.runs.run.compare_latency", fails)
    result = prune(*CUT, "--out", "a")
    assert result.exit_code == 6 and "does not run on inputs of 32x1x8x8" in result.stderr
    report = read_report(Path("a"))
    assert stages_of(report) == ["original", "cut", "recalibrated", "PyTorch"] and not Path("a/model.onnx").exists()
    assert report.verification.onnx == {} and report.compressed.size_bytes is None


def test_a_pipeline_goes_through_without_files(stubborn: Path) -> None:
    Path("compress.toml").write_text(
        'model = "net.pt"\narch = "stubborn.py:Stubborn"\ninput = "1x8x8"\n'
        '[[steps]]\ndo = "prune"\nrate = 0.3\n[[steps]]\ndo = "lowrank"\nrate = 0.1\n'
    )
    result = compress("run", "--out", "out")
    assert result.exit_code == 6, result.output
    report = read_report(Path("out"))
    assert report.onnx_failure is not None and report.compressed.size_bytes is None and not Path("out/model.onnx").exists()
    assert [stage.name for stage in report.stages] == ["original", "prune magnitude", "lowrank svd"]
    assert compressor.load("out")(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    result = compress("run", "--out", "out")
    assert result.exit_code == 6 and "1-prune: up to date" in result.stdout

    Path("compress.toml").write_text("onnx = false\n" + Path("compress.toml").read_text())
    result = compress("run", "--out", "out")
    assert result.exit_code == 0, result.output
    assert read_report(Path("out")).onnx_failure is None


def test_a_comparison_has_runs_without_files(stubborn: Path) -> None:
    grid = ("--methods", "magnitude", "--rates", "0.5", "--data", "digits", "--epochs", "0")
    arguments = ("compare", "net.pt", "--arch", "stubborn.py:Stubborn", *grid)
    result = compress(*arguments, "--out", "a")
    assert result.exit_code == 6 and "1 of 1 runs have no ONNX file (magnitude-0.5-seed0)" in result.stderr
    assert compress(*arguments, "--no-onnx", "--out", "b").exit_code == 0
    assert json.loads(Path("b/comparison.json").read_text())["points"][0]["size_bytes"] is None


def test_quantization_is_of_the_file(stubborn: Path) -> None:
    result = compress("quantize", "net.pt", "--arch", "stubborn.py:Stubborn", "--data", "digits", "--out", "a")
    assert result.exit_code == 3 and "exporter cannot" in result.stderr and not Path("a").exists()


def test_a_model_that_cannot_be_exported_is_evaluated_in_pytorch(stubborn: Path) -> None:
    model = ("net.pt", "--arch", "stubborn.py:Stubborn", "--data", "digits")
    result = compress("eval", *model)
    assert result.exit_code == 6 and "Top-1, PyTorch" in result.stdout and "ONNX" not in result.stdout
    assert result.stderr.startswith("error: Size and latency were not measured: PyTorch's exporter cannot")
    result = compress("eval", *model, "--no-onnx", "--json")
    told = json.loads(result.stdout)
    assert result.exit_code == 0 and told["size_bytes"] is None and told["latency"] == [] and told["torch"]["n"] == 359


def test_the_library_returns_the_report(project: Path) -> None:
    report = compressor.prune("net.pt", rate=0.5, arch="net.py:Net", inputs=(1, 8, 8), out="a", onnx=False)
    assert report.compressed.size_bytes is None and report.compressed.macs < report.baseline.macs
    with pytest.raises(UsageError, match="omit --no-onnx"):
        compressor.prune("net.pt", target="size<=4kB", arch="net.py:Net", inputs=(1, 8, 8), out="b", onnx=False)
