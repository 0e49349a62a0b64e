"""Texts that may come from anyone are read up to a bounded length, and not waited for."""

import os
from pathlib import Path

import pytest

from compressor.texts import LARGEST, read_text


def test_a_text_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xc3\xa9\r\n" + b"x" * (LARGEST - 4))
    text = read_text(tmp_path / "a")
    assert text.startswith("é\r\n") and len(text) == LARGEST - 1


def test_what_is_too_large_or_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * (LARGEST + 1))
    os.mkfifo(tmp_path / "pipe")
    for path, words in (
        (tmp_path / "a", "File too large"),
        (tmp_path / "pipe", "It is no file"),
        (Path("/dev/zero"), "It is no file"),
    ):
        with pytest.raises(OSError, match=words):
            read_text(path)
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "gone")
