"""A run that is interrupted, in whatever way, can be resumed, and ends with the same weights as an uninterrupted one."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, tzinfo
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
import torch
from PIL import Image
from processes import start
from small import NET, TRAINED, assert_same_result, interrupt_at, make_net, prune
from torch import nn
from typer.testing import Result

from compressor.report import read_report
from compressor.training.method import Method, Progress
from compressor.training.train import Training

SFP = ("--method", "sfp", "--data", "digits", "--rate", "0.4", "--epochs", "3", "--ema-decay", "0.9", "--residual", "scatter")

GHFP = ("--method", "ghfp", "--data", "digits", "--rate", "0.5", "--epochs", "3")  # by the second epoch it has shrunk


@pytest.mark.parametrize(("method", "options"), [("magnitude", TRAINED), ("sfp", SFP), ("ghfp", GHFP)])
def test_a_resumed_run_ends_like_an_uninterrupted_one(
    project: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, method: str, options: tuple[str, ...]
) -> None:
    whole = finished / "half"
    if method != "magnitude":
        whole = project / "whole"
        assert prune(*options, "--out", whole, "-q").exit_code == 0
    with monkeypatch.context() as patched:
        patched.setattr(Training, "_step", interrupt_at(11 + 5, Training._step))  # in the second epoch
        result = prune(*options, "--out", "a")
    assert result.exit_code == 130
    assert result.stderr == "interrupted: --resume continues after the last finished epoch\n"
    assert [path.name for path in Path("a").iterdir()] == ["state"]

    result = prune(*options, "--out", "a", "--resume")
    assert result.exit_code == 0, result.output
    assert "resumed after epoch 1 of 3\n" in result.stdout
    assert_same_result(Path("a"), whole)


def test_a_run_that_was_interrupted_after_its_training_does_not_train_again(
    project: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("compressor.onnx.export.check_onnx", interrupt_at(1, print))
        assert prune(*TRAINED, "--out", "a").exit_code == 130
    asked = []
    with monkeypatch.context() as patched:
        patched.setattr(Method, "loss", lambda *_: asked.append("a batch"))
        result = prune(*TRAINED, "--out", "a", "--resume", "-q")
    assert (result.exit_code, result.output, asked) == (0, "", [])
    assert_same_result(Path("a"), finished / "half")


def test_resuming_needs_the_same_settings_and_the_same_model(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Method, "end_epoch", interrupt_at(2, Method.end_epoch))
        assert prune(*TRAINED, "--out", "a").exit_code == 130
    result = prune(*TRAINED, "--lr", "0.2", "--out", "a", "--resume")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: --resume: a was started with other settings: lr was 0.1 and is 0.2.\n")
    result = prune(*TRAINED, "--out", "a")
    assert result.exit_code == 2 and "holds an unfinished run: --resume continues it" in result.stderr
    torch.save(make_net().state_dict(), project / "net.pt")
    result = prune(*TRAINED, "--out", "a", "--resume")
    assert result.exit_code == 2 and "the model's file is not the one this run was started with" in result.stderr
    assert (project / "a" / "state" / "training.pt").exists()


# Faults of the machine, in the middle of a training -------------------------------------------------------------------


def at_the_end_of_epoch(monkeypatch: pytest.MonkeyPatch, number: int, fault: Callable[[], object]) -> None:
    """Something happens once, before the state of an epoch is saved."""
    real, ends = Method.end_epoch, []

    def end_epoch(method: Method, progress: Progress) -> None:
        ends.append(progress)
        if len(ends) == number:
            fault()
        real(method, progress)

    monkeypatch.setattr(Method, "end_epoch", end_epoch)


def assert_ends_with(result: Result, *words: str) -> None:
    """One error of one or two lines, which the user can fix."""
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") <= 2
    assert all(word in result.stderr for word in words), result.stderr


def test_a_disk_that_fills_up_costs_only_the_epoch(
    project: Path, finished: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not the disk of temporary files, which makes no difference."""
    out, ballast = small_disk / "half", small_disk / "ballast"

    def fill() -> None:
        with suppress(OSError), ballast.open("wb") as file:
            while True:
                file.write(bytes(1000))
                file.flush()

    with monkeypatch.context() as patched:
        at_the_end_of_epoch(patched, 2, fill)
        assert_ends_with(prune(*TRAINED, "--out", out), "could not be written: No space left on device.\nFree disk space")
    assert {path.name for path in out.rglob("*")} == {"state", "lock", "config.toml", "log.jsonl", "stages.json", "training.pt"}
    ballast.unlink()
    result = prune(*TRAINED, "--out", out, "--resume")
    assert result.exit_code == 0 and "resumed after epoch 1 of 3\n" in result.stdout, result.output
    assert_same_result(out, finished / "half")


def test_a_directory_that_is_removed_ends_its_run(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_the_end_of_epoch(monkeypatch, 2, lambda: shutil.rmtree("a"))
    assert_ends_with(prune(*TRAINED, "--out", "a"), "a was removed or renamed while it was being written. Start the run again.")
    assert not Path("a").exists()


def test_a_clock_that_is_set_again_and_again_changes_only_what_it_says(
    project: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime.fromtimestamp(time.time(), tz)

    chance = random.Random(0)
    monkeypatch.setattr(time, "time", lambda: chance.uniform(0, 4e9))  # from 1970 to 2096
    for module in ("run", "journal"):
        monkeypatch.setattr(f"compressor.runs.{module}.datetime", Clock)
    with monkeypatch.context() as patched:
        patched.setattr(Training, "_step", interrupt_at(11 + 5, Training._step))
        assert prune(*TRAINED, "--out", "a").exit_code == 130
    assert prune(*TRAINED, "--out", "a", "--resume").exit_code == 0
    assert_same_result(Path("a"), finished / "half")
    report = read_report(Path("a"))
    assert all(row.seconds >= 0 for row in (report, *report.stages, *report.epochs))


# Data loader processes ------------------------------------------------------------------------------------------------

DATA = """
from compressor import open_data


def images():
    return open_data("photos", memory_limit=0, workers=1)
"""
READ = ("--data", "data.py:images", "--rate", "0.5", "--epochs", "2", "--batch-size", "20", "--no-repair")


@pytest.fixture
def photos(project: Path) -> Path:
    """A folder of images of two classes, a network for them, and a data function with a data loader process."""
    for part, count in (("train", 60), ("test", 4)):
        for label, name in enumerate("ab"):
            (project / "photos" / part / name).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (8, 8), (number * 4, 99 * label, 0)).save(project / "photos" / part / name / f"{number}.png")
    (project / "data.py").write_text(DATA)
    (project / "net.py").write_text(NET.replace("Conv2d(1,", "Conv2d(3,").replace("num_classes=10", "num_classes=2"))
    names: dict[str, type[nn.Module]] = {}
    exec((project / "net.py").read_text(), names)
    torch.save(names["Net"]().state_dict(), project / "net.pt")
    return project / "photos"


def test_an_image_that_vanishes_costs_only_the_epoch(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        at_the_end_of_epoch(patched, 2, lambda: (photos / "train" / "b").rename(photos / "elsewhere"))
        assert_ends_with(prune(*READ, "--out", "a"), ".png was deleted after its folder was listed")
    assert (photos.parent / "a" / "state" / "training.pt").exists()
    (photos / "elsewhere").rename(photos / "train" / "b")
    result = prune(*READ, "--out", "a", "--resume")
    assert result.exit_code == 0 and "resumed after epoch 1 of 2\n" in result.stdout, result.output


# Processes ------------------------------------------------------------------------------------------------------------

SLOW = ("--data", "digits", "--rate", "0.5", "--epochs", "16", "--batch-size", "16", "--lr", "0.05", "--ema-decay", "0.9")
PRUNE = ("prune", "net.pt", "--arch", "net.py:Net", *SLOW)


def wait_for_epochs(process: ForkServerProcess, log: Path, count: int) -> None:
    """Until `count` epochs of the run are in its log."""
    for _ in range(18000):
        if log.exists() and log.read_text(encoding="utf-8").count('"event": "epoch"') >= count:
            return
        assert process.is_alive(), (log.parents[2] / "stderr").read_text(encoding="utf-8")
        time.sleep(0.01)
    pytest.fail("nothing happened for three minutes")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no such signals")
def test_processes_that_are_stopped_and_killed_end_as_one_that_was_not(project: Path) -> None:
    log = project / "a" / "state" / "log.jsonl"
    for epochs, number, status in ((1, signal.SIGINT, 130), (2, signal.SIGTERM, 130), (4, signal.SIGKILL, -signal.SIGKILL)):
        process = start(project, *PRUNE, "--out", "a", "--resume")
        wait_for_epochs(process, log, epochs)
        assert process.pid is not None
        os.kill(process.pid, number)
        process.join(60)
        told = (project / "stderr").read_text(encoding="utf-8")
        assert process.exitcode == status, told
        if status == 130:
            assert told == "interrupted: --resume continues after the last finished epoch\n"
    last = start(project, *PRUNE, "--out", "a", "--resume")
    wait_for_epochs(last, log, 5)
    result = prune(*SLOW, "--out", "a", "--resume")  # two at a time
    assert result.exit_code == 2 and "a is being written by another run" in result.stderr
    last.join(60)
    assert last.exitcode == 0
    whole = prune(*SLOW, "--out", "whole", "-q")
    assert whole.exit_code == 0, whole.output
    assert_same_result(project / "a", project / "whole")


def test_ctrl_c_ends_the_data_loader_processes_too(photos: Path) -> None:
    """The terminal sends it to all of them."""
    folder = photos.parent
    process = start(folder, "prune", "net.pt", "--arch", "net.py:Net", *READ, "--epochs", "1000", "--out", "a")
    wait_for_epochs(process, folder / "a" / "state" / "log.jsonl", 1)
    assert process.pid is not None
    os.killpg(process.pid, signal.SIGINT)
    process.join(60)
    assert process.exitcode == 130
    assert (folder / "stderr").read_text(encoding="utf-8") == "interrupted: --resume continues after the last finished epoch\n"
    for _ in range(1000):  # they may end a little later
        time.sleep(0.01)
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
    pytest.fail("some are left")
