"""Progress of a run: a bar on a terminal, plain lines elsewhere, and a log of one JSON object per line."""

import io
import json
import time
from pathlib import Path

import pytest
from rich.console import Console

from compressor.errors import OutputError
from compressor.report.schema import Epoch, Score
from compressor.runs.journal import Journal

FIRST, LAST = (
    Epoch(number, 0.1, {"cross_entropy": 1.25, "auxiliary": 0.5}, held_out, 40.0, 1000.0)
    for number, held_out in ((1, Score("top1", "top-1", 0.5, "%", 2, 40)), (2, None))
)


def watch(journal: Journal) -> None:
    """Two epochs of three batches."""
    with journal:
        for number, epoch in enumerate((FIRST, LAST)):
            journal.epoch_began(number, 2, 3)
            for _ in range(3):
                journal.step_ended(lambda: {"cross_entropy": 1.25})
            journal.epoch_ended(epoch, 2)


def test_on_a_terminal_an_epoch_is_a_bar_with_its_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    watch(Journal(Console(file=shown, force_terminal=True, width=100, color_system=None)))
    assert "epoch 1/2" in shown.getvalue() and "3/3" in shown.getvalue() and "━" in shown.getvalue()
    assert "cross_entropy 1.2500" in shown.getvalue()
    assert "epoch 1/2: cross_entropy 1.2500, auxiliary 0.5000, held-out top-1 50.00 %, 40.0 s" in shown.getvalue()


def test_elsewhere_an_epoch_is_one_plain_line() -> None:
    shown = io.StringIO()
    watch(Journal(Console(file=shown)))
    assert shown.getvalue().splitlines() == [
        "  epoch 1/2: cross_entropy 1.2500, auxiliary 0.5000, held-out top-1 50.00 %, 40.0 s, about 40 s left",
        "  epoch 2/2: cross_entropy 1.2500, auxiliary 0.5000, 40.0 s",
    ]


def test_a_loss_is_read_now_and_then_only() -> None:
    read = []
    journal = Journal(Console(file=io.StringIO(), force_terminal=True))
    with journal:
        journal.epoch_began(0, 1, 1000)
        for _ in range(1000):
            journal.step_ended(lambda: read.append(1) or {})
    assert 1 <= len(read) < 20  # reading waits for the GPU


def test_the_bar_is_gone_after_an_error() -> None:
    journal = Journal(Console(file=io.StringIO(), force_terminal=True))
    with pytest.raises(KeyboardInterrupt), journal:
        journal.epoch_began(0, 1, 3)
        raise KeyboardInterrupt
    journal.step_ended(dict)  # there is no bar that it could advance


def test_messages_are_printed_without_markup_and_wrapping() -> None:
    shown = io.StringIO()
    Journal(Console(file=shown, width=20)).say("[bold]models/net[1].pt[/bold] is longer than the line")
    assert shown.getvalue() == "[bold]models/net[1].pt[/bold] is longer than the line\n"


def test_the_log_has_one_object_a_line(tmp_path: Path) -> None:
    journal = Journal(None, tmp_path / "log.jsonl")
    journal.event("opened", notes=["a\nb"], input_shape=(1, 8, 8))
    watch(journal)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["event"] for line in lines] == ["opened", "epoch", "epoch"]
    assert lines[0]["notes"] == ["a\nb"] and lines[0]["input_shape"] == [1, 8, 8]
    assert (lines[1]["epoch"], lines[1]["losses"]["auxiliary"], lines[2]["held_out"]) == (1, 0.5, None)
    assert lines[0]["time"] <= lines[2]["time"]


def test_without_a_console_and_a_file_nothing_happens() -> None:
    watch(Journal())


def test_a_log_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"log.jsonl cannot be written: No such file"):
        Journal(None, tmp_path / "gone" / "log.jsonl").event("opened")


def test_half_a_line_of_a_run_that_was_killed_is_dropped(tmp_path: Path) -> None:
    journal = Journal(None, tmp_path / "log.jsonl")
    journal.event("opened")
    whole = (tmp_path / "log.jsonl").read_bytes()
    for left in (whole + whole[:20], whole[:20]):
        (tmp_path / "log.jsonl").write_bytes(left)
        journal.event("resumed")
        lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        assert [line["event"] for line in lines] == ["opened"] * (left != whole[:20]) + ["resumed"]


def test_nothing_is_written_after_the_check_fails(tmp_path: Path) -> None:
    def check() -> None:
        raise OutputError("removed")

    with pytest.raises(OutputError, match="removed"):
        Journal(None, tmp_path / "log.jsonl", check).event("opened")
    assert not list(tmp_path.iterdir())


# Parts of a run -------------------------------------------------------------------------------------------------------


def test_the_times_of_parts_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part within another is not counted twice: 1 s + (2 s, 4 s within) + 8 s between, which is of no part."""
    clock = iter([0.0, 1.0, 9.0, 10.0, 14.0, 15.0])
    monkeypatch.setattr("compressor.runs.journal.time.perf_counter", lambda: next(clock))
    journal = Journal()
    with journal.part("reading"):
        pass
    with journal.part("export"), journal.part("evaluation"):
        pass
    assert journal.times == {"reading": 1.0, "export": 2.0, "evaluation": 4.0}


def test_a_part_that_fails_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal()
    with pytest.raises(ValueError), journal.part("export"), journal.part("latency"):
        raise ValueError
    assert set(journal.times) == {"export", "latency"} and not journal._parts


def test_what_lasts_is_shown_on_a_terminal_and_told_once_a_minute_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compressor.runs.journal.REMIND", 0.05)
    shown, told = io.StringIO(), io.StringIO()
    with Journal(Console(file=shown, force_terminal=True, width=80)).part("export"):
        time.sleep(0.2)
    with Journal(Console(file=told, width=80)).part("export"):
        time.sleep(0.2)
    assert "export ..." in shown.getvalue()
    assert told.getvalue().startswith("  export: 0.") and 1 <= told.getvalue().count("\n") <= 4


def test_training_replaces_the_line_of_its_part() -> None:
    journal = Journal(Console(file=io.StringIO(), force_terminal=True, width=80))
    with journal.part("training"):
        watch(journal)
    assert journal._status is None and journal._bar is None
