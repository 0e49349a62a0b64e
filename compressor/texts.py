"""Texts that may come from anyone: plans, reports, settings. None is longer than what is written here could ever be."""

import errno
import os
from pathlib import Path

LARGEST = 16 * 2**20  # bytes; in memory JSON takes up to twenty times as many. Reports of a thousand layers have half a million


def read_text(path: Path) -> str:
    """The text of a file, as `Path.read_text` gives it: raises OSError or UnicodeDecodeError.

    An OSError, too, for a file of more than `LARGEST` bytes, and for a device or a pipe, which might never end.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "It is no file", str(path))
    with path.open("rb") as file:
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
    return data.decode("utf-8")
