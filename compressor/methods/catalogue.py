"""The catalogue of methods, parsed from their source files, so that listing them does not import torch.

The name of a method is the name of its file. Its title is the first line of the file; the docstring of its class describes what
it does and lists its settings, which are the keyword-only arguments of `__init__`.

A custom method is named `path/to/file.py:Class`; a method of an installed package has the name of its entry point in the group
`compressor.methods`. Both are parsed in the same way, and imported when they are created.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.errors import CompressError, UsageError, did_you_mean, first_line
from compressor.files import sha256_of
from compressor.modules import from_file, no_file

if TYPE_CHECKING:
    from compressor.training.method import Job, Method

Value = str | float | int | bool
GROUP = "compressor.methods"  # of entry points: NAME = "package.module:Class"
WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
KINDS: dict[str, Callable[[str], Value]] = {"bool": lambda text: WORDS[text.lower()], "int": int, "float": float, "str": str}
FAMILIES = ("prune", "lowrank", "distill")
CLASS = re.compile(r"^class (\w+)\((.*?)\):", re.MULTILINE)  # name and base classes
FOLDER = Path(__file__).parent  # has one folder per family, with the papers in FAMILY/papers


@dataclass(frozen=True)
class Setting:
    """One setting of a method."""

    name: str
    kind: str
    default: Value
    text: str


@dataclass(frozen=True)
class Entry:
    """One method. Flags such as `trains = True`, and the hyperparameters of its paper, are class attributes of the method."""

    name: str
    family: str  # prune, lowrank, distill
    title: str
    does: str
    paper: str
    trains: bool  # whether the method has no effect without training epochs
    looks: bool  # whether it needs training images before training, for example to score channels
    weights: bool  # whether it sets individual weights to zero (unstructured), and removes no channels
    alone: bool  # whether it can train in one process only, because it keeps state of a batch beyond the gradients
    cutout: float  # side of the cutout square used by the paper on small images, as a fraction of the image side; 0: none
    lr: float | None  # learning rate of SGD; None: the default
    weight_decay: float | None  # None: the default
    teacher_is: str  # for distillation: needed, optional, or none (mutual learning)
    tasks: tuple[str, ...]  # the tasks that it is for; empty: all
    labelled: bool  # whether it needs targets, not only images
    settings: tuple[Setting, ...]
    text: str  # the module docstring
    file: Path  # source file
    cls: str  # class name
    code: str = ""  # `file.py:Class` or `package.module:Class` of a custom or installed method

    @property
    def sha256(self) -> str | None:
        """SHA-256 of the source file of a custom or installed method; None for a built-in one."""
        return sha256_of(self.file) if self.code else None

    @property
    def label(self) -> str:
        """The name in a form that fits in a file name."""
        return self.cls.lower() if ":" in self.name else self.name

    @property
    def year(self) -> str:
        """Year of the paper; of the first, if there are several."""
        found = re.search(r"\b(19|20)\d\d\b(?!\.\d)", self.paper)  # not the 2010 of 2010.09498
        return found[0] if found else ""

    @property
    def kind(self) -> str:
        """What the method needs, in one word."""
        return "training" if self.trains else "images" if self.looks else "nothing"

    @property
    def needs(self) -> str:
        return {
            "training": "images and epochs of training",
            "images": "images; epochs of training improve the result",
            "nothing": "nothing; images and epochs of training improve the result",
        }[self.kind]


@cache
def catalogue() -> dict[str, Entry]:
    """All built-in methods, by name."""
    entries = {}
    for path in sorted(FOLDER.glob("*/papers/[!_]*.py")):
        tree, family = _parsed(path), path.parent.parent.name
        (paper,) = _deriving(tree, _bases(family))  # one method per paper; other classes in the file are helpers
        entries[path.stem] = _entry(path.stem, family, path, tree, paper)
    return entries


@cache
def installed() -> tuple[dict[str, Entry], dict[str, str]]:
    """The methods of installed packages by name, and the reasons why others cannot be read."""
    entries, faults = {}, {}
    for point in entry_points(group=GROUP):
        try:
            if point.name not in catalogue():
                entries[point.name] = own(point.name, point.value)
        except UsageError as error:
            faults[point.name] = str(error)
    return entries, faults


def known() -> dict[str, Entry]:
    """All built-in and installed methods."""
    return catalogue() | installed()[0]


def own(name: str, code: str | None = None, family: str | None = None) -> Entry:
    """A custom method `file.py:Class`, or an installed method `name` defined by `code`. Raises UsageError.

    `family` is the family of the command in use, if there is one.
    """
    code = code or name
    where, _, kind = code.rpartition(":")
    path = Path(where) if where.endswith(".py") else _file_of(where)
    if path is None or not path.is_file():
        raise UsageError(f"--method {name}: {no_file(Path(where))}")
    try:
        tree = _parsed(path)
    except (OSError, ValueError, SyntaxError) as error:
        raise UsageError(f"--method {name}: {path} cannot be read as Python ({first_line(error)}).") from None
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    if kind not in classes:
        raise UsageError(f"--method {name}: {path} has no class {kind!r}{did_you_mean(kind, classes) or '.'}")
    papers = {one: {entry.cls for entry in catalogue().values() if entry.family == one} for one in FAMILIES}
    families = [one for one in FAMILIES if classes[kind] in _deriving(tree, papers[one] | _bases(one) - {"Method"}, True)]
    if not families and classes[kind] in _deriving(tree, {"Method"}, True):
        families = [str(_constants(classes[kind]).get("family", family or "prune"))]
    if not families:
        asked = [family] if family else FAMILIES
        bases = sorted({base for one in asked for base in _bases(one)})
        raise UsageError(f"--method {name}: {kind} is not a method: derive it from one of {', '.join(bases)}.")
    try:
        entry = _entry(name, families[0], path, tree, classes[kind], code)
    except (ValueError, TypeError):
        raise UsageError(
            f"--method {name}: the default of each setting must be a literal, for example power: float = 2.0."
        ) from None
    for setting in entry.settings:
        if setting.kind not in KINDS:
            known = f"{', '.join(list(KINDS)[:-1])} or {list(KINDS)[-1]}"
            raise UsageError(f"--method {name}: setting {setting.name} has the type {setting.kind}: use {known}.")
    return entry


def _file_of(module: str) -> Path | None:
    """The file of an installed module, found without importing it."""
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None:
        return None
    place = Path(spec.origin).parent.joinpath(*rest)
    return Path(spec.origin) if not rest else place / "__init__.py" if place.is_dir() else place.with_suffix(".py")


def _constants(paper: ast.ClassDef) -> dict[str, Any]:
    """The class attributes that are literals."""
    return {
        target.id: node.value.value
        for node in paper.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def _entry(name: str, family: str, path: Path, tree: ast.Module, paper: ast.ClassDef, code: str = "") -> Entry:
    text, constants = ast.get_docstring(tree) or "", _constants(paper)
    does, *lines = (ast.get_docstring(paper) or paper.name).splitlines()
    return Entry(
        name,
        family,
        (text or does).splitlines()[0],
        does,
        str(constants.get("paper", "")),
        bool(constants.get("trains", False)),
        bool(constants.get("looks", False)),
        bool(constants.get("weights", False)),
        bool(constants.get("alone", False)),
        float(constants.get("cutout", 0.0)),
        constants.get("lr"),
        constants.get("weight_decay"),
        str(constants.get("teacher_is", "none")),
        tuple(str(constants.get("tasks", "classify" if family == "distill" else "")).split()),
        bool(constants.get("labelled", False)),
        _settings(paper, lines),
        text,
        path,
        paper.name,
        code,
    )


@cache
def _bases(family: str) -> frozenset[str]:
    """The names of the base classes of a family: `Method`, and the classes of the family that derive from it.

    Found by a regular expression: parsing the shared modules of a family takes longer than parsing its papers.
    """
    texts = [path.read_text(encoding="utf-8") for path in (FOLDER / family).glob("*.py")]
    classes = {name: set(re.findall(r"\w+", bases)) for text in texts for name, bases in CLASS.findall(text)}
    names = frozenset({"Method"})
    while found := {name for name, bases in classes.items() if bases & names} - names:
        names |= found
    return names


def _deriving(tree: ast.Module, bases: Collection[str], all_of_file: bool = False) -> list[ast.ClassDef]:
    """The classes of a file that derive from one of `bases`; with `all_of_file`, also from one another."""
    found: list[ast.ClassDef] = []
    names = set(bases)
    for node in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        if any(ast.unparse(base).rpartition(".")[2] in names for base in node.bases):
            found.append(node)
            names |= {node.name} if all_of_file else set()
    return found


def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _settings(paper: ast.ClassDef, lines: list[str]) -> tuple[Setting, ...]:
    found = (re.match(r"\s*(\w+): (.+)", line) for line in lines)
    texts = {match[1]: match[2] for match in found if match}
    for node in paper.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            return tuple(
                Setting(
                    arg.arg, ast.unparse(arg.annotation or ast.Name("?")), ast.literal_eval(default), texts.get(arg.arg, "")
                )
                for arg, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
                if default is not None
            )
    return ()


def find(name: str, family: str) -> Entry:
    """The method `name`, which may have hyphens, or `file.py:Class`. Raises UsageError, which suggests the nearest name."""
    if ":" in name:
        entry = own(name, family=family)
        if entry.family != family:
            raise UsageError(f"--method {name} belongs to `compress {entry.family}`, not to `compress {family}`.")
        return entry
    methods = catalogue()
    if not {name, name.replace("-", "_")} & methods.keys():  # installed packages are searched if it is not built in
        methods = known()
        if name in (faults := installed()[1]):
            raise UsageError(faults[name])
    found = next((one for one in (name, name.replace("-", "_")) if one in methods), name)
    here = [entry.name for entry in methods.values() if entry.family == family]
    if found not in here and found in methods:
        raise UsageError(f"--method {name} belongs to `compress {methods[found].family}`. Available here: {', '.join(here)}.")
    if found not in here:
        raise UsageError(f"--method {name!r} is unknown{did_you_mean(name, here) or '.'} Available: {', '.join(here)}.")
    return methods[found]


def parse_settings(entry: Entry, pairs: list[str]) -> dict[str, Value]:
    """Parse `["mask_norms=false"]` into typed values. Raises UsageError."""
    settings: dict[str, Value] = {}
    known = {setting.name: setting for setting in entry.settings}
    for pair in pairs:
        name, equals, text = (part.strip() for part in pair.partition("="))
        if not equals:
            raise UsageError(f"--set {pair!r} is not of the form name=value.")
        if name not in known:
            listed = f" Its settings: {', '.join(known)}." if known else " It has no settings."
            raise UsageError(f"--set {pair!r}: {entry.name} has no setting {name!r}{did_you_mean(name, known) or '.'}{listed}")
        settings[name] = _typed(known[name], text)
    return settings


def written(entry: Entry, settings: Mapping[str, Value]) -> list[str] | None:
    """All settings of a method as `name=value`, with defaults for those not given; None if it has no settings."""
    values = {**{setting.name: setting.default for setting in entry.settings}, **settings}
    return [f"{name}={value}" for name, value in values.items()] or None


def _typed(setting: Setting, text: str) -> Value:
    try:
        return KINDS[setting.kind](text)
    except (KeyError, ValueError):
        raise UsageError(
            f"--set {setting.name}={text}: {setting.name} is a {setting.kind}, for example {setting.name}={setting.default}."
        ) from None


def create(entry: Entry, job: Job, settings: Mapping[str, Value]) -> Method:
    """Instantiate the method for a job. Raises UsageError for a custom class that cannot be imported or instantiated."""
    where = entry.code.rpartition(":")[0] or f"compressor.methods.{entry.family}.papers.{entry.name}"
    try:
        module = from_file(entry.file) if where.endswith(".py") else import_module(where)
        method = getattr(module, entry.cls)(job, **settings)
    except CompressError:
        raise
    except (Exception, SystemExit) as error:  # user code can raise anything
        if not entry.code:
            raise
        raise UsageError(f"--method {entry.name} cannot be created: {first_line(error)}.") from error
    return method  # type: ignore[no-any-return]  # the class is looked up by name


@contextmanager
def blaming(entry: Entry | None) -> Iterator[None]:
    """Turn an error in the code of a custom or installed method into a UsageError that names its line."""
    try:
        yield
    except CompressError:
        raise
    except Exception as error:
        if entry is None or not entry.code or type(error).__name__ == "OutOfMemoryError":  # torch's; it is not imported here
            raise
        file, frames = entry.file.resolve(), traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == file]
        if not lines:
            raise
        raise UsageError(f"--method {entry.name} failed in line {lines[-1]} of {entry.file}.\n{first_line(error)}") from error
