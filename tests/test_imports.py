"""Who may import whom: the arrows between the parts of the package go one way, and the command line starts without torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import compressor

ROOT = Path(compressor.__file__).parent
FILES = {".".join(("compressor", *path.relative_to(ROOT).with_suffix("").parts)): path for path in ROOT.rglob("*.py")}
HEAVY = {"torch", "torchvision", "onnx", "onnxruntime", "matplotlib", "scipy", "sklearn"}


def imports(module: str, top: bool = False) -> set[str]:
    """What a module imports, as dotted names; with `top`, only what is imported when the module itself is."""
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in _at_module_level(tree) if top else ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} imports by a relative name: write the whole one"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found.update(name if name in FILES or f"{name}.__init__" in FILES else str(node.module) for name in names)
    return found


def _at_module_level(tree: ast.Module) -> list[ast.stmt]:
    """Statements that run on import: the body, and what stands in its `if` and `try`, but not `if TYPE_CHECKING`."""
    found, left = [], list(tree.body)
    while left:
        node = left.pop()
        found.append(node)
        if isinstance(node, ast.If | ast.Try) and not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            left += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
    return found


def under(name: str, *parts: str) -> bool:
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def own(module: str) -> set[str]:
    """What of the package itself a module imports."""
    return {name for name in imports(module) if under(name, "compressor")}


def modules(*parts: str) -> list[str]:
    return sorted(name for name in FILES if under(name, *parts))


PAPERS = [name for name in FILES if ".papers." in name]


@pytest.mark.parametrize("module", sorted(set(FILES) - set(modules("compressor.cli", "compressor.__main__"))))
def test_nothing_imports_the_command_line(module: str) -> None:
    assert not [name for name in own(module) if under(name, "compressor.cli")]


@pytest.mark.parametrize("module", sorted(PAPERS))
def test_a_paper_imports_no_other_paper(module: str) -> None:
    assert not [name for name in own(module) if ".papers" in name]


@pytest.mark.parametrize("module", sorted(set(FILES) - set(PAPERS)))
def test_nobody_names_a_paper(module: str) -> None:
    assert not [name for name in own(module) if ".papers" in name]


@pytest.mark.parametrize(
    "module", modules("compressor.cli", "compressor.report", "compressor.methods.catalogue", "compressor.errors")
)
def test_the_face_does_not_import_torch_at_module_level(module: str) -> None:
    assert not {name.partition(".")[0] for name in imports(module, top=True)} & {"torch", "torchvision", "onnx", "onnxruntime"}


@pytest.mark.parametrize("arguments", [["--help"], ["prune", "--help"], ["methods"], ["methods", "sfp"], ["--version"]])
def test_the_command_line_answers_without_torch(arguments: list[str]) -> None:
    code = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print('heavy:', sorted({HEAVY} & sys.modules.keys())))\n"
        "from compressor.cli import main\n"
        f"sys.argv = ['compress', *{arguments}]\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("heavy: []\n")
    assert len(done.stdout.splitlines()) > 1
