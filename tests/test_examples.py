"""The scripts of examples/ print their help."""

import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"
PEERS = ("torchdistill", "torch_pruning")  # packages that only a comparison with them needs
PROGRAM = """
import contextlib, io, runpy, sys

scripts, before = sys.argv[1:], [*sys.path]
for script in scripts:
    sys.argv, sys.path[:] = [script, "--help"], [script.rpartition("/")[0], *before]
    try:
        with contextlib.redirect_stdout(io.StringIO()) as told:
            runpy.run_path(script, run_name="__main__")
        print(script, "takes no --help")
    except SystemExit as end:
        if end.code or "usage:" not in told.getvalue():
            print(script, end.code)
    except Exception as error:
        print(script, type(error).__name__, error)
"""


def test_every_script_prints_its_help() -> None:
    """In one process, because importing torch takes longer than all the rest."""
    texts = {str(path): path.read_text(encoding="utf-8") for path in sorted(EXAMPLES.rglob("*.py"))}
    scripts = [path for path, text in texts.items() if "ArgumentParser(" in text and "__main__" in text]
    assert len(scripts) > 15
    done = subprocess.run([sys.executable, "-c", PROGRAM, *scripts], capture_output=True, text=True, check=True)
    failed = [line for line in done.stdout.splitlines() if not any(f"No module named '{peer}" in line for peer in PEERS)]
    assert not failed, "\n".join(failed)
