"""Atomic writing of files, reading of untrusted text files up to a maximum size, and hashes."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from compressor.errors import OutputError

# Bytes of a text file. In memory JSON takes up to twenty times as many; reports of a thousand layers have half a million.
LARGEST = 16 * 2**20


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` fill a temporary file next to `path`, then move it into place in one step.

    If the process is killed or the power fails, `path` is either unchanged or complete.
    Raises OutputError when the disk is full or the path cannot be written; `path` is then unchanged.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        sync(path.parent)
    except (OSError, RuntimeError) as error:
        cause = _of_the_system(error)
        if cause is None:
            raise
        raise OutputError(
            f"{path} could not be written: {cause.strerror or cause}.\nFree disk space, or give another place with --out."
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """`write_whole` for text."""
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_text(path: Path) -> str:
    """The text of a plan, a report or settings, which may be untrusted: raises OSError or UnicodeDecodeError.

    Files of more than `LARGEST` bytes, devices and pipes, which might never end, also raise OSError.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "It is not a regular file", str(path))
    with path.open("rb") as file:
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
    return data.decode("utf-8")


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(folder: Path) -> None:
    """Make the file names in `folder` durable across a power failure, including renamed files, if the file system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _of_the_system(error: BaseException | None) -> OSError | None:
    """The operating system's own error: `torch.save` on a full disk raises a RuntimeError with another message."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
