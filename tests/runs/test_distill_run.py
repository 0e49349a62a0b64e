"""Whole runs of `compress distill`: the student, the report, loading the result, and resuming."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from small import answers, assert_same_result, compress, interrupt_at, same, stages_of

import compressor
from compressor.demo import DigitsNet
from compressor.network.cost import count_macs
from compressor.report import Report, read_report
from compressor.training.recipe import Recipe
from compressor.training.train import Training

SHAPE = (1, 8, 8)
DIGITS, WIDTH = "compressor.demo:DigitsNet", {"width": 16}
TEACHER = ("--arch", DIGITS, "--arch-arg", "width=16", "--data", "digits", "-q")
QUICK = Recipe(epochs=2, lr=0.01)


def distill(teacher: Path | None, out: Path, **options: Any) -> Report:
    """Of the tests' trained network, for two epochs."""
    own: dict[str, Any] = {"arch": DIGITS, "arch_args": WIDTH} if teacher else {}
    return compressor.distill(str(teacher) if teacher else None, data="digits", out=out, recipe=QUICK, **own, **options)


# Students -------------------------------------------------------------------------------------------------------------


def test_without_a_student_the_teacher_is_pruned(trained: Path, tmp_path: Path) -> None:
    report = distill(trained, tmp_path / "a", rate=0.4)
    assert stages_of(report) == ["original", "cut", "recalibrated", "repaired", "fine-tuned", "ONNX"]
    assert report.target.asked == 0.4 and report.target.reached == pytest.approx(0.4, abs=0.03)
    assert count_macs(compressor.load(tmp_path / "a"), SHAPE) == report.compressed.macs
    assert set(report.epochs[0].losses) == {"cross_entropy", "kd"}
    assert report.compressed.scores and report.compressed.scores[0].value > 0.9
    assert (report.method, report.settings["teacher"], report.settings["rate"]) == ("kd", str(trained), 0.4)
    assert report.teaching is not None and report.teaching.ms > 0 and 0 < report.teaching.share < 1
    assert answers(tmp_path / "a").shape == (5, 10)


def test_a_student_of_another_architecture_has_random_weights_and_a_plan_of_its_own(trained: Path, tmp_path: Path) -> None:
    report = distill(trained, tmp_path / "a", student_arch=DIGITS, student_arch_args={"width": 8})
    assert stages_of(report) == ["original", "student", "trained", "ONNX"]
    assert report.baseline.macs == count_macs(DigitsNet(16), SHAPE)
    assert report.compressed.macs == count_macs(DigitsNet(8), SHAPE)
    assert load_file(tmp_path / "a/model.safetensors").keys() == DigitsNet(8).state_dict().keys(), "nothing else"
    assert json.loads((tmp_path / "a/plan.json").read_text())["arch_args"] == {"width": 8}
    assert report.change.latency, "another network takes another time"
    assert answers(tmp_path / "a").shape == (5, 10)


def test_the_original_is_distilled_into_the_pruned_network(trained: Path, tmp_path: Path) -> None:
    result = compress("prune", trained, *TEACHER, "--rate", "0.6", "--epochs", "0", "--no-repair", "--out", tmp_path / "cut")
    assert result.exit_code == 0, result.output
    report = distill(trained, tmp_path / "a", student=str(tmp_path / "cut"), method="dist")
    cut = read_report(tmp_path / "cut")
    assert (report.baseline.macs, report.compressed.macs) == (cut.baseline.macs, cut.compressed.macs)
    student = next(stage for stage in report.stages if stage.name == "student")
    assert report.compressed.scores and student.scores and cut.compressed.scores
    assert student.scores[0].value == cut.compressed.scores[0].value
    assert report.compressed.scores[0].value > student.scores[0].value
    assert answers(tmp_path / "a").shape == (5, 10)


def test_networks_that_teach_each_other_need_no_teacher(trained: Path, tmp_path: Path) -> None:
    options = ("--model", trained, "--student-arch", DIGITS, "--student-arch-arg", "width=16", "--data", "digits", "-q")
    result = compress("distill", *options, "--method", "mcl-okd", "--epochs", "1", "--lr", "0.01", "--out", tmp_path / "a")
    assert result.exit_code == 0, result.output
    report = read_report(tmp_path / "a")
    assert stages_of(report) == ["original", "trained", "ONNX"] and report.teaching is None
    assert report.change.macs == report.change.params == 1 and report.method == "mcl_okd"
    assert (report.model, report.settings.get("teacher")) == (str(trained), None)
    fresh = compress("distill", *options, "--method", "dml", "--epochs", "1", "--fresh", "--out", tmp_path / "b")
    assert fresh.exit_code == 0 and stages_of(read_report(tmp_path / "b")) == ["original", "student", "trained", "ONNX"]


# The teacher ----------------------------------------------------------------------------------------------------------


def test_the_prepared_teacher_is_saved_for_later_runs(trained: Path, tmp_path: Path) -> None:
    teacher = tmp_path / "t.pt"
    teacher.write_bytes(trained.read_bytes())
    first = distill(teacher, tmp_path / "a", method="hsakd")
    (kept,) = tmp_path.glob("t.pt.hsakd-*.safetensors")
    made = kept.read_bytes()
    again = distill(teacher, tmp_path / "b", method="hsakd")
    assert [epoch.losses for epoch in again.epochs] == [epoch.losses for epoch in first.epochs]
    log = [json.loads(line) for line in (tmp_path / "b/log.jsonl").read_text().splitlines()]
    assert [event["file"] for event in log if event["event"] == "taken up"] == [str(kept)]
    distill(teacher, tmp_path / "c", method="hsakd", settings={"joint": True})
    assert len(list(tmp_path.glob("t.pt.hsakd-*.safetensors"))) == 2 and kept.read_bytes() == made
    kept.write_bytes(made[:100])
    with pytest.raises(compressor.CompressError, match=r"is damaged .* Delete it"):
        distill(teacher, tmp_path / "d", method="hsakd")


def test_without_augmentation_the_teacher_sees_each_image_once(trained: Path, tmp_path: Path) -> None:
    result = compress("distill", "--teacher", trained, *TEACHER, "--epochs", "3", "--no-augment", "--out", tmp_path / "a")
    assert result.exit_code == 0, result.output
    report = read_report(tmp_path / "a")
    assert report.teaching is not None and report.teaching.kept and report.settings["augment"] is False


# Interrupted ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [11 + 5, 11 + 22 + 5])  # 11 steps an epoch: in the teacher's, in the student's second
def test_a_resumed_run_ends_like_an_uninterrupted_one(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    teachers = []
    for name in ("one", "two"):  # each with a directory of its own for the prepared teacher
        (tmp_path / name).mkdir()
        teachers.append(tmp_path / name / "t.pt")
        teachers[-1].write_bytes(trained.read_bytes())
    options = (*TEACHER, "--method", "hsakd", "--epochs", "4", "--rate", "0.3", "--no-repair")
    with monkeypatch.context() as patched:
        patched.chdir(tmp_path / "one")
        assert compress("distill", "--teacher", "t.pt", *options, "--out", "run").exit_code == 0
        patched.chdir(tmp_path / "two")
        with monkeypatch.context() as interrupted:
            interrupted.setattr(Training, "_step", interrupt_at(step, Training._step))
            assert compress("distill", "--teacher", "t.pt", *options, "--out", "run").exit_code == 130
        result = compress("distill", "--teacher", "t.pt", *options, "--out", "run", "--resume")
        assert result.exit_code == 0, result.output
    assert_same_result(tmp_path / "one/run", tmp_path / "two/run")
    left, right = (load_file(next(teacher.parent.glob("*.safetensors"))) for teacher in teachers)
    assert same(left, right)


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--method", "dml"), "--method dml trains networks that teach each other: omit --teacher, and give --model"),
        (("--method", "magnitude"), "--method magnitude belongs to `compress prune`"),
        (("--method", "hsadk"), "did you mean 'hsakd'?"),
        (("--epochs", "0"), "--method kd needs training: give --data and --epochs of at least 1."),
        (("--student", "t.pt", "--rate", "0.3"), "are for a student pruned from the teacher: omit them, or --student"),
        (("--rate", "0.3", "--target", "params=50%"), "--rate and --target were both given"),
        (("--fresh",), "--fresh initializes a given student at random: give it"),
        (("--student-arch-arg", "width=8"), "--student-arch-arg is an argument of the code that --student-arch names"),
        (("--set", "kd=-1"), "--set kd=-1.0: the weight of a loss term must be a number, 0 or more"),
        (("--set", "kd=0", "--set", "cross_entropy=0"), "All loss terms have weight 0"),
        (("--set", "temperature=0"), "--set temperature=0.0: give a number above 0"),
        (("--taps", "stage9"), "--taps stage9: no such module"),
        (("--taps", "stage2.conv1"), "--taps stage2.conv1: another path bypasses this module"),
        (("--student-arch", "torchvision:resnet18"), "the student: The network does not run on images of 1x8x8"),
    ],
)
def test_wrong_options_are_reported_in_a_line_or_two(
    trained: Path, tmp_path: Path, options: tuple[str, ...], told: str
) -> None:
    result = compress("distill", "--teacher", trained, *TEACHER, "--out", tmp_path / "a", *options)
    assert result.exit_code == 2 and told in result.stderr, result.output
    assert len(result.stderr.splitlines()) <= 2 and not (tmp_path / "a").exists()


def test_a_student_for_other_classes_is_refused_with_what_to_do(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\n\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 7))\n"
    )
    options = ("--teacher", trained, *TEACHER, "--student-arch", f"{tmp_path}/net.py:net", "--out", tmp_path / "a")
    result = compress("distill", *options)
    assert result.exit_code == 2
    assert "has 7 outputs, but the teacher 10: give a student for 10 classes" in result.stderr


def test_neither_teacher_nor_student_is_an_error(tmp_path: Path) -> None:
    result = compress("distill", "--data", "digits", "--out", tmp_path / "a")
    assert result.exit_code == 2 and "There is no teacher and no student" in result.stderr
    result = compress("distill", "--model", "s.pt", "--data", "digits", "--out", tmp_path / "a")
    assert result.exit_code == 2 and "--method kd needs a teacher: give one with --teacher." in result.stderr
