"""Two processes have the result of one, print once, and end together. They are started once, for all tests."""

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import several
import torch
from safetensors.torch import load_file
from small import compress, stages_of

from compressor.errors import UsageError
from compressor.report import read_report
from compressor.training import distributed


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run in one process."""
    folder = tmp_path_factory.mktemp("one")
    several.write_project(folder)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        result = compress(*several.RUN)
        assert result.exit_code == 0, result.output
        several.train(folder)
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The folder of a run in two processes, and its exit."""
    folder = tmp_path_factory.mktemp("two")
    several.write_project(folder)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*torchrun, several.__file__, folder], capture_output=True, text=True, timeout=240)
    (folder / "ended").touch()
    return folder, done


Two = tuple[Path, subprocess.CompletedProcess[str]]


def kept(folder: Path, name: str, process: int = 0):  # type: ignore[no-untyped-def]
    return torch.load(folder / f"{name}-{process}.pt")


def test_a_run_ends_as_that_of_one_process(one: Path, two: Two) -> None:
    alone, together = one / "run", two[0] / "run"
    assert together.is_dir(), two[1].stderr
    assert (together / "plan.json").read_bytes() == (alone / "plan.json").read_bytes()
    weights = load_file(together / "model.safetensors")
    for key, value in load_file(alone / "model.safetensors").items():
        torch.testing.assert_close(weights[key], value, rtol=1e-3, atol=1e-4)
    report, other = read_report(together), read_report(alone)
    assert two[1].stdout.strip() == (together / "report.json").read_text().strip()  # --json printed it, and once
    assert stages_of(report) == stages_of(other)
    assert report.device.startswith("2 processes, each on CPU")
    for epoch, its in zip(report.epochs, other.epochs, strict=True):
        assert epoch.losses == pytest.approx(its.losses, rel=1e-3)
        assert epoch.held_out and its.held_out and epoch.held_out.value == pytest.approx(its.held_out.value, abs=0.01)


@pytest.mark.parametrize("name", ["parts", "norms", "dropout", "shrunk", "resumed"])
def test_all_processes_end_with_the_same_state(two: Two, name: str) -> None:
    (state, history), (its, row) = (kept(two[0], name, process) for process in (0, 1))
    assert state.keys() == its.keys() and all(torch.equal(value, its[key]) for key, value in state.items())
    assert [losses for losses, _ in history] == [losses for losses, _ in row]


def test_without_batch_norm_the_weights_are_those_of_one_process(one: Path, two: Two) -> None:
    (state, history), (alone, row) = (kept(folder, "parts") for folder in (two[0], one))
    for key, value in alone.items():
        torch.testing.assert_close(state[key], value, rtol=1e-3, atol=1e-4)
    for (losses, top1), (its, other) in zip(history, row, strict=True):
        assert losses == pytest.approx(its, rel=1e-3)
        assert top1 == pytest.approx(other, abs=0.01)


@pytest.mark.parametrize("name", ["norms", "shrunk"])
def test_with_batch_norm_it_learns_as_much(one: Path, two: Two, name: str) -> None:
    """Batch-norm statistics are those of a part of a batch: epoch losses differ by up to 3 %, accuracies by up to 0.1."""
    (_, history), (_, row) = (kept(folder, name) for folder in (two[0], one))
    for (losses, _), (its, _) in zip(history, row, strict=True):
        assert losses == pytest.approx(its, rel=0.03)
    assert history[-1][1] == pytest.approx(row[-1][1], abs=0.1)


def test_a_training_that_was_taken_up_ends_as_one_that_was_not(two: Two) -> None:
    (whole, _), (resumed, _) = kept(two[0], "shrunk"), kept(two[0], "resumed")
    assert whole["gone"].any()
    assert whole.keys() == resumed.keys() and all(torch.equal(value, resumed[key]) for key, value in whole.items())
    assert [path.name for path in two[0].glob("state-*")] == ["state-0.pt"]


def test_a_failure_is_told_once_and_ends_all(two: Two) -> None:
    folder, done = two
    told = done.stderr.splitlines()
    assert [line for line in told if "error:" in line] == [
        "error: run exists and holds a finished run: --force replaces it, --out DIR chooses another directory."
    ]
    assert done.returncode != 0
    assert (folder / "ended").stat().st_mtime - (folder / "almost").stat().st_mtime < distributed.WAIT.total_seconds() / 100


def test_what_needs_one_process_is_refused_in_each(two: Two) -> None:
    told = {(two[0] / f"refused-{process}").read_text() for process in (0, 1)}
    assert told == {"--method l_mcl supports only one process, but 2 were started: run it without torchrun."}


@pytest.mark.parametrize(("n", "group", "count"), [(60, 1, 2), (7, 1, 3), (5, 1, 4), (1, 1, 2), (14, 2, 4), (6, 2, 4)])
def test_parts_of_a_batch_weigh_as_the_batch(n: int, group: int, count: int) -> None:
    images = np.random.default_rng(0).random(n)
    parts = [distributed.part(n, group, process, count) for process in range(count)]
    means = [weight / n * images[where].mean() for where, weight in parts]
    assert np.mean(means) == pytest.approx(images.mean())
    sizes = [len(images[where]) for where, _ in parts]
    assert min(sizes) >= min(2, n) and all(size % group == 0 for size in sizes)
    counted = [where for where, weight in parts if weight]
    assert (counted[0].start, counted[-1].stop) == (0, n)
    assert all(left.stop == right.start for left, right in pairwise(counted))


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As the second of two processes on this machine."""
    for name, value in {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "PATIENCE", 0.0)
    return monkeypatch


def test_other_commands_want_one_process(started: pytest.MonkeyPatch) -> None:
    result = compress("methods")
    assert result.exit_code == 2
    assert result.stderr == "error: `compress methods` runs in one process, but 2 were started: run it without torchrun.\n"


def test_without_accelerate_one_is_told_what_to_install(started: pytest.MonkeyPatch) -> None:
    started.setitem(sys.modules, "accelerate", None)
    with pytest.raises(UsageError, match=r"Accelerate, which is not installed: pip install 'compressor\[distributed\]'"):
        distributed.join("cpu")
    assert distributed.count() == 1


def test_a_device_is_one_for_each_process(started: pytest.MonkeyPatch) -> None:
    started.setattr(torch.cuda, "device_count", lambda: 2)
    assert [distributed.place(name) for name in ("auto", "cuda", "cpu")] == ["cuda:1", "cuda:1", "cpu"]
    with pytest.raises(UsageError, match="--device cuda:1 is one device, but 2 processes were started"):
        distributed.place("cuda:1")
    started.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UsageError, match="2 processes were started on a machine with 1 GPUs"):
        distributed.place("auto")
    started.setattr(torch.cuda, "device_count", lambda: 0)
    assert distributed.place("auto") == "cpu"
