"""A run's directory: nothing is lost, nothing is half done, and two runs never share one."""

from pathlib import Path

import pytest

from compressor import directory
from compressor.directory import RESULTS, RunDirectory
from compressor.errors import OutputError, UsageError

CONFIG = "lr = 0.1\n"


def begin(out: Path, *, trained: bool = False, config: str = CONFIG, force: bool = False) -> None:
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
        place.training.write_text("state")
        fill(place, mark)
        place.publish()


def names(folder: Path) -> set[str]:
    """All files and folders, but for the lock, which some versions of filelock take away and others leave."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")} - {"state/lock"}


def test_a_finished_run_leaves_its_results_and_its_last_state(tmp_path: Path) -> None:
    finish(tmp_path / "runs" / "a")
    assert names(tmp_path / "runs" / "a") == {*RESULTS, "state", "state/training.pt"}
    assert (tmp_path / "runs" / "a" / "config.toml").read_text() == CONFIG


def test_a_run_that_fails_early_leaves_nothing(tmp_path: Path) -> None:
    begin(tmp_path / "a")
    assert names(tmp_path) == set()


def test_a_run_that_fails_early_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "notes.txt").write_text("mine")
    begin(tmp_path / "a", force=True)
    assert names(tmp_path / "a") == {"notes.txt"}


def test_an_interrupted_training_leaves_what_resuming_needs(tmp_path: Path) -> None:
    begin(tmp_path / "a", trained=True)
    kept = {"state", "state/config.toml", "state/log.jsonl", "state/training.pt"}
    assert names(tmp_path / "a") == kept


def test_a_finished_run_is_not_overwritten(tmp_path: Path) -> None:
    finish(tmp_path / "a")
    with pytest.raises(OutputError, match="holds a finished run: --force replaces it, --out DIR goes elsewhere"):
        finish(tmp_path / "a", mark="second")
    assert (tmp_path / "a" / "model.onnx").read_text() == "first"


def test_other_files_are_not_touched_unasked(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"holds other files \(a.txt\): --force writes beside them"):
        finish(tmp_path)
    finish(tmp_path, force=True)
    assert (tmp_path / "a.txt").read_text() == "mine"


def test_an_unfinished_training_is_not_thrown_away_unasked(tmp_path: Path) -> None:
    begin(tmp_path / "a", trained=True)
    with pytest.raises(OutputError, match="holds an unfinished run: --resume goes on with it, --force starts anew"):
        finish(tmp_path / "a")
    finish(tmp_path / "a", force=True)


def test_what_a_killed_run_left_before_its_first_epoch_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / "a" / "state" / "new").mkdir(parents=True)
    (tmp_path / "a" / "state" / "config.toml").write_text(CONFIG)
    (tmp_path / "a" / "state" / ".training.pt.x1").write_text("half")
    finish(tmp_path / "a")
    assert ".training.pt.x1" not in names(tmp_path / "a" / "state")


def test_resuming_finds_the_state_and_clears_away_what_is_half_written(tmp_path: Path) -> None:
    begin(tmp_path / "a", trained=True)
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
        begin(tmp_path / "a", trained=True)
    with pytest.raises(UsageError, match=r"--resume: .* was begun with other settings: lr was 0.1 and is 0.2\.\nUse the same"):
        RunDirectory(tmp_path / "a", "lr = 0.2\n").check(force=False, resume=True)


def test_going_on_and_starting_anew_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give one of the two"):
        RunDirectory(tmp_path / "a", CONFIG).check(force=True, resume=True)


def test_an_old_result_stays_until_the_new_one_is_complete(tmp_path: Path) -> None:
    finish(tmp_path / "a")
    before = {path: path.read_bytes() for path in (tmp_path / "a").iterdir() if path.is_file()}
    begin(tmp_path / "a", trained=True, config="lr = 0.2\n", force=True)
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


@pytest.mark.parametrize("moves", range(len(RESULTS)))
def test_publishing_that_is_interrupted_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moves: int) -> None:
    finish(tmp_path / "a")
    real, done = Path.replace, []

    def replace(path: Path, target: Path) -> Path:
        if path.parent.name == "new":
            if len(done) == moves:
                raise KeyboardInterrupt
            done.append(path)
        return real(path, target)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "replace", replace)
        finish(tmp_path / "a", mark="second", force=True)
    assert not (tmp_path / "a" / "report.json").exists()  # nobody takes the mixture for a run

    with pytest.raises(OutputError, match="holds an unfinished run"):
        finish(tmp_path / "a", mark="third")
    place = RunDirectory(tmp_path / "a", CONFIG)
    with place.claimed(force=False, resume=True):
        assert place.is_unpublished
        place.publish()
    assert {(tmp_path / "a" / name).read_text() for name in RESULTS} == {"second", CONFIG, "{}\n"}
    assert not place.can_resume


@pytest.mark.parametrize("removals", range(4))
def test_a_run_that_is_interrupted_while_it_clears_away_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, removals: int
) -> None:
    real, done = directory._remove, []

    def remove(path: Path) -> None:
        if (path.parent.parent / "report.json").exists():
            if len(done) == removals:
                raise KeyboardInterrupt
            done.append(path)
        real(path)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(directory, "_remove", remove)
        finish(tmp_path / "a")
    place = RunDirectory(tmp_path / "a", CONFIG)
    assert place.is_finished and place.can_resume is (removals == 0)
    if place.can_resume:
        with place.claimed(force=False, resume=True):
            place.publish()
    assert {path.name for path in (tmp_path / "a").iterdir()} == {*RESULTS, "state"}


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


def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out, message in ((tmp_path / "file", "is a file: give a directory"), (tmp_path / "file" / "a", "Not a directory")):
        with pytest.raises(OutputError, match=message), RunDirectory(out, CONFIG).claimed(force=True, resume=False):
            pytest.fail("claimed")
