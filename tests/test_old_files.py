"""Files of earlier versions can be read, and their unfinished runs resumed: see docs/versions.md.

Version 0.1.0 wrote `tests/old_files`, before its modules were moved into folders: runs of a `DigitsNet(8)`, one that was
interrupted in its second epoch, and a table of `compress sensitivity`.
"""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from small import compress

import compressor
from compressor.channels import analyse
from compressor.checkpoint.plan import read_plan, to_json
from compressor.data import open_data
from compressor.demo import DigitsNet
from compressor.network.outputs import torch_predict
from compressor.report import headline, read_report, to_html, to_markdown
from compressor.report import to_json as report_to_json
from compressor.runs.sensitivity_table import read_curves, read_sensitivity
from compressor.tasks.classify import Classify

OLD = Path(__file__).parent / "old_files"
RUNS = ["prune", "lowrank", "distill", "quantize"]
NETWORK = ("--arch", "compressor.demo:DigitsNet", "--arch-arg", "width=8", "--data", "digits", "--rate", "0.5")


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a copy of all old files."""
    shutil.copytree(OLD, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def within(now: Any, then: Any) -> Any:
    """The part of `now` whose keys are in `then`."""
    if isinstance(now, dict) and isinstance(then, dict):
        return {key: within(now[key], then[key]) for key in then if key in now}
    if isinstance(now, list) and isinstance(then, list) and len(now) == len(then):
        return [within(*pair) for pair in zip(now, then, strict=True)]
    return now


@pytest.mark.parametrize("run", [*RUNS, "pipeline"])
def test_a_report_is_read_with_all_that_it_says(run: str) -> None:
    report = read_report(OLD / run)
    told = json.loads((OLD / run / "report.json").read_text(encoding="utf-8"))
    now = json.loads(report_to_json(report))
    for part in (told, *told["epochs"]):  # epochs have the held-out score instead
        for key in ("version", "train_top1", "held_out_top1"):
            part.pop(key, None)
    assert within(now, told) == told
    told = json.loads((OLD / run / "report.json").read_text(encoding="utf-8"))
    held_out = [epoch["held_out"] and epoch["held_out"]["value"] for epoch in now["epochs"]]
    assert held_out == [epoch["held_out_top1"] for epoch in told["epochs"]]
    assert report.verdict in to_markdown(report) and "<svg" in to_html(report)


@pytest.mark.parametrize("run", RUNS)
def test_a_plan_builds_the_network_that_the_report_is_about(run: str) -> None:
    report, data, model = read_report(OLD / run), open_data("digits"), compressor.load(OLD / run)
    found = Classify().measure(torch_predict(model, "cpu"), data.batches("test", batch_size=100, device="cpu")).compute()[0]
    stage = report.stages[-2 if run == "quantize" else -1]  # the last one is of its INT8 ONNX file
    score = headline(stage.scores)
    assert score is not None and score.name == "top1" and found.n == score.n
    assert abs(found.value - score.value) < 2 / found.n  # on another CPU, the prediction for one image may differ
    assert json.loads(to_json(read_plan(OLD / run))) == json.loads((OLD / run / "plan.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("run", "arguments"),
    [
        ("prune", ("prune", "digits.pt", *NETWORK, "--method", "sfp", "--epochs", "1")),
        ("distill", ("distill", "--teacher", "digits.pt", *NETWORK, "--epochs", "1")),
    ],
)
def test_settings_are_known_as_the_same_or_as_others(old: Path, run: str, arguments: tuple[str, ...]) -> None:
    result = compress(*arguments, "--seed", "1", "--out", run, "--resume")
    assert result.exit_code == 0, result.output
    result = compress(*arguments, "--seed", "2", "--out", run, "--resume")
    assert (result.exit_code, "seed was 1 and is 2" in result.stderr) == (2, True)


def test_an_unfinished_run_is_taken_up(old: Path) -> None:
    arguments = ("prune", "digits.pt", *NETWORK, "--method", "ghfp", "--epochs", "3", "--seed", "1", "--out", "unfinished")
    result = compress(*arguments, "--resume")
    assert result.exit_code == 0, result.output
    assert "resumed after epoch 1 of 3\n" in result.stdout
    assert len(read_report(Path("unfinished")).epochs) == 3


def test_a_table_of_sensitivity_is_read() -> None:
    file = OLD / "sensitivity" / "sensitivity.csv"
    told = list(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))
    rows = read_sensitivity(file).rows
    assert [(row.group, row.kept, row.quality, row.agreement, row.distance) for row in rows] == [
        (line["group"], int(line["kept"]), float(line["accuracy"]), float(line["agreement"]), float(line["kl"]))
        for line in told
    ]
    assert {row.measured for row in rows} == {"top-1"}
    curves = read_curves(file, analyse(DigitsNet(8), (1, 8, 8)))
    assert curves["stem.0"].rates == (0.0, 0.25, 0.5) and curves["stem.0"].size == 8
