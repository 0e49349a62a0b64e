"""A run's directory: no result is lost or incomplete, and two runs never share a directory."""

import multiprocessing
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from processes import count_steps, kill

from compressor.errors import OutputError, UsageError
from compressor.files import write_text
from compressor.runs.run_directory import RESULTS, RunDirectory

CONFIG = "lr = 0.1\n"


def begin_run(out: Path, *, trained: bool = False, config: str = CONFIG, force: bool = False) -> None:
    """A run that is interrupted, before or after its first epoch."""
    place = RunDirectory(out, config)
    with pytest.raises(KeyboardInterrupt), place.claimed(force=force, resume=False):
        place.log.write_text("{}\n")
        (place.new / "original.onnx").write_text("unfinished")
        if trained:
            place.training.write_text("state")
        raise KeyboardInterrupt


def fill(place: RunDirectory, mark: str) -> None:
    """What a run writes before it publishes."""
    place.log.write_text("{}\n")
    place.stages.write_text("{}")
    for name in ("original.onnx", "model.onnx", "model.safetensors", "plan.json", "report.md", "report.html", "report.json"):
        (place.new / name).write_text(mark)


def finish(out: Path, *, mark: str = "first", config: str = CONFIG, force: bool = False, resume: bool = False) -> None:
    """A whole run."""
    place = RunDirectory(out, config)
    with place.claimed(force=force, resume=resume):
        if not place.is_unpublished:
            place.training.write_text("state")
            fill(place, mark)
        place.publish()


def read(out: Path) -> dict[str, str]:
    """The results in a directory."""
    return {name: (out / name).read_text() for name in RESULTS if (out / name).exists()}


def names(folder: Path) -> set[str]:
    """All files and folders except the lock of an unfinished run."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")} - {"state/lock"}


def test_a_finished_run_leaves_only_its_results(tmp_path: Path) -> None:
    finish(tmp_path / "runs" / "a")
    assert names(tmp_path / "runs" / "a") == set(RESULTS)
    assert (tmp_path / "runs" / "a" / "config.toml").read_text() == CONFIG


def test_a_run_that_fails_early_leaves_nothing(tmp_path: Path) -> None:
    begin_run(tmp_path / "a")
    assert names(tmp_path) == set()


def test_a_run_that_fails_early_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "notes.txt").write_text("mine")
    begin_run(tmp_path / "a", force=True)
    assert names(tmp_path / "a") == {"notes.txt"}


def test_an_interrupted_training_leaves_what_resuming_needs(tmp_path: Path) -> None:
    begin_run(tmp_path / "a", trained=True)
    kept = {"state", "state/config.toml", "state/log.jsonl", "state/training.pt"}
    assert names(tmp_path / "a") == kept


def test_a_finished_run_is_not_overwritten(tmp_path: Path) -> None:
    finish(tmp_path / "a")
    with pytest.raises(OutputError, match="holds a finished run: --force replaces it, --out DIR chooses another directory"):
        finish(tmp_path / "a", mark="second")
    assert (tmp_path / "a" / "model.onnx").read_text() == "first"


def test_other_files_are_not_touched_without_force(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"holds other files \(a.txt\): --force writes next to them"):
        finish(tmp_path)
    finish(tmp_path, force=True)
    assert (tmp_path / "a.txt").read_text() == "mine"


def test_an_unfinished_training_is_not_deleted_without_force(tmp_path: Path) -> None:
    begin_run(tmp_path / "a", trained=True)
    with pytest.raises(OutputError, match="holds an unfinished run: --resume continues it, --force starts over"):
        finish(tmp_path / "a")
    finish(tmp_path / "a", force=True)


def test_files_of_a_run_killed_before_its_first_epoch_do_not_block_the_next(tmp_path: Path) -> None:
    (tmp_path / "a" / "state" / "new").mkdir(parents=True)
    (tmp_path / "a" / "state" / "config.toml").write_text(CONFIG)
    (tmp_path / "a" / "state" / ".training.pt.x1").write_text("half")
    finish(tmp_path / "a")
    assert ".training.pt.x1" not in names(tmp_path / "a" / "state")


def test_resuming_finds_the_state_and_deletes_incomplete_files(tmp_path: Path) -> None:
    begin_run(tmp_path / "a", trained=True)
    (tmp_path / "a" / "state" / ".training.pt.x1").write_text("half")
    place = RunDirectory(tmp_path / "a", CONFIG)
    with place.claimed(force=False, resume=True):
        assert place.training.read_text() == "state"
        assert place.log.read_text() == "{}\n"
        assert list(place.new.iterdir()) == []
        assert ".training.pt.x1" not in names(place.state)


def test_there_may_be_nothing_to_resume(tmp_path: Path) -> None:
    finish(tmp_path / "a", resume=True)


@pytest.mark.parametrize("finished", [True, False])
def test_resuming_with_other_settings_names_the_first(tmp_path: Path, finished: bool) -> None:
    if finished:
        finish(tmp_path / "a")
    else:
        begin_run(tmp_path / "a", trained=True)
    with pytest.raises(UsageError, match=r"--resume: .* started with other settings: lr was 0.1 and is 0.2\.\nUse the same"):
        RunDirectory(tmp_path / "a", "lr = 0.2\n").check(force=False, resume=True)


@pytest.mark.parametrize("record", [b"\x80", b"[" * 100_000, b"a = 1\0"])
def test_damaged_settings_are_an_error(tmp_path: Path, record: bytes) -> None:
    finish(tmp_path / "a")
    (tmp_path / "a" / "config.toml").write_bytes(record)
    with pytest.raises(UsageError, match=r"started with other settings: its config\.toml cannot be read"):
        RunDirectory(tmp_path / "a", "lr = 0.2\n").check(force=False, resume=True)


def test_resume_and_force_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give one of the two"):
        RunDirectory(tmp_path / "a", CONFIG).check(force=True, resume=True)


def test_an_old_result_stays_until_the_new_one_is_complete(tmp_path: Path) -> None:
    finish(tmp_path / "a")
    before = {path: path.read_bytes() for path in (tmp_path / "a").iterdir() if path.is_file()}
    begin_run(tmp_path / "a", trained=True, config="lr = 0.2\n", force=True)
    assert {path: path.read_bytes() for path in (tmp_path / "a").iterdir() if path.is_file()} == before
    finish(tmp_path / "a", mark="second", config="lr = 0.2\n", resume=True)
    assert (tmp_path / "a" / "model.onnx").read_text() == "second"
    assert (tmp_path / "a" / "config.toml").read_text() == "lr = 0.2\n"


def test_results_that_are_not_complete_are_never_published(tmp_path: Path) -> None:
    place = RunDirectory(tmp_path / "a", CONFIG)
    with pytest.raises(OutputError), place.claimed(force=False, resume=False):
        place.training.write_text("state")
        fill(place, "first")
        (place.new / "report.html").unlink()
        raise OutputError("the disk is full")
    assert not place.is_unpublished and place.can_resume
    assert not place.new.exists()


def interrupt() -> None:
    raise KeyboardInterrupt


def replaced(out: Path, stop_at: int | None, stop: Callable[[], None]) -> int:
    """In a process of its own, replace a result, and stop before a step of the work on files. Returns the process's status."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        os.setpgid(0, 0)
        steps = count_steps(out, stop_at, stop)
        with suppress(KeyboardInterrupt):
            finish(out, mark="second", force=True)
        out.with_name("steps").write_text(str(steps()))
        status = 0
    finally:
        os._exit(status)


def stop_before_every_step(folder: Path, stop: Callable[[], None]) -> None:
    finish(folder / "old")
    shutil.copytree(folder / "old", folder / "new")
    assert replaced(folder / "new", None, stop) == 0
    old, new = read(folder / "old"), read(folder / "new")
    assert old != new
    taken_up = []
    for step in range(1, 1 + int((folder / "steps").read_text())):
        out = folder / str(step)
        shutil.copytree(folder / "old", out)
        assert replaced(out, step, stop) == (-signal.SIGKILL if stop is kill else 0)
        left, place = read(out), RunDirectory(out, CONFIG)
        assert left.items() <= old.items() or left.items() <= new.items(), "a mixture"
        assert left.keys() == set(RESULTS) or (place.is_unpublished and not place.is_finished)
        taken_up.append(place.can_resume)
        finish(out, mark="second", force=not place.can_resume, resume=place.can_resume)
        assert read(out) == new and names(out) == set(RESULTS)
    assert set(taken_up) == {True, False} and len(taken_up) > 40


@pytest.mark.parametrize("stop", [kill, interrupt])
def test_a_run_that_is_stopped_before_any_step_leaves_one_result_and_can_continue(
    tmp_path: Path, stop: Callable[[], None]
) -> None:
    process = multiprocessing.get_context("spawn").Process(target=stop_before_every_step, args=(tmp_path, stop))
    process.start()  # without torch and its threads, so that it can fork
    process.join()
    assert process.exitcode == 0


def test_starting_over_keeps_results_that_were_about_to_be_published(tmp_path: Path) -> None:
    place = RunDirectory(tmp_path / "a", CONFIG)
    with pytest.raises(KeyboardInterrupt), place.claimed(force=False, resume=False):
        fill(place, "first")
        (place.new / "complete").touch()
        raise KeyboardInterrupt
    begin_run(tmp_path / "a", force=True)
    assert (tmp_path / "a" / "model.onnx").read_text() == "first"


def test_two_runs_cannot_share_a_directory(tmp_path: Path) -> None:
    first, second = (RunDirectory(tmp_path / "a", CONFIG) for _ in range(2))
    with first.claimed(force=False, resume=False):
        first.log.write_text("{}\n")
        for force, resume in ((False, False), (True, False), (False, True)):
            with (
                pytest.raises(OutputError, match="is being written by another run"),
                second.claimed(force=force, resume=resume),
            ):
                pytest.fail("claimed twice")
        assert first.log.read_text() == "{}\n"
    with second.claimed(force=False, resume=False):
        pass


def test_a_directory_that_cannot_be_created_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out, message in ((tmp_path / "file", "is a file: give a directory"), (tmp_path / "file" / "a", "Not a directory")):
        with pytest.raises(OutputError, match=message), RunDirectory(out, CONFIG).claimed(force=True, resume=False):
            pytest.fail("claimed")


# Faults of the file system --------------------------------------------------------------------------------------------


def lose(place: RunDirectory, then: Callable[[], object]) -> None:
    """A run whose directory is removed, before something else happens there."""
    told = pytest.raises(OutputError, match=r"a was removed or renamed while it was being written\. Start the run again")
    with told, place.claimed(force=False, resume=False):
        shutil.rmtree(place.out)
        then()
        place.publish()


def test_a_directory_that_is_removed_while_it_is_written_is_an_error_and_not_created_again(tmp_path: Path) -> None:
    place = RunDirectory(tmp_path / "a", CONFIG)
    lose(place, lambda: None)
    assert names(tmp_path) == set()
    lose(place, lambda: write_text(place.new / "model.onnx", "too late"))
    assert names(tmp_path) == set()


def test_a_run_that_lost_its_directory_leaves_the_next_one_there_alone(tmp_path: Path) -> None:
    first, second = (RunDirectory(tmp_path / "a", CONFIG) for _ in range(2))
    with ExitStack() as both:
        lose(first, lambda: both.enter_context(second.claimed(force=False, resume=False)))
        fill(second, "second")
        second.publish()
    assert names(tmp_path / "a") == set(RESULTS)


def test_a_run_that_was_finished_between_a_look_and_the_lock_is_not_replaced(tmp_path: Path) -> None:
    place, checks = RunDirectory(tmp_path / "a", CONFIG), []
    looked = place.check

    def check(*, force: bool, resume: bool) -> None:
        looked(force=force, resume=resume)
        if not checks:
            checks.append("the first")
            finish(tmp_path / "a")

    place.check = check  # type: ignore[method-assign]
    with pytest.raises(OutputError, match="holds a finished run"), place.claimed(force=False, resume=False):
        pytest.fail("claimed")
    assert names(tmp_path / "a") == set(RESULTS)


def test_the_lock_file_of_a_dead_process_does_not_block_a_run(tmp_path: Path) -> None:
    (tmp_path / "a" / "state").mkdir(parents=True)
    (tmp_path / "a" / "state" / "lock").touch()
    finish(tmp_path / "a")
    assert names(tmp_path) == {"a", *(f"a/{name}" for name in RESULTS)} and not (tmp_path / "a" / "state").exists()


def test_a_link_to_a_directory_is_as_good_as_the_directory(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "a").symlink_to("elsewhere")
    begin_run(tmp_path / "a")
    assert names(tmp_path) == {"a", "elsewhere"}
    finish(tmp_path / "a")
    assert names(tmp_path / "elsewhere") == set(RESULTS) and (tmp_path / "a").is_symlink()


def test_a_dangling_link_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("gone")
    with pytest.raises(OutputError, match="a cannot be used: File exists"):
        finish(tmp_path / "a")


def test_the_parent_directory_may_be_read_only(small_disk: Path) -> None:
    (small_disk / "a").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(small_disk / "a")], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
        begin_run(small_disk / "a")
        finish(small_disk / "a")
        assert names(small_disk / "a") == set(RESULTS)
    finally:
        subprocess.run(["umount", str(small_disk / "a")], check=True)
