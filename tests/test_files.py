"""Files are written atomically, on full disks, in read-only places and when interrupted, and read up to a maximum size."""

import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from compressor.errors import OutputError, VerificationFailed
from compressor.files import LARGEST, read_text, write_text, write_whole


def test_a_file_is_written_with_the_usual_rights(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        write_text(tmp_path / "deep" / "a.txt", "größer")
    finally:
        os.umask(mask)
    assert (tmp_path / "deep" / "a.txt").read_text(encoding="utf-8") == "größer"
    assert stat.S_IMODE((tmp_path / "deep" / "a.txt").stat().st_mode) == 0o640


def test_a_file_outlasts_a_power_cut_as_the_old_one_or_the_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The content is synced to disk before the rename, and the folder after it."""
    synced = []

    def sync(handle: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(handle).st_mode)
        synced.append(("folder" if is_folder else "file", (tmp_path / "a.txt").exists()))
        real(handle)

    real = os.fsync
    monkeypatch.setattr(os, "fsync", sync)
    write_text(tmp_path / "a.txt", "new")
    assert synced == [("file", False), ("folder", True)]


def save_with_torch(path: Path) -> None:
    with path.open("wb") as file:
        torch.save({"weight": torch.zeros(1_000_000)}, file)


@pytest.mark.parametrize("write", [lambda path: path.write_bytes(bytes(4_000_000)), save_with_torch], ids=["bytes", "torch"])
def test_a_full_disk_leaves_the_old_file(small_disk: Path, write: Callable[[Path], object]) -> None:
    (small_disk / "a.pt").write_text("old")
    with pytest.raises(OutputError, match=r"a\.pt could not be written: No space left on device\.\nFree disk space") as caught:
        write_whole(small_disk / "a.pt", write)
    assert str(caught.value).count("\n") == 1
    assert [path.name for path in small_disk.iterdir()] == ["a.pt"]
    assert (small_disk / "a.pt").read_text() == "old"


def test_a_disk_that_cannot_be_written_is_told(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(OutputError, match="Read-only file system"):
        write_text(small_disk / "a.txt", "new")


def test_a_file_in_the_place_of_a_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"Not a directory|File exists"):
        write_text(tmp_path / "file" / "a.txt", "new")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), VerificationFailed("wrong"), RuntimeError("a fault in writing a file")])
def test_what_else_goes_wrong_is_passed_on_and_nothing_is_left(tmp_path: Path, error: BaseException) -> None:
    def write(path: Path) -> None:
        path.write_text("half")
        raise error

    with pytest.raises(type(error)) as caught:
        write_whole(tmp_path / "a.txt", write)
    assert caught.value is error
    assert not list(tmp_path.iterdir())


def test_a_text_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xc3\xa9\r\n" + b"x" * (LARGEST - 4))
    text = read_text(tmp_path / "a")
    assert text.startswith("é\r\n") and len(text) == LARGEST - 1


def test_what_is_too_large_or_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * (LARGEST + 1))
    os.mkfifo(tmp_path / "pipe")
    for path, words in (
        (tmp_path / "a", "File too large"),
        (tmp_path / "pipe", "It is not a regular file"),
        (Path("/dev/zero"), "It is not a regular file"),
    ):
        with pytest.raises(OSError, match=words):
            read_text(path)
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "gone")
