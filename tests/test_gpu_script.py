"""examples/gpu: all of it on the CPU, as little as shows that it works; and what happens to rows when a program dies."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GPU = ROOT / "examples/gpu"
sys.path[:0] = [str(GPU), str(ROOT / "docs")]
from on_gpu import tables  # noqa: E402  # these lie there
from rows import Row, parse, read  # noqa: E402
from run import Results, Runner, Task, expected  # noqa: E402

PROGRAMS = {
    "prints.py": "emit('one', {'ms': 1.5}, 0.1)",
    "hangs.py": "emit('before it hung', {}, 0.1); import time; time.sleep(60)",
    "dies.py": "emit('before it died', {}, 0.1); import os; os.abort()",
    "raises.py": "raise MemoryError('CUDA out of memory')",
    "silent.py": "pass",
    "garbles.py": "print('ROW {\"name\": 3'); print('ROW {\"name\": 3}'); emit('after', {}, 0.1)",
    "last.py": "emit('last', {}, 0.1)",
}


@pytest.fixture
def found(tmp_path: Path) -> list[Row]:
    """The rows of all programs, one after the other."""
    for name, code in PROGRAMS.items():
        (tmp_path / name).write_text(f"from rows import emit\n{code}\n")
    runner = Runner(Results(tmp_path / "out"), [])
    tasks = [Task("smoke", str(tmp_path / name), (name,), 2.0 if name == "hangs.py" else 30.0) for name in PROGRAMS]
    runner.all(tasks, 1, time.monotonic() + 100)
    runner.all([Task("smoke", str(tmp_path / "last.py"), ("too late",), 30.0)], 1, time.monotonic())
    return read(tmp_path / "out/rows.jsonl")


def test_a_program_that_dies_leaves_its_error_and_the_rows_of_the_others(found: list[Row]) -> None:
    assert [(row.name, row.status) for row in found] == [
        ("one", "ok"),
        ("before it hung", "ok"),
        ("hangs.py", "timed out"),
        ("before it died", "ok"),
        ("dies.py", "failed"),
        ("raises.py", "failed"),
        ("silent.py", "failed"),
        ("after", "ok"),
        ("last", "ok"),
        ("too late", "not run"),
    ]
    assert found[0].values == {"ms": 1.5}
    assert "CUDA out of memory" in str(found[5].error)
    assert all(row.seconds < 30 for row in found)


def test_what_is_no_row_is_refused() -> None:
    row = {"section": "smoke", "name": "a", "status": "ok", "seconds": 1, "values": {"ms": 1.0}, "error": None}
    assert parse(row).values == {"ms": 1.0}
    for wrong in (
        {"section": "smoking"},
        {"name": 3},
        {"status": "fine"},
        {"status": "failed"},  # without an error
        {"error": "none"},  # of a row that is ok
        {"seconds": "1"},
        {"values": {"ms": [1.0]}},
        {"unknown": 1},
    ):
        with pytest.raises(ValueError):
            parse(row | wrong)
    with pytest.raises(ValueError):
        parse({"section": "smoke"})


def test_results_are_never_written_over_others(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("mine\n")
    with pytest.raises(SystemExit, match="exists"):
        Results(tmp_path)
    assert (tmp_path / "rows.jsonl").read_text() == "mine\n"


def test_the_page_shows_each_row_and_names_those_that_are_missing(tmp_path: Path) -> None:
    values = {"top1_before": 0.91, "top1_after": 0.9, "images_per_s": 1234.5, "peak_mib": 700.25}
    rows = [
        Row("smoke", "quantize", "ok", 3.0, values),
        Row("smoke", "nccl", "failed", 1.0, {}, "Traceback\nRuntimeError: no NCCL"),
        Row("latency", "resnet18 batch 1, PyTorch eager", "ok", 2.0, {"original_ms": 2.0, "pruned_ms": 1.25}),
    ]
    (tmp_path / "rows.jsonl").write_text("".join(f"{row.line}\n" for row in rows))
    page = tables(tmp_path / "rows.jsonl")
    assert "| quantize | ok, 3.0 s | 91.00 % → 90.00 % | 1,234.5 | 700.2 |" in page
    assert "| nccl | failed: RuntimeError: no NCCL |" in page
    assert "| resnet18 batch 1, PyTorch eager | ok, 2.0 s | 2.000 | 1.250 |  |  |" in page
    assert page.count("not yet run") == len(expected()) - len(rows)
    assert tables(tmp_path / "none.jsonl").count("not yet run") == len(expected())


@pytest.mark.timeout(1800)
def test_all_of_it_runs_on_a_cpu(tmp_path: Path) -> None:
    command = [str(GPU / "run.sh"), "1600", "--out", str(tmp_path / "out"), "--device", "cpu", "--tiny", "--jobs", "2"]
    done = subprocess.run(command, env=os.environ | {"PYTHON": sys.executable}, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = read(tmp_path / "out/rows.jsonl")
    log = (tmp_path / "out/log.txt").read_text()
    told = {row.name: row for row in rows}
    assert len(told) == len(rows), "a row stands there twice"
    bad = [row.line for row in rows if row.status not in ("ok", "unavailable")]
    assert not bad, "\n".join([*bad, log[-3000:]])
    gpu_only = {"prune pgmpf fp16", "nccl", "onnx runtime cuda"}
    too_much = {"demo", "resnet20 pgmpf", "resnet20 hsakd", "lowrank cp", "prune taylor"}
    too_much |= {"asrfp seed 0", "ghfp seed 0", "default seed 0", "dense seed 0"}
    assert {name for name, row in told.items() if row.status == "unavailable"} == gpu_only | too_much
    smoke = {name for section, name in expected() if section == "smoke"}
    assert smoke <= told.keys()
    for section in ("machine", "recipe"):
        assert {name for of, name in expected() if of == section} <= told.keys()
    assert told["resume after a kill"].values["largest_difference"] == 0
    assert told["same result as the cpu"].values["largest_difference_of_the_networks"] == 0
    timed = told["digitsnet batch 2, PyTorch compiled"].values
    assert not any("batch 32" in name for name, row in told.items() if row.section == "latency"), "none ran"
    assert all(float(timed[f"{variant}_ms"] or 0) > 0 for variant in ("original", "pruned", "low_rank", "both"))
    assert json.loads(rows[0].line)["section"] == "machine"
