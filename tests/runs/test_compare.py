"""One command for several methods, rates and seeds: equal terms for all, no run repeated, failures that stop no other run."""

import csv
import json
import shutil
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
import torch
from small import compress, make_net, write_project

import compressor
from compressor.errors import UsageError
from compressor.report import Report, read_report
from compressor.runs import compare
from compressor.training.method import Method

NET = ("compare", "net.pt", "--arch", "net.py:Net")
ALIKE = (*NET, "--data", "digits", "--epochs", "1", "--lr", "0.1")
TWO = ("--methods", "magnitude,sfp", "--rates", "0.3,0.6", "--seeds", "0,1")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project with a comparison of two methods in `out`. Look, do not touch."""
    folder = tmp_path_factory.mktemp("compared")
    write_project(folder)
    with chdir(folder):
        result = compress(*ALIKE, *TWO, "--out", "out", "--json")
    assert result.exit_code == 0, result.output
    (folder / "printed.json").write_text(result.stdout)
    yield folder


@pytest.fixture
def copied(done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, to be touched, as the working directory."""
    shutil.copytree(done, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def read(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    return found


def never(*_: object, **__: object) -> None:
    raise AssertionError("nothing was to be trained")


# The runs -------------------------------------------------------------------------------------------------------------


def test_every_method_rate_and_seed_is_a_run_and_a_point(done: Path) -> None:
    cut = [f"{method}-{rate}-seed{seed}" for method in ("magnitude", "sfp") for rate in (0.3, 0.6) for seed in (0, 1)]
    names = {*cut, "dense-seed0", "dense-seed1"}
    assert {path.name for path in (done / "out").iterdir() if path.is_dir()} == names
    points = {point["run"]: point for point in read(done / "out")["points"]}
    assert points.keys() == names
    for name, point in points.items():
        report = read_report(done / "out" / name)
        assert report.compressed.scores and report.compressed.scores[0].n == 359
        assert (point["score"]["value"], point["macs"]) == (report.compressed.scores[0].value, report.compressed.macs)
        assert point["rate"] == pytest.approx(1 - point["macs_left"], abs=0.02)
        assert point["training_seconds"] == sum(epoch.seconds for epoch in report.epochs) > 0


def test_all_runs_are_on_equal_terms(done: Path) -> None:
    differing = {"do", "method", "set", "rate", "residual", "heads", "most", "repair", "seed"}
    settings = [read_report(path).settings.items() for path in (done / "out").glob("*-seed?")]
    alike = [{name: value for name, value in own if name not in differing and value is not None} for own in settings]
    assert all(own == alike[0] for own in alike) and alike[0]["lr"] == 0.1


def test_seeds_make_a_mean_with_its_deviation(done: Path) -> None:
    found = read(done / "out")
    row = next(row for row in found["rows"] if (row["method"], row["rate"]) == ("magnitude", 0.6))
    own = [point["score"]["value"] for point in found["points"] if point["run"].startswith("magnitude-0.6")]
    assert (row["top1"]["mean"], row["top1"]["deviation"], row["seeds"]) == (fmean(own), stdev(own), 2)
    assert {row["rate"] for row in found["rows"] if row["best"]} == {0.3, 0.6}


def test_the_table_is_there_in_every_format(done: Path) -> None:
    lines = list(csv.DictReader((done / "out" / "comparison.csv").read_text(encoding="utf-8").splitlines()))
    assert len(lines) == 10 and all(0 < float(line["macs_left"]) <= 1 for line in lines)
    assert (done / "printed.json").read_text() == (done / "out" / "comparison.json").read_text()
    assert "<svg" in (done / "out" / "comparison.html").read_text(encoding="utf-8")
    assert "| dense | - |" in (done / "out" / "comparison.md").read_text(encoding="utf-8")


def test_the_dense_baseline_is_trained_and_not_pruned(done: Path) -> None:
    report = read_report(done / "out" / "dense-seed0")
    assert [stage.name for stage in report.stages] == ["original", "trained", "ONNX"]
    assert report.change.macs == report.change.params == 1 and len(report.epochs) == 1
    assert report.stages[0].scores != report.stages[-1].scores
    with chdir(done):
        trained = compressor.load("out/dense-seed0", arch="net.py:Net")
    assert sum(parameter.numel() for parameter in trained.parameters()) == report.baseline.params


# Repeated, and after an interruption ----------------------------------------------------------------------------------


def test_finished_runs_are_not_rerun(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in (copied / "out").glob("comparison.*")}
    monkeypatch.setattr(Method, "loss", never)
    result = compress(*ALIKE, *TWO, "--out", "out")
    assert result.exit_code == 0, result.output
    assert "10 runs, 10 finished" in result.stdout
    assert {path.name: path.read_bytes() for path in (copied / "out").glob("comparison.*")} == before
    fewer = compress(*ALIKE, "--methods", "sfp", "--rates", "0.6", "--no-dense", "--out", "out", "--json")
    assert [point["run"] for point in json.loads(fewer.stdout)["points"]] == ["sfp-0.6-seed0"]


def test_other_settings_and_another_model_are_errors(copied: Path) -> None:
    result = compress(*ALIKE, *TWO, "--lr", "0.2", "--out", "out")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: out/dense-seed0 was started with other settings: lr was 0.1 and is 0.2.\n")
    torch.manual_seed(1)
    torch.save(make_net().state_dict(), "net.pt")
    result = compress(*ALIKE, *TWO, "--out", "out")
    assert result.exit_code == 2 and "was started with another file than the present net.pt" in result.stderr
    result = compress(*ALIKE, "--methods", "magnitude", "--rates", "0.6", "--no-dense", "--out", "out", "--force", "-q")
    assert (result.exit_code, result.output) == (0, "")


def test_an_interrupted_comparison_has_a_table_and_is_resumed(
    project: Path, done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (*ALIKE, "--methods", "magnitude,sfp", "--rates", "0.6", "--no-dense", "--out", "out")
    with monkeypatch.context() as patched:
        real, made = compare.Pruning.run, []

        def run(self: compare.Pruning) -> Report:
            if made:
                raise KeyboardInterrupt
            made.append(self)
            return real(self)

        patched.setattr(compare.Pruning, "run", run)
        assert compress(*arguments).exit_code == 130
    found = read(project / "out")
    assert [point["run"] for point in found["points"]] == ["magnitude-0.6-seed0"]
    assert [(gap["run"], gap["reason"], gap["status"]) for gap in found["gaps"]] == [("sfp-0.6-seed0", "not run yet", None)]
    result = compress(*arguments)
    assert result.exit_code == 0 and "2 runs, 1 finished" in result.stdout
    whole = {point["run"]: point["score"] for point in read(done / "out")["points"]}
    assert {point["run"]: point["score"] for point in read(project / "out")["points"]}.items() <= whole.items()


def test_a_run_that_was_interrupted_in_training_is_resumed(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (
        *NET,
        "--data",
        "digits",
        "--epochs",
        "2",
        "--methods",
        "magnitude",
        "--rates",
        "0.5",
        "--no-dense",
        "--out",
        "a",
    )
    with monkeypatch.context() as patched:
        patched.setattr("compressor.onnx.export.check_onnx", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        assert compress(*arguments).exit_code == 130
    assert compress(*arguments, "--dry-run").stdout == "magnitude-0.5-seed0: interrupted\n"
    result = compress(*arguments)
    assert result.exit_code == 0 and "resumed after epoch 2 of 2" in result.stdout


# Failures -------------------------------------------------------------------------------------------------------------


def test_a_run_that_fails_is_a_row_and_leaves_the_others(project: Path) -> None:
    arguments = (*NET, "--data", "digits", "--epochs", "0", "--methods", "magnitude", "--rates", "0.999,0.5", "--out", "out")
    result = compress(*arguments)
    assert result.exit_code == 3
    assert result.stderr == "error: 1 of 2 runs failed (magnitude-0.999-seed0); see the table for the reasons.\n"
    found = read(project / "out")
    assert [point["run"] for point in found["points"]] == ["magnitude-0.5-seed0"]
    (gap,) = found["gaps"]
    assert gap["status"] == 3 and "\n" not in gap["reason"] and gap["reason"] in " ".join(result.stdout.split())
    assert not (project / "out" / "magnitude-0.999-seed0").exists()


def test_a_fault_of_ours_is_reported_and_logged(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = compare.Pruning.run

    def run(self: compare.Pruning) -> Report:
        return real(self) if self.wish.method == "magnitude" else 1 // 0

    monkeypatch.setattr(compare.Pruning, "run", run)
    settings = ("--data", "digits", "--epochs", "1", "--methods", "sfp,magnitude", "--rates", "0.5", "--no-dense")
    result = compress(*NET, *settings, "--out", "out", "-q")
    assert result.exit_code == 5 and len(read(project / "out")["points"]) == 1
    reason = read(project / "out")["gaps"][0]["reason"]
    assert reason == "internal error: ZeroDivisionError: integer division or modulo by zero"
    (line,) = (project / "out" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert "Traceback" in json.loads(line)["traceback"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((*ALIKE, "--methods", "magnitude,sf"), "--method 'sf' is unknown; did you mean 'sfp'?"),
        ((*ALIKE, "--methods", "sfp", "--epochs", "0"), "--method sfp needs training"),
        ((*ALIKE, "--methods", "sfp", "--rates", "50"), "found 50; for 50 % write 0.5"),
        ((*ALIKE, "--methods", "sfp", "--rates", "half"), "--rates 'half' is not a list of numbers"),
        ((*ALIKE, "--methods", "sfp", "--seeds", "0,-1"), "--seeds '0,-1' is not a list of whole numbers"),
        ((*ALIKE, "--methods", "sfp", "--set", "magnitude.a=1"), "'magnitude.a=1' is not of the form METHOD.NAME=VALUE"),
        ((*ALIKE, "--methods", "sfp", "--set", "sfp.nothing=1"), "sfp has no setting 'nothing'"),
        ((*NET, "--methods", "magnitude", "--dense"), "--dense trains the unpruned network"),
        ((*NET, "--methods", "magnitude", "--data", "nowhere", "--epochs", "0"), "nowhere"),
        (("compare", "none.pt", "--methods", "magnitude"), "none.pt"),
    ],
)
def test_what_would_stop_every_run_stops_at_once(project: Path, arguments: tuple[str, ...], words: str) -> None:
    result = compress(*arguments)
    assert (result.exit_code, result.stdout) == (2, "") and words in result.stderr
    assert not (project / "runs").exists()


# Other calls ----------------------------------------------------------------------------------------------------------


def test_a_dry_run_lists_the_runs(project: Path) -> None:
    result = compress(*ALIKE, "--methods", "sfp", "--rates", "0.5,0.3", "--seeds", "2", "--dry-run")
    assert result.stdout.splitlines() == ["dense-seed2: to do", "sfp-0.5-seed2: to do", "sfp-0.3-seed2: to do"]
    listed = compress(*ALIKE, "--methods", "sfp", "--rates", "0.5", "--no-dense", "--dry-run", "--json")
    assert json.loads(listed.stdout) == [{"run": "sfp-0.5-seed0", "epochs": 1, "state": "to do"}]
    assert not (project / "runs").exists()


def test_without_data_only_costs_are_compared(project: Path) -> None:
    result = compress(*NET, "--methods", "magnitude", "--rates", "0.5", "--input", "1x8x8")
    assert result.exit_code == 0, result.output
    assert "were not measured" in result.stdout
    names = {path.name for path in (project / "runs" / "net-compare").iterdir() if path.is_file()}
    assert names == {"comparison.json", "comparison.md", "comparison.html", "comparison.csv", "model.sha256"}


def test_the_library_compares_as_the_command_does(project: Path) -> None:
    found = compressor.compare(
        "net.pt", arch="net.py:Net", methods=["magnitude"], rates=[0.5], data="digits", out="out", seeds=[4]
    )
    (point,) = found.points
    assert (point.run, point.seed, found.failures) == ("magnitude-0.5-seed4", 4, [])
    report = read_report(Path("out/magnitude-0.5-seed4"))
    assert point.score == report.compressed.scores[0] and report.command == "compressor.compare(...)"
    assert [*point.stages] == [stage.name for stage in report.stages[1:-1]]
    with pytest.raises(UsageError, match="--methods is empty"):
        compressor.compare("net.pt", methods=[], rates=[0.5], out="out")
    with pytest.raises(UsageError, match="sfp is not in --methods"):
        compressor.compare("net.pt", methods=["magnitude"], rates=[0.5], out="out", settings={"sfp": {}})
