"""The documentation is correct: its programs run, its commands are parsed, its links resolve.

The info string of a code block says how it is tested: ```python run``` and ```sh run``` are run, each page in an empty
directory; ```python file=NAME``` is first written to NAME. All other commands are only parsed.
"""

import ast
import re
import runpy
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer
from markdown_it import MarkdownIt
from markdown_it.token import Token
from typer.testing import CliRunner

import compressor
from compressor.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted([*(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")])
CLI: Any = typer.main.get_command(app)


def tokens(page: Path) -> list[Token]:
    return MarkdownIt().enable("table").parse(page.read_text(encoding="utf-8"))


def blocks(page: Path) -> list[tuple[str, str]]:
    """The info string and the code of each code block."""
    return [(token.info, token.content) for token in tokens(page) if token.type == "fence"]


def inline(page: Path) -> Iterator[Token]:
    for token in tokens(page):
        yield from token.children or []


def commands(text: str) -> Iterator[list[str]]:
    """The words after each `compress` in lines of shell; `...` is left out."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        while "compress" in words:
            words = words[words.index("compress") + 1 :]
            end = next((i for i, word in enumerate(words) if word in ("&&", "|", ";", ">")), len(words))
            yield [word for word in words[:end] if word != "..."]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def slug(heading: str) -> str:
    """The anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def headings(page: Path) -> set[str]:
    found = tokens(page)
    return {slug(after.content) for token, after in pairwise(found) if token.type == "heading_open"}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    targets = [str(token.attrs.get("href") or token.attrs.get("src") or "") for token in inline(page)]
    for target in targets:
        if not target or re.match(r"\w+:", target):
            continue
        place, _, anchor = target.partition("#")
        file = (page.parent / place).resolve() if place else page
        assert file.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in headings(file), f"{page.name} links to {target}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_are_understood(page: Path) -> None:
    for info, text in blocks(page):
        for words in commands(text) if info.startswith("sh") else ():
            name, command, rest = CLI.resolve_command(CLI.make_context("compress", list(words)), list(words))
            command.make_context(name, rest)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_options_in_the_text_exist(page: Path) -> None:
    parameters = [parameter for command in CLI.commands.values() for parameter in command.params]
    known = {option for parameter in parameters for option in (*parameter.opts, *parameter.secondary_opts)}
    known |= {"--help", "--version"}
    for token in inline(page):
        if token.type != "code_inline" or not token.content.startswith(("--", "compress ")):
            continue
        missing = set(re.findall(r"(?<!\S)--[a-z][a-z-]*", token.content)) - known
        assert not missing, f"{page.name}: {token.content}"
        command = re.match(r"compress ([a-z]+)", token.content)
        assert command is None or command[1] in CLI.commands, f"{page.name}: {token.content}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_programs_are_python(page: Path) -> None:
    for info, text in blocks(page):
        if info.startswith("python"):
            ast.parse(text)


RUNNABLE = [page for page in PAGES if any(" run" in info for info, _ in blocks(page))]


@pytest.mark.parametrize("page", RUNNABLE, ids=name_of)
def test_programs_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    names: dict[str, Any] = {}
    for info, text in blocks(page):
        language, *marks = info.split() or [""]
        for mark in marks:
            if mark.startswith("file="):
                Path(mark.removeprefix("file=")).write_text(text, encoding="utf-8")
        if "run" not in marks:
            continue
        if language == "python":
            exec(compile(text, f"{page.name}, a program", "exec"), names)
        for words in commands(text) if language == "sh" else ():
            result = CliRunner().invoke(app, words)
            assert result.exit_code == 0, f"compress {shlex.join(words)}\n{result.output}"


def test_generated_pages_are_up_to_date() -> None:
    pages = runpy.run_path(str(ROOT / "docs" / "generate.py"))["pages"]()
    for page, text in pages.items():
        assert page.exists() and page.read_text(encoding="utf-8") == text, "run: python docs/generate.py"
    assert {page for page in PAGES if page.parent.name == "methods"} <= pages.keys(), "pages of methods that no longer exist"


def test_every_command_and_public_name_is_told() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert not [name for name in CLI.commands if f"compress {name}" not in text]
    assert not [name for name in compressor.__all__ if f"`{name}`" not in text]
