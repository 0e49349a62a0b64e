"""The demo: it trains, prunes and reports, and its result is loaded without naming its code."""

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

import compressor
from compressor import demo
from compressor.errors import OutputError
from compressor.runs.run_directory import RESULTS


def test_the_demo_does_the_whole_job_and_says_how_to_repeat_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "EPOCHS", 2)
    monkeypatch.setattr(demo, "FINE_TUNING", 1)
    monkeypatch.chdir(tmp_path)
    shown = io.StringIO()
    report = demo.run(Path("demo"), Console(file=shown, width=200))
    assert report.baseline.scores and report.baseline.scores[0].n == 359
    assert report.target.reached == pytest.approx(0.5, abs=0.01)
    assert set(RESULTS) <= {path.name for path in Path("demo/half").iterdir()}
    assert f"\n$ {report.command}\n" in shown.getvalue()
    assert report.command == (
        "compress prune demo/digits.pt --arch compressor.demo:DigitsNet --data digits --rate 0.5 --epochs 1 --out demo/half"
    )
    assert compressor.load("demo/half")(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    with pytest.raises(OutputError, match="demo holds a demo already: --force replaces it"):
        demo.run(Path("demo"), Console(file=shown))


def test_the_demos_network_answers_with_ten_digits() -> None:
    assert demo.DigitsNet(4)(torch.zeros(3, 1, 8, 8)).shape == (3, 10)
