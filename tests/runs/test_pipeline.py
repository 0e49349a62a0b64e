"""Pipelines: what each step starts from, which results are kept, and the result of the whole."""

import json
import shutil
from contextlib import chdir
from pathlib import Path

import pytest
import torch
from small import answers, assert_same_result, compress, interrupt_at, make_net, write_project

from compressor.cli.config_file import Configuration
from compressor.errors import UsageError
from compressor.report import Layer, read_report
from compressor.runs import pipeline
from compressor.runs.pipeline import Pipeline, Step
from compressor.runs.run_directory import RunDirectory
from compressor.training.train import Training

ABOVE = """\
model = "net.pt"
arch = "net.py:Net"
data = "digits"
epochs = 2
"""
CUT = '[[steps]]\ndo = "prune"\nrate = 0.3\n'
FACTORED = '[[steps]]\ndo = "lowrank"\nrate = 0.1\n'
TAUGHT = '[[steps]]\ndo = "distill"\n'
WRITTEN = '[[steps]]\ndo = "export"\nout = "small.onnx"\n'
CHECKED = '[[steps]]\ndo = "check"\nbudget = ["macs<=70%", "size<=1MB"]\n'


def configured(steps: str, above: str = ABOVE) -> None:
    Path("compress.toml").write_text(above + steps)


def steps_of(text: str, out: str = "out") -> list[Step]:
    found = Configuration(Path("compress.toml"), text)
    return Pipeline([(s.command, s.settings, s.own) for s in found.steps], Path(out), found.text, found.model).steps


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which a pipeline of all kinds of steps was run into `out`. Look, do not touch."""
    folder = tmp_path_factory.mktemp("whole")
    write_project(folder)
    with chdir(folder):
        configured(CUT + FACTORED + TAUGHT + WRITTEN + CHECKED)
        result = compress("run", "--out", "out")
    assert result.exit_code == 0, result.output
    (folder / "printed.txt").write_text(result.stdout)
    return folder


@pytest.fixture
def copied(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as working directory."""
    shutil.copytree(whole, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


# What each step starts from -------------------------------------------------------------------------------------------


def test_a_step_starts_from_the_result_of_the_last_one() -> None:
    cut, factored, taught, written, checked = steps_of(ABOVE + CUT + FACTORED + TAUGHT + WRITTEN + CHECKED)
    assert cut.settings["model"] == "net.pt" and factored.settings["model"] == "out/1-prune"
    assert (taught.settings["teacher_"], taught.settings["student"]) == ("net.pt", "out/2-lowrank")
    assert written.settings == {"model": "out", "out": "small.onnx", "force": "true"}
    assert checked.settings["report"] == "out"


def test_options_for_reading_the_original_are_dropped_after_the_first_step() -> None:
    first, second = steps_of(ABOVE + 'key = "ema"\n' + CUT + FACTORED)
    assert first.settings["key"] == "ema" and "key" not in second.settings
    assert second.settings["arch"] == "net.py:Net"


def test_a_step_may_name_another_model_and_a_teacher_and_networks_that_teach_each_other_need_none() -> None:
    _, second = steps_of(ABOVE + CUT + '[[steps]]\ndo = "lowrank"\nmodel = "other.pt"\n')
    assert second.settings["model"] == "other.pt"
    _, taught = steps_of(ABOVE + CUT + '[[steps]]\ndo = "distill"\nteacher = "t.pt"\n')
    assert taught.settings["teacher_"] == "t.pt"
    (alone,) = steps_of(ABOVE + '[[steps]]\ndo = "distill"\nmethod = "dml"\n')
    assert (alone.settings["student"], alone.settings["student_arch"]) == ("net.pt", "net.py:Net")
    assert "teacher_" not in alone.settings and "arch" not in alone.settings


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (ABOVE, "needs steps: write [[steps]]"),
        (ABOVE + CHECKED, "needs a step that compresses the network"),
        (ABOVE + CHECKED + CUT, "Step 1, check, has no run before it: put it after one of prune"),
        (CUT, 'Step 1, prune, has no model to start from: write model = "model.pt"'),
        (ABOVE + CUT + '[[steps]]\ndo = "export"', "Step 2, export, has no output file"),
    ],
)
def test_steps_that_cannot_follow_each_other_are_refused(text: str, told: str) -> None:
    with pytest.raises(UsageError) as error:
        steps_of(text)
    assert told in str(error.value)


# The result -----------------------------------------------------------------------------------------------------------


def test_the_report_of_the_whole_is_from_the_original_to_the_last_step(whole: Path) -> None:
    report, first = read_report(whole / "out"), read_report(whole / "out" / "1-prune")
    last = read_report(whole / "out" / "3-distill")
    assert (report.model, report.method) == ("net.pt", "prune magnitude + lowrank svd + distill kd")
    assert (report.baseline.macs, report.baseline.scores) == (first.baseline.macs, first.baseline.scores)
    assert report.baseline.size_bytes == first.baseline.size_bytes
    assert (report.compressed.macs, report.compressed.scores) == (last.compressed.macs, last.compressed.scores)
    assert report.change.macs == pytest.approx(0.7 * 0.9, abs=0.03)
    assert [row.name for row in report.stages] == ["original", "prune magnitude", "lowrank svd", "distill kd"]
    assert all(row.size_bytes and row.latency and row.scores for row in report.stages)
    assert [row.epoch for row in report.epochs] == [1, 2, 3, 4, 5, 6]
    assert report.fidelity is not None and report.fidelity.n == 359
    assert report.settings["1-prune.rate"] == 0.3
    assert not any("a run of" in warning for warning in report.warnings)


def test_the_network_of_the_whole_is_that_of_the_last_step(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(whole)
    files = [whole / "out" / "model.onnx", whole / "out" / "3-distill" / "model.onnx", whole / "small.onnx"]
    assert len({file.read_bytes() for file in files}) == 1
    assert answers(whole / "out").equal(answers(whole / "out" / "3-distill"))


def test_layers_are_reported_from_the_original_to_the_end(whole: Path) -> None:
    first = {row.name: row for row in read_report(whole / "out" / "1-prune").layers}
    after = {row.name: row for row in read_report(whole / "out").layers}
    assert after.keys() == first.keys()
    assert all(after[name].shape == first[name].shape for name in first)
    report = read_report(whole / "out")
    assert sum(row.macs_after for row in report.layers) == report.compressed.macs
    assert any(row.factors for row in report.layers)


def test_layers_that_replaced_one_count_as_that_layer() -> None:
    from compressor.runs.pipeline_report import _after

    layer = Layer("conv", "Conv2d", [8, 4, 3, 3], [8, 4, 3, 3], 100, 100, 50, 50)
    heirs = [
        Layer("conv.0", "Conv2d", [2, 4, 3, 3], [1, 4, 3, 3], 40, 20, 9, 7),
        Layer("conv.1", "Conv2d", [8, 2, 1, 1], [8, 1, 1, 1], 30, 15, 8, 6),
    ]
    found = _after(layer, heirs)
    assert (found.shape, found.macs, found.macs_after, found.params_after) == ([8, 4, 3, 3], 100, 35, 13)
    assert found.factors == [[1, 4, 3, 3], [8, 1, 1, 1]]


def test_each_step_and_the_result_are_printed(whole: Path) -> None:
    printed = (whole / "printed.txt").read_text()
    steps = ("1-prune", "2-lowrank", "3-distill", "4-export", "5-check")
    for words in (*steps, "a copy of out/model.onnx", "PASS", "Results are in out:"):
        assert words in printed


def test_the_written_settings_repeat_the_pipeline(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(whole)
    result = compress("run", "out/config.toml", "--out", "out", "--dry-run", "--json")
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert [(row["step"], row["state"]) for row in plan[:3]] == [
        ("1-prune", "done"),
        ("2-lowrank", "done"),
        ("3-distill", "done"),
    ]
    single = compress("run", "out/1-prune/config.toml", "--out", "again", "--dry-run")
    assert single.exit_code == 0, single.output
    assert "1-prune" in single.stdout and not (whole / "again").exists()


# What is kept ---------------------------------------------------------------------------------------------------------


def times(folder: Path) -> dict[str, int]:
    """When each file of a pipeline was written."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_finished_steps_are_not_rerun(copied: Path) -> None:
    for file in copied.rglob("*"):
        if file.is_file():
            file.touch()  # only contents matter, not dates
    Path("out").rename("moved")  # nor paths
    before = times(copied)
    result = compress("run", "--out", "moved")
    assert result.exit_code == 0, result.output
    assert times(copied) == before
    assert result.stdout.count(": up to date") == 4 and "PASS" in result.stdout


def test_imported_code_is_part_of_the_hash(copied: Path) -> None:
    Path("net.py").write_text("import parts\n" + Path("net.py").read_text())
    contents = pipeline._contents("net.py:Net")
    Path("parts.py").write_text("width = 8\n")
    assert pipeline._contents("net.py:Net") != contents


def test_only_changed_steps_and_those_after_them_are_rerun(copied: Path) -> None:
    before = times(copied / "out")
    configured(CUT + FACTORED + TAUGHT + "lr = 0.001\n" + CHECKED.replace("70%", "10%"))
    result = compress("run", "--out", "out")
    assert result.exit_code == 1, result.output
    assert "MISSED" in result.stdout or "FAIL" in result.stdout
    changed = {name.split("/")[0] for name, when in times(copied / "out").items() if before.get(name) != when}
    assert "3-distill" in changed and not changed & {"1-prune", "2-lowrank"}


def test_another_file_of_weights_is_another_model(copied: Path) -> None:
    torch.manual_seed(1)
    torch.save(make_net().state_dict(), "net.pt")
    plan = json.loads(compress("run", "--out", "out", "--dry-run", "--json").stdout)
    assert [row["state"] for row in plan] == ["to do", "done", "to do", "done", "to do"]  # the teacher of the third, too


def test_an_interrupted_step_is_resumed(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree("out", "expected")
    shutil.rmtree("out/2-lowrank")
    with monkeypatch.context() as patch:
        patch.setattr(Training, "_epoch", interrupt_at(2, Training._epoch))
        result = compress("run", "--out", "out")
    assert result.exit_code == 130, result.output
    assert Path("out/2-lowrank/state/training.pt").exists()
    plan = json.loads(compress("run", "--out", "out", "--dry-run", "--json").stdout)
    assert plan[1]["state"] == "interrupted"
    result = compress("run", "--out", "out")
    assert result.exit_code == 0, result.output
    assert "resumed after epoch 1 of 2" in result.stdout
    assert_same_result(Path("out/2-lowrank"), Path("expected/2-lowrank"))


def test_two_at_a_time_do_not_share_a_step(copied: Path) -> None:
    place = RunDirectory(Path("out/2-lowrank"), "")
    configured(CUT + FACTORED.replace("0.1", "0.2"))
    with place.claimed(force=True, resume=False):
        result = compress("run", "--out", "out")
        assert result.exit_code == 2 and "2-lowrank is being written by another run" in result.stderr
        assert place.new.exists()


def test_a_step_that_fails_ends_the_run_with_its_status(copied: Path) -> None:
    configured(CUT + FACTORED.replace("0.1", "0.9999") + CHECKED)
    result = compress("run", "--out", "out")
    assert result.exit_code == 3, result.output
    assert "5-check" not in result.stdout


def test_a_damaged_record_is_an_error(copied: Path) -> None:
    Path("out", pipeline.RECORD).write_text("{")
    result = compress("run", "--out", "out")
    assert result.exit_code == 2 and "out/pipeline.json is damaged: delete it" in result.stderr
    result = compress("run")
    assert "Traceback" not in result.stderr
