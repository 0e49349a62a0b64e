"""Error messages are printable, short, and at most two lines long, whatever text of a file they contain."""

import pickle

import pytest

from compressor.errors import CheckpointError, CompressError, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("layer1.0.conv1", "layer1.0.conv1"),
        ("é 漢 \u3000 \xa0", "é 漢 \u3000 \xa0"),
        ("a\x1b[2J\r\n\0\x7f", r"a\x1b[2J\r\n\x00\x7f"),
        ("\u202egnp.exe\u2028", r"\u202egnp.exe\u2028"),
        ("\ud800", r"\ud800"),
    ],
)
def test_what_steers_a_terminal_is_written_out(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_a_message_has_two_lines_of_bounded_length() -> None:
    message = str(CompressError("a" * 5000 + "\nb\x1b\nc\n\nd"))
    first, second = message.split("\n")
    assert len(first) < 1100 and first.startswith("aaa") and " ... " in first
    assert second == r"b\x1b c  d"


def test_an_error_may_come_from_another_process() -> None:
    error = pickle.loads(pickle.dumps(CheckpointError("one\ntwo")))
    assert type(error) is CheckpointError and str(error) == "one\ntwo"
