"""Help fits on a screen and a half and is complete, and shells complete commands, options and methods."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from small import compress

from compressor.cli import app
from compressor.cli.help import RARE

GOLDEN = Path(__file__).parent / "help"
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
LONG = ["prune", "lowrank", "distill", "compare"]


def shown(monkeypatch: pytest.MonkeyPatch, *arguments: str, columns: int = 80) -> str:
    """What `compress ARGUMENTS` prints on a terminal of so many columns."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", columns)
    result = compress(*arguments)
    assert result.exit_code == 0, result.output
    return "\n".join(line.rstrip() for line in result.stdout.splitlines()) + "\n"


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_is_as_it_was_reviewed(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """`python tests/cli/test_help.py` rewrites these files: review them before they are committed."""
    golden = GOLDEN / f"{name or 'compress'}.txt"
    assert shown(monkeypatch, *name.split(), "--help") == golden.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", LONG)
def test_the_first_help_fits_on_a_screen_and_a_half(name: str) -> None:
    text = (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 64 and max(map(len, text.splitlines())) <= 80
    for option in "--data --arch --epochs --batch-size --lr --optimizer --weight-decay --recipe --amp --help-all".split():
        assert f" {option} " in text
    assert ("--seeds " if name == "compare" else "--seed ") in text and "--momentum" not in text


@pytest.mark.parametrize("name", COMMANDS)
def test_no_text_of_any_help_is_lost(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Rich takes [brackets] for markup, and swallows them."""
    command = COMMANDS[name]
    has_more = any(param.name == "help_all" for param in command.params)
    text = "".join(shown(monkeypatch, name, "--help-all" if has_more else "--help", columns=600).split())
    for param in command.params:
        told = (getattr(param, "help", None) or "").replace("\\[", "[")
        assert "".join(told.split()) in text, param.name
        names = [option for option in param.opts if option.startswith("--")]
        assert not names or names[0] in text
    assert "--most" not in text
    assert has_more == (name in LONG) == bool(has_more and RARE & {param.name for param in command.params})


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("compress pru", ["prune"]),
        ("compress prune --max", ["--max-rate", "--max-value"]),
        ("compress prune --method pg", ["pgmpf"]),
        ("compress distill --method h", ["hsakd", "hssakd"]),
        ("compress lowrank --method pg", []),
    ],
)
def test_a_shell_completes(words: str, found: list[str]) -> None:
    program = [sys.executable, "-c", "import sys; sys.argv = ['compress']; from compressor.cli import main; main()"]
    asked = {"_COMPRESS_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    done = subprocess.run(program, env={**os.environ, **asked}, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == found, done.stderr


def test_on_a_terminal_the_slow_import_is_announced(tmp_path: Path) -> None:
    """And nowhere else."""
    program = [sys.executable, "-m", "compressor", "inspect", str(tmp_path / "none.pt")]
    reading, writing = os.openpty()
    done = subprocess.run(program, stderr=writing, stdout=subprocess.DEVNULL, timeout=120)
    told = os.read(reading, 4096).decode().splitlines()
    os.close(reading), os.close(writing)
    assert done.returncode == 2 and told[0] == "loading PyTorch ..." and told[1].startswith("error: ")
    piped = subprocess.run(program, capture_output=True, text=True, timeout=120)
    assert piped.stderr.startswith("error: ") and piped.stdout == ""


def main() -> None:
    GOLDEN.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name in ["", *COMMANDS]:
            (GOLDEN / f"{name or 'compress'}.txt").write_text(shown(monkeypatch, *name.split(), "--help"), encoding="utf-8")


if __name__ == "__main__":
    main()
