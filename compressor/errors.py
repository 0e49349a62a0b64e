"""The errors of this package, and their exit status on the command line.

    CompressError
    ├── UsageError              2   wrong usage, or input that cannot be used
    │   ├── CheckpointError     2   the file is not a readable checkpoint, or does not fit its network
    │   ├── ArchitectureError   2   the code that builds the network was not found, or does not build one
    │   ├── DataError           2   the images or targets are missing, unreadable or do not fit the network
    │   └── OutputError         2   the results cannot be written to the given place
    ├── Infeasible              3   the network cannot be compressed as requested
    ├── VerificationFailed      4   a check failed; nothing was published
    ├── NotExported             6   the network for PyTorch was verified and published, but not its ONNX file
    └── Stopped               130   another of several processes ended, and this one cannot continue

Every message is one or two plain lines: what was given, what was found, what to do. Any other exception is an internal error
(exit status 5); an interruption by the user is 130.

Names and values in a message may come from an untrusted file. So every message is limited to two lines of bounded length, and
control characters and marks that change the direction of text are escaped.
"""

import re
import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches

LONGEST = 1000  # characters in a line


class CompressError(Exception):
    """The base class of all errors that this package raises on purpose."""

    exit_code = 5

    def __init__(self, message: str = "") -> None:
        first, _, rest = message.partition("\n")
        lines = [_shortened(printable(line)) for line in (first, " ".join(rest.split("\n"))) if line]
        super().__init__("\n".join(lines))


class UsageError(CompressError):
    """Wrong usage, or input that cannot be used."""

    exit_code = 2


class CheckpointError(UsageError):
    """The file is not a readable checkpoint, or does not fit its network."""


class ArchitectureError(UsageError):
    """The code that builds the network was not found, or does not build one."""


class DataError(UsageError):
    """The images or targets are missing, unreadable or do not fit the network."""


class OutputError(UsageError):
    """The results cannot be written to the given place."""


class Infeasible(CompressError):
    """The network cannot be compressed as requested; the message gives the nearest target that can be reached."""

    exit_code = 3


class VerificationFailed(CompressError):
    """A check failed; nothing was published."""

    exit_code = 4


class NotExported(CompressError):
    """The network for PyTorch was verified and published, but not its ONNX file."""

    exit_code = 6


class Stopped(CompressError):
    """Another of several processes ended, and this one cannot continue."""

    exit_code = 130


def printable(text: str) -> str:
    """`text` with control characters, line ends, text-direction marks and lone surrogates escaped as in Python: `\\x1b`."""
    if text.isprintable():
        return text
    return "".join(letter.encode("unicode_escape").decode() if _steers(letter) else letter for letter in text)


def _steers(letter: str) -> bool:
    return unicodedata.category(letter) in {"Cc", "Cf", "Cs", "Zl", "Zp"}


def _shortened(line: str) -> str:
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`"; did you mean 'magnitude'?"`, or an empty string when nothing known is similar."""
    near = get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def first_line(error: BaseException) -> str:
    """The root cause on one line: the first line of the deepest cause, and the next ones where a line ends in ":"."""
    while error.__cause__ is not None:
        error = error.__cause__
    message = " ".join(re.split(r"(?<!:)\n", str(error).strip())[0].split())
    return f"{type(error).__name__}: {message[:300]}" if message else type(error).__name__
