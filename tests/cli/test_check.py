"""`compress check`: its exit status, what it prints and writes, and that it imports nothing heavy."""

import json
import subprocess
import sys
from pathlib import Path

import example
import pytest
from small import compress

from compressor.report import to_json

HEAVY = {"torch", "torchvision", "numpy", "matplotlib", "onnx", "onnxruntime", "scipy", "sklearn"}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a finished run and an earlier one's report, outside any CI service."""
    monkeypatch.chdir(tmp_path)
    for variable in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT"):
        monkeypatch.delenv(variable, raising=False)
    Path("half").mkdir()
    Path("half/report.json").write_text(to_json(example.example()), encoding="utf-8")
    Path("earlier.json").write_text(to_json(example.without_data()), encoding="utf-8")
    return tmp_path


def test_met_budgets_pass_and_missed_warnings_do_too() -> None:
    result = compress("check", "half", "--max-drop", "1", "--min-cut", "0.4", "--max-latency", "1ms", "--budget", "params<=50%")
    assert result.exit_code == 0, result.output
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["ok", "ok", "warn", "ok", "PASS:"]
    assert result.stderr == ""


def test_a_missed_budget_fails() -> None:
    result = compress("check", "half/report.json", "--max-size", "500KB", "--max-params", "5M", "--max-macs", "20275520")
    assert result.exit_code == 1
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["missed", "ok", "ok", "FAIL:"]


def test_a_run_is_compared_with_an_earlier_one() -> None:
    result = compress("check", "half", "--baseline", "earlier.json", "--no-worse", "2%")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == "PASS: 3 of 3 budgets met"
    result = compress("check", "earlier.json", "--baseline", "half", "--no-worse", "2%")
    assert result.exit_code == 1
    assert "top1>=baseline-2%: not measured; rerun with --data" in result.stdout


def test_with_json_standard_output_is_only_json() -> None:
    result = compress("check", "half", "--max-drop", "0.5", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["passed"] is False
    assert [line.split()[0] for line in result.stderr.splitlines()] == ["missed", "FAIL:"]


def test_quiet_prints_only_failures() -> None:
    result = compress("check", "half", "--max-drop", "0.5", "--min-cut", "0.4", "-q")
    assert (result.exit_code, result.stdout) == (1, "")
    assert [line.split()[0] for line in result.stderr.splitlines()] == ["missed"]


def test_files_and_those_of_the_ci_service_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "summary.md")
    monkeypatch.setenv("GITHUB_OUTPUT", "outputs")
    result = compress("check", "half", "--max-drop", "0.5", "--junit", "out/junit.xml", "--metrics", "out/metrics.txt")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1].startswith("::error title=Budget drop<=0.5::")
    assert Path("summary.md").read_text(encoding="utf-8").startswith("### resnet20-half: FAIL: 0 of 1 budgets met, 1 missed")
    assert Path("outputs").read_text(encoding="utf-8").startswith("passed=false\nverdict=FAIL: ")
    assert "<failure" in Path("out/junit.xml").read_text(encoding="utf-8")
    assert Path("out/metrics.txt").read_text(encoding="utf-8").endswith("# EOF\n")
    annotated = compress("check", "half", "--max-drop", "0.5", "--json")
    assert json.loads(annotated.stdout)
    assert "::error" in annotated.stderr


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["half"], "error: no budget was given"),
        (["half", "--budget", "macc<=50%"], "did you mean 'macs'?"),
        (["none", "--max-drop", "1"], "error: none does not exist: give the directory of a finished run"),
        (["half", "--no-worse", "2%", "--baseline", "none"], "error: none does not exist"),
        (["half", "--max-drop", "1", "--junit", "half"], "error: half could not be written"),
    ],
)
def test_wrong_usage_is_an_error(arguments: list[str], answer: str) -> None:
    result = compress("check", *arguments)
    assert result.exit_code == 2
    assert answer in result.stderr
    assert len(result.stderr.splitlines()) <= 2


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print('heavy:', sorted({HEAVY} & sys.modules.keys())))\n"
        "from compressor.cli import main\n"
        "sys.argv = 'compress check half --max-drop 1 --junit junit.xml --metrics metrics.txt'.split()\n"
        "main()\n"
    )
    variables = {"GITHUB_STEP_SUMMARY": "summary.md", "GITHUB_OUTPUT": "outputs"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=variables)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("heavy: []\n")
    assert Path("summary.md").exists()
