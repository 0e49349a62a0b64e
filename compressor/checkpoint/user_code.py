"""The files that a network's code consists of: the one that is named, and what it imports, as far as they are the user's own.

Who keeps what was made from `net.py:Net` must make it again when `layers.py`, which net.py imports, has changed.
"""

import ast
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path


def code_of(arch: str) -> set[Path]:
    """The files behind `path/net.py:Net` or `package.net:Net`; none where it names no code of the user's own.

    Imports are looked up where `--arch` looks before the installed packages: in the working directory and beside the file.
    Those that a program computes are not seen.
    """
    where = arch.rpartition(":")[0]
    file = Path.cwd() / where
    is_file = file.suffix == ".py"
    places = [Path.cwd(), file.parent] if is_file else [Path.cwd()]
    found: set[Path] = set()
    waiting = [file] if is_file else list(_modules(places, where))
    while waiting:
        file = waiting.pop()
        if file not in found and (code := _read(file)) is not None:
            found.add(file)
            for dots, name in _imports(code):
                waiting += _modules(file.parents[dots - 1 : dots] if dots else places, name)
    return found


def _read(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except (OSError, ValueError):  # it is not there, or its name is none
        return None


@lru_cache(maxsize=1024)
def _imports(code: bytes) -> list[tuple[int, str]]:
    """What is imported: the number of dots in front, and a name, `a.b` of `from ..a import b` also where b is no module."""
    try:
        nodes = list(ast.walk(ast.parse(code)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # whoever builds the network will tell
        return []
    plain = [(0, name.name) for node in nodes if isinstance(node, ast.Import) for name in node.names]
    members = [(node, name.name) for node in nodes if isinstance(node, ast.ImportFrom) for name in node.names]
    return plain + [(node.level, f"{node.module}.{name}" if node.module else name) for node, name in members]


def _modules(places: Sequence[Path], name: str) -> Iterator[Path]:
    """`a.b` -> `a.py`, `a/__init__.py`, `a/b.py`, `a/b/__init__.py` in each place."""
    for part in accumulate(name.split("."), "{}/{}".format):
        for place in places:
            yield from (place / f"{part}.py", place / part / "__init__.py")
