"""What can go wrong, and the exit status each answer has on the command line.

    CompressError
    ├── UsageError              2   wrong usage, or input that cannot be used
    │   ├── CheckpointError     2   the file is not a checkpoint we can read, or does not fit its network
    │   ├── ArchitectureError   2   the code that builds the network was not found, or does not build one
    │   ├── DataError           2   the images or labels are missing, unreadable or do not fit the network
    │   └── OutputError         2   the results cannot be written where they were asked to go
    ├── Infeasible              3   the network cannot be compressed as asked
    ├── VerificationFailed      4   a check failed; nothing was published
    └── Stopped               130   another of several processes ended, and this one cannot go on

Every message is one or two plain lines: what was asked, what was found, what to do. Anything else that is raised is a
fault of ours (exit status 5); an interruption by the user is 130.

Names and figures in a message may come from anyone's file. So whatever is put into one, it has at most two lines, neither is
endless, and nothing in them moves a terminal's cursor or turns its text around.
"""

import re
import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches

LONGEST = 1000  # letters in a line


class CompressError(Exception):
    """The root of all errors this package raises on purpose."""

    exit_code = 5

    def __init__(self, message: str = "") -> None:
        first, _, rest = message.partition("\n")
        lines = [_shortened(printable(line)) for line in (first, " ".join(rest.split("\n"))) if line]
        super().__init__("\n".join(lines))


class UsageError(CompressError):
    """Wrong usage, or input that cannot be used."""

    exit_code = 2


class CheckpointError(UsageError):
    """The file is not a checkpoint we can read, or does not fit its network."""


class ArchitectureError(UsageError):
    """The code that builds the network was not found, or does not build one."""


class DataError(UsageError):
    """The images or labels are missing, unreadable or do not fit the network."""


class OutputError(UsageError):
    """The results cannot be written where they were asked to go."""


class Infeasible(CompressError):
    """The network cannot be compressed as asked; the message tells the nearest point that can be reached."""

    exit_code = 3


class VerificationFailed(CompressError):
    """A check failed; nothing was published."""

    exit_code = 4


class Stopped(CompressError):
    """Another of several processes ended, and this one cannot go on."""

    exit_code = 130


def printable(text: str) -> str:
    """`text` with control characters, line ends, marks of direction and halves of letters as Python writes them: `\\x1b`."""
    if text.isprintable():
        return text
    return "".join(letter.encode("unicode_escape").decode() if _steers(letter) else letter for letter in text)


def _steers(letter: str) -> bool:
    return unicodedata.category(letter) in {"Cc", "Cf", "Cs", "Zl", "Zp"}


def _shortened(line: str) -> str:
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`"; did you mean 'magnitude'?"`, or an empty string when nothing known is near."""
    near = get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def first_line(error: BaseException) -> str:
    """What went wrong in the first place, on one line: the first of the deepest cause, and more where that ends in ":"."""
    while error.__cause__ is not None:
        error = error.__cause__
    message = " ".join(re.split(r"(?<!:)\n", str(error).strip())[0].split())
    return f"{type(error).__name__}: {message[:300]}" if message else type(error).__name__
