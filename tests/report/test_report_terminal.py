"""The terminal: 80 columns; build logs get unwrapped lines without colour."""

import io
from collections.abc import Callable

import example
import pytest
from rich.console import Console

from compressor.report import Report, print_report

EVERY = [
    example.example,
    example.restoration,
    example.pipeline,
    example.without_data,
    example.bare,
    example.nasty,
    example.deep,
]


def printed(report: Report, terminal: bool) -> str:
    file = io.StringIO()
    print_report(report, Console(file=file, width=80, force_terminal=terminal, color_system=None, legacy_windows=False))
    return file.getvalue()


@pytest.mark.parametrize("make", EVERY)
def test_nothing_is_wider_than_the_terminal(make: Callable[[], Report]) -> None:
    assert max(map(len, printed(make(), terminal=True).splitlines())) <= 80


def test_a_log_holds_the_verdict_on_one_line() -> None:
    report = example.example()
    lines = printed(report, terminal=False).splitlines()
    assert lines[:2] == [report.name, report.verdict]


def test_a_log_has_no_control_codes() -> None:
    assert "\x1b" not in printed(example.example(), terminal=False)


def test_before_after_stages_and_warnings_are_there() -> None:
    text = printed(example.example(), terminal=True)
    for words in ["MACs, one image", "20.2 M", "-50.3 %", "[86.4, 87.7]", "no faster: 0.98x", "recalibrated", "warning: no"]:
        assert words in text


def test_square_brackets_of_the_user_are_no_markup() -> None:
    assert example.NASTY in printed(example.nasty(), terminal=False)
