"""What methods there are, read from their files as text: so that listing them never imports torch.

A method's name is its file's name. Its title is the first line of the file; its class's docstring says what it does and lists
its settings, which are the keyword-only arguments of `__init__`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from compressor.training.method import Job, Method

Value = str | float | int | bool
FOLDER = Path(__file__).parent  # of a folder a family, with its papers in FAMILY/papers


@dataclass(frozen=True)
class Setting:
    """One setting of a method."""

    name: str
    kind: str
    default: Value
    text: str


@dataclass(frozen=True)
class Entry:
    """One method. Its class says `trains = True` and the like where they hold, and what its paper trained with."""

    name: str
    family: str  # prune, lowrank, distill
    title: str
    does: str
    paper: str
    trains: bool  # whether the method does nothing without epochs of training
    looks: bool  # whether it looks at training images before it trains
    weights: bool  # whether it sets single weights to zero, and takes no channels away
    alone: bool  # whether only one process can train it, for what it keeps of a batch is more than a gradient
    cutout: float  # the side of the square that its paper hid in small training images, as a share of the image's; 0: none
    lr: float | None  # of SGD; None: the paper has none of its own
    weight_decay: float | None  # likewise
    teacher_is: str  # to a method of distillation: needed, optional, or none where networks teach each other
    settings: tuple[Setting, ...]
    text: str  # the whole docstring of its file

    @property
    def year(self) -> str:
        """Of its paper, the first if there are several."""
        found = re.search(r"\b(19|20)\d\d\b(?!\.\d)", self.paper)  # 2010.09498 is no year
        return found[0] if found else ""

    @property
    def kind(self) -> str:
        """What it needs, in a word."""
        return "training" if self.trains else "images" if self.looks else "nothing"

    @property
    def needs(self) -> str:
        return {
            "training": "images and epochs of training",
            "images": "images; epochs make it better",
            "nothing": "nothing; images and epochs make it better",
        }[self.kind]


@cache
def catalogue() -> dict[str, Entry]:
    """All methods by name."""
    files = sorted(FOLDER.glob("*/papers/[!_]*.py"))
    return {path.stem: _entry(path) for path in files}


def _entry(path: Path) -> Entry:
    tree, family = _parsed(path), path.parent.parent.name
    text = ast.get_docstring(tree) or ""
    (paper,) = _deriving(tree, _bases(family))  # one paper, one method; its other classes are no methods
    constants: dict[str, Any] = {
        target.id: node.value.value
        for node in paper.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    does, *lines = (ast.get_docstring(paper) or "").splitlines()
    return Entry(
        path.stem,
        family,
        text.splitlines()[0],
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
        _settings(paper, lines),
        text,
    )


@cache
def _bases(family: str) -> frozenset[str]:
    """The names of what a paper of a family derives from: `Method`, and the family's own classes that derive from it."""
    trees, names = [_parsed(path) for path in sorted((FOLDER / family).glob("*.py"))], frozenset({"Method"})
    while found := {node.name for tree in trees for node in _deriving(tree, names)} - names:
        names |= found
    return names


def _deriving(tree: ast.Module, bases: Collection[str]) -> list[ast.ClassDef]:
    """The classes of a file that have one of `bases`."""
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    return [node for node in classes if any(isinstance(base, ast.Name) and base.id in bases for base in node.bases)]


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
    """The method called `name`, which may have hyphens. Raises UsageError with the nearest name."""
    name = name.replace("-", "_")
    known = [entry.name for entry in catalogue().values() if entry.family == family]
    if name not in known and name in catalogue():
        raise UsageError(f"--method {name} is of `compress {catalogue()[name].family}`. Here: {', '.join(known)}.")
    if name not in known:
        raise UsageError(f"--method {name!r} is not known{did_you_mean(name, known) or '.'} Known: {', '.join(known)}.")
    return catalogue()[name]


def parse_settings(entry: Entry, pairs: list[str]) -> dict[str, Value]:
    """`["mask_norms=false"]` -> the settings that differ from the defaults, typed. Raises UsageError."""
    settings: dict[str, Value] = {}
    known = {setting.name: setting for setting in entry.settings}
    for pair in pairs:
        name, equals, text = (part.strip() for part in pair.partition("="))
        if not equals:
            raise UsageError(f"--set {pair!r} is not of the form name=value.")
        if name not in known:
            listed = f" It has: {', '.join(known)}." if known else " It has no settings."
            raise UsageError(f"--set {pair!r}: {entry.name} has no setting {name!r}{did_you_mean(name, known) or '.'}{listed}")
        settings[name] = _typed(known[name], text)
    return settings


def written(entry: Entry, settings: Mapping[str, Value]) -> list[str] | None:
    """All settings of a method as `name=value`, those that were not given with their defaults; None when it has none."""
    values = {**{setting.name: setting.default for setting in entry.settings}, **settings}
    return [f"{name}={value}" for name, value in values.items()] or None


def _typed(setting: Setting, text: str) -> Value:
    try:
        if setting.kind == "bool":
            return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[text.lower()]
        value: Value = {"int": int, "float": float, "str": str}[setting.kind](text)
        return value
    except (KeyError, ValueError):
        raise UsageError(
            f"--set {setting.name}={text}: {setting.name} is a {setting.kind}, for example {setting.name}={setting.default}."
        ) from None


def create(entry: Entry, job: Job, settings: Mapping[str, Value]) -> Method:
    """The method itself, for a job."""
    from compressor.training.method import Method

    module = import_module(f"compressor.methods.{entry.family}.papers.{entry.name}")
    own = (kind for kind in vars(module).values() if isinstance(kind, type) and kind.__module__ == module.__name__)
    (paper,) = (kind for kind in own if issubclass(kind, Method))
    method: Any = paper(job, **settings)
    return method  # type: ignore[no-any-return]  # a class found by name
