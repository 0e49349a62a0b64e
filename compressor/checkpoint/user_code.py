"""The source files of a network: the named file and its imports, as far as they are the user's own.

Results that were computed from `net.py:Net` are outdated when `layers.py`, which net.py imports, has changed.
"""

import ast
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path


def code_of(arch: str) -> set[Path]:
    """The source files of `path/net.py:Net` or `package.net:Net`; empty if it is not the user's own code.

    Imports are looked up where `--arch` looks before installed packages: in the working directory and the file's directory.
    Dynamic imports are not found.
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
    except (OSError, ValueError):  # it does not exist, or its name is not valid
        return None


@lru_cache(maxsize=1024)
def _imports(code: bytes) -> list[tuple[int, str]]:
    """The imports: the number of leading dots, and a name; `from ..a import b` gives `a.b`, also if b is not a module."""
    try:
        nodes = list(ast.walk(ast.parse(code)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # reported when the network is built
        return []
    plain = [(0, name.name) for node in nodes if isinstance(node, ast.Import) for name in node.names]
    members = [(node, name.name) for node in nodes if isinstance(node, ast.ImportFrom) for name in node.names]
    return plain + [(node.level, f"{node.module}.{name}" if node.module else name) for node, name in members]


def _modules(places: Sequence[Path], name: str) -> Iterator[Path]:
    """`a.b` -> `a.py`, `a/__init__.py`, `a/b.py`, `a/b/__init__.py` in each of the directories."""
    for part in accumulate(name.split("."), "{}/{}".format):
        for place in places:
            yield from (place / f"{part}.py", place / part / "__init__.py")
