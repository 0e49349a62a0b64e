"""`compress verify`: a run passes as it was published, and fails after any file of it has changed."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from small import compress


def checks(result: object) -> dict[str, bool | None]:
    return {check["name"]: check["passed"] for check in json.loads(result.stdout)}  # type: ignore[attr-defined]


def test_a_published_run_passes(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished)
    result = compress("verify", "half", "--json")
    assert result.exit_code == 0, result.output
    files = ["model.onnx", "model.safetensors", "plan.json"]
    assert checks(result) == dict.fromkeys([*files, "MACs", "parameters", "ONNX", "top-1", "top-5", "cross-entropy"], True)
    printed = compress("verify", "half")
    assert "ok       top-1: " in printed.stdout and "of 359 test images" in printed.stdout


def test_other_weights_are_found_out(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the file and of the outputs; the network still has the same costs."""
    monkeypatch.chdir(finished)
    shutil.copytree("half", tmp_path / "half")
    file = tmp_path / "half/model.safetensors"
    weights = load_file(file)
    save_file({name: 1.1 * tensor if tensor.is_floating_point() else tensor for name, tensor in weights.items()}, file)
    result = compress("verify", tmp_path / "half", "--json")
    assert result.exit_code == 4 and "is not what its report says: model.safetensors, ONNX." in result.stderr
    found = checks(result)
    assert found["MACs"] and found["model.onnx"] and found["top-1"]  # scores are those of the ONNX file


def test_a_file_that_is_gone_and_another_report(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished)
    shutil.copytree("half", tmp_path / "half")
    (tmp_path / "half/plan.json").unlink()
    result = compress("verify", tmp_path / "half", "--json")
    assert result.exit_code == 4
    assert checks(result)["plan.json"] is False and checks(result)["network"] is False
    shutil.copytree("half", tmp_path / "other")
    text = (tmp_path / "other/report.json").read_text()
    macs = json.loads(text)["compressed"]["macs"]
    (tmp_path / "other/report.json").write_text(text.replace(f'"macs": {macs},', f'"macs": {macs - 1},'))
    result = compress("verify", tmp_path / "other", "--json")
    assert result.exit_code == 4 and checks(result)["MACs"] is False


def test_data_that_are_gone_are_told(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished)
    shutil.copytree("half", tmp_path / "half")
    config = tmp_path / "half/config.toml"
    config.write_text(config.read_text().replace('data = "digits"', 'data = "imagefolder:gone"'))
    result = compress("verify", tmp_path / "half", "--json")
    assert result.exit_code == 0 and checks(result)["scores"] is None
    assert compress("verify", tmp_path / "half", "--data", "digits").exit_code == 0


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    result = compress("verify", tmp_path)
    assert result.exit_code == 2 and "report.json does not exist" in result.stderr
