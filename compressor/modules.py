"""Import of the user's own Python files: the code of a network, or a method."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from compressor.errors import did_you_mean


def importable(folder: Path, first: bool) -> None:
    """Let Python find modules in `folder`, before all others or after them."""
    if str(folder) not in sys.path:
        sys.path.insert(0 if first else len(sys.path), str(folder))


@contextmanager
def without_arguments() -> Iterator[None]:
    """Hide the command line: research code often parses arguments when it is imported, and must not be given ours."""
    own = sys.argv
    sys.argv = own[:1]
    try:
        yield
    finally:
        sys.argv = own


def no_file(path: Path) -> str:
    """The message for a Python file that does not exist."""
    near = did_you_mean(path.name, [file.name for file in path.parent.glob("*.py")])
    return f"there is no file {path}{near or '.'} Paths are relative to {Path.cwd()}."


def from_file(path: Path) -> ModuleType:
    """The module in a file, which can import from its own directory and from the working directory.

    It is imported once, under a name made of its path: a second import would make a second class of the same name. Raises what
    its code raises.
    """
    path = path.resolve()
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    importable(Path.cwd(), first=True)
    importable(path.parent, first=False)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, f"Python has no loader for {path}"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with without_arguments():
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
