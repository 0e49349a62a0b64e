"""A run that is interrupted, in whatever way, tells how to go on, and ends with the very weights of one that was not."""

import os
import signal
import time
from multiprocessing.context import SpawnProcess
from pathlib import Path

import pytest
from processes import start
from small import TRAINED, assert_same_result, interrupt_at, prune, write_project

from compressor.method import Method
from compressor.train import Training

SFP = ("--method", "sfp", "--data", "digits", "--rate", "0.4", "--epochs", "3", "--ema-decay", "0.9", "--residual", "scatter")

GHFP = ("--method", "ghfp", "--data", "digits", "--rate", "0.5", "--epochs", "3")  # by the second epoch it has shrunk


@pytest.mark.parametrize(("method", "options"), [("magnitude", TRAINED), ("sfp", SFP), ("ghfp", GHFP)])
def test_a_run_that_was_interrupted_ends_as_if_it_was_not(
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
    assert result.stderr == "interrupted: --resume goes on after the last finished epoch\n"
    assert [path.name for path in Path("a").iterdir()] == ["state"]

    result = prune(*options, "--out", "a", "--resume")
    assert result.exit_code == 0, result.output
    assert "resumed after epoch 1 of 3\n" in result.stdout
    assert_same_result(Path("a"), whole)


def test_a_run_that_was_interrupted_after_its_training_does_not_train_again(
    project: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("compressor.run.check_onnx", interrupt_at(1, print))
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
    assert result.stderr.startswith("error: --resume: a was begun with other settings: lr was 0.1 and is 0.2.\n")
    result = prune(*TRAINED, "--out", "a")
    assert result.exit_code == 2 and "holds an unfinished run: --resume goes on with it" in result.stderr
    write_project(project)
    (project / "net.pt").write_bytes((project / "net.pt").read_bytes() + b" ")
    result = prune(*TRAINED, "--out", "a", "--resume")
    assert result.exit_code == 2 and "the model's file is not the one this run was begun with" in result.stderr
    assert (project / "a" / "state" / "training.pt").exists()


# Processes ------------------------------------------------------------------------------------------------------------

SLOW = ("--data", "digits", "--rate", "0.5", "--epochs", "16", "--batch-size", "16", "--lr", "0.05", "--ema-decay", "0.9")
PRUNE = ("prune", "net.pt", "--arch", "net.py:Net", *SLOW)


def wait_for_epochs(process: SpawnProcess, log: Path, count: int) -> None:
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
            assert told == "interrupted: --resume goes on after the last finished epoch\n"
    last = start(project, *PRUNE, "--out", "a", "--resume")
    wait_for_epochs(last, log, 5)
    result = prune(*SLOW, "--out", "a", "--resume")  # two at a time
    assert result.exit_code == 2 and "a is being written by another run" in result.stderr
    last.join(60)
    assert last.exitcode == 0
    whole = prune(*SLOW, "--out", "whole", "-q")
    assert whole.exit_code == 0, whole.output
    assert_same_result(project / "a", project / "whole")
