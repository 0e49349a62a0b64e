"""Import rules: folders in one direction, no circular imports, and a command line that starts without torch."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from itertools import chain
from pathlib import Path

import pytest

import compressor

ROOT = Path(compressor.__file__).parent
HEAVY = {"torch", "torchvision", "onnx", "onnxruntime", "matplotlib", "scipy", "sklearn"}
EVERYWHERE = {"errors", "files", "modules", "version"}  # all may import these

# Each folder, and the folders that it may import: those above it here, never one below.
DRAWING = {
    "network": "",
    "channels": "network",
    "data": "",
    "report": "",
    "onnx": "network data report",
    "tasks": "network data report",
    "checkpoint": "network channels",
    "training": "network channels data report tasks",
    "recovery": "network channels data",
    "methods": "network channels data tasks training recovery",
    "runs": "network channels data report onnx tasks checkpoint training recovery methods",
    "demo": "channels data report tasks training runs",
    "cli": "network channels data report onnx tasks checkpoint training recovery methods runs demo",
}


def dotted(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {dotted(path): path for path in ROOT.rglob("*.py")}


def imports(module: str, top: bool = False) -> set[str]:
    """All imports in a module, including those for types; with `top`, only those that run when the module is imported."""
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in _at_module_level(tree) if top else ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} has a relative import: write an absolute one"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found.update(name if name in FILES else str(node.module) for name in names)
    return found


def _at_module_level(tree: ast.Module) -> list[ast.stmt]:
    """Statements that run on import: the body, including `if` and `try`, except `if TYPE_CHECKING`."""
    found, left = [], list(tree.body)
    while left:
        node = left.pop()
        found.append(node)
        if isinstance(node, ast.If | ast.Try) and not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            left += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
    return found


OWN = {module: {name for name in imports(module) if name.split(".")[0] == "compressor"} for module in FILES}
FAMILIES = ("prune", "lowrank", "distill")
PAPERS = {module for module in FILES if ".papers." in module}


def folder(module: str) -> str:
    """`channels` of `compressor.channels.groups`; "" of the root itself."""
    return f"{module}.".split(".")[1]


@pytest.mark.parametrize("name", DRAWING)
def test_a_folder_imports_what_the_drawing_says(name: str) -> None:
    inside = [module for module in FILES if folder(module) == name]
    assert inside
    found = {folder(other) for module in inside for other in OWN[module]}
    assert found <= {name, *EVERYWHERE, *DRAWING[name].split()}


def test_every_file_is_in_the_drawing_and_no_arrow_points_up() -> None:
    assert {folder(module) for module in FILES} == {"", "__main__", *EVERYWHERE, *DRAWING}
    for place, (name, allowed) in enumerate(DRAWING.items()):
        assert set(allowed.split()) <= set(list(DRAWING)[:place]), name
    assert not any(OWN[f"compressor.{name}"] - {"compressor.errors"} for name in EVERYWHERE)


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Including imports inside a folder, deferred imports and those for types. Raises CycleError with the cycle."""
    TopologicalSorter({module: names for module, names in OWN.items() if module != "compressor"}).prepare()


def test_contributors_are_told_the_same() -> None:
    text = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)(?:/|\.py)` \| .* \| ?(.*?) ?\|$", text, re.MULTILINE))
    above = {name: " ".join(list(DRAWING)[:place]) for place, name in enumerate(DRAWING)}
    found = {name: set((above[name] if told == "all above" else told).split()) for name, told in rows.items()}
    assert found == {name: set(allowed.split()) for name, allowed in DRAWING.items()}


@pytest.mark.parametrize("name", [name for name in DRAWING if (ROOT / name).is_dir()])
def test_a_folder_says_what_it_imports(name: str) -> None:
    text = " ".join((ast.get_docstring(ast.parse((ROOT / name / "__init__.py").read_text(encoding="utf-8"))) or "").split())
    told = text.rpartition("Imports: ")[2].removesuffix(".").replace(",", "")
    assert told == ("everything" if name == "cli" else DRAWING[name] or "nothing")


def family(module: str) -> str:
    """`prune` of `compressor.methods.prune.filters`; "" of modules that all families share."""
    return next((name for name in FAMILIES if f"{module}.".startswith(f"compressor.methods.{name}.")), "")


def test_a_family_knows_of_no_other_and_what_all_share_of_none() -> None:
    inside = [module for module in FILES if folder(module) == "methods"]
    assert {family(module) for module in inside} == {"", *FAMILIES}
    assert not [(module, name) for module in inside for name in OWN[module] if family(name) not in ("", family(module))]


def test_nobody_names_a_paper() -> None:
    assert not {module for module, names in OWN.items() if PAPERS & names}


def test_channels_stand_on_torch_numpy_and_scipy_alone() -> None:
    inside = [module for module in FILES if folder(module) == "channels"]
    packages = {name.partition(".")[0] for module in inside for name in imports(module)} - set(sys.stdlib_module_names)
    assert packages <= {"compressor", "torch", "numpy", "scipy"}


def test_reports_never_import_torch() -> None:
    inside = [module for module in FILES if folder(module) == "report"]
    assert not {name.partition(".")[0] for name in chain(*map(imports, inside))} & {
        "torch",
        "torchvision",
        "onnx",
        "onnxruntime",
    }


@pytest.mark.parametrize(
    "module", sorted([*(name for name in FILES if folder(name) == "cli"), "compressor.methods.catalogue", "compressor.errors"])
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
