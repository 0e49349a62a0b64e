"""The files of a report: written whole, read back, and quick to import."""

import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import example
import pytest

from compressor.errors import CompressError, OutputError, UsageError
from compressor.report import from_json, read_report, to_markdown, write_reports
from compressor.report.write import write_pages


def test_three_files_and_nothing_else(tmp_path: Path) -> None:
    report = example.example()
    write_reports(report, tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["report.html", "report.json", "report.md"]
    assert (tmp_path / "run" / "report.md").read_text(encoding="utf-8") == to_markdown(report)
    assert read_report(tmp_path / "run") == read_report(tmp_path / "run" / "report.json") == report


def test_files_have_the_usual_permissions(tmp_path: Path) -> None:
    write_reports(example.bare(), tmp_path)
    plain = tmp_path / "plain"
    plain.touch()
    assert stat.S_IMODE((tmp_path / "report.html").stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    write_reports(example.bare(), tmp_path)
    old = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(CompressError, match="seconds is nan"):
        write_reports(replace(example.example(), seconds=float("nan")), tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == old


def test_a_place_that_cannot_be_written_to_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"report\.json could not be written"):
        write_reports(example.bare(), tmp_path / "file")


def test_a_name_in_the_way_leaves_nothing_unfinished(tmp_path: Path) -> None:
    (tmp_path / "report.json").mkdir()
    with pytest.raises(OutputError):
        write_reports(example.bare(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_a_path_that_is_no_text_survives_in_a_form_that_can_be_printed(tmp_path: Path) -> None:
    report = replace(example.bare(), model="caf\udce9.pt")
    write_reports(report, tmp_path)
    assert read_report(tmp_path) == replace(report, model=r"caf\udce9.pt")


def test_a_report_that_is_endless_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "report.json").symlink_to("/dev/zero")
    with pytest.raises(UsageError, match=r"report\.json cannot be read as a report: It is not a regular file"):
        read_report(tmp_path)


def test_a_missing_report_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"report\.json does not exist: give the directory of a finished run"):
        read_report(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"), [(b"{}", "the key"), (b"\xff\xfe", "cannot be read as a report: it is not a text file")]
)
def test_a_broken_report_is_told_with_its_file(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "report.json").write_bytes(content)
    with pytest.raises(UsageError, match=rf"report\.json.*{message}"):
        read_report(tmp_path)


@pytest.mark.parametrize("version", [0, 3])
def test_another_version_is_refused(version: int) -> None:
    with pytest.raises(UsageError, match=f"has version {version}"):
        from_json(f'{{"version": {version}}}')


def test_pages_are_written_again_beside_the_report_or_elsewhere(tmp_path: Path) -> None:
    report = replace(example.pipeline(), layers=[], epochs=[])
    write_reports(report, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    assert write_pages(tmp_path / "run", tmp_path / "pages") == (report, tmp_path / "pages")
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
    assert {path.name for path in (tmp_path / "pages").iterdir()} == {"report.html", "report.md", "plots"}
    assert {path.name for path in (tmp_path / "pages" / "plots").iterdir()} == {"what-is-left.csv", "stages.csv"}
    assert "160112" in (tmp_path / "pages" / "plots" / "stages.csv").read_text()
    for name in ("report.html", "report.md"):
        (tmp_path / "run" / name).unlink()
    write_pages(tmp_path / "run" / "report.json", None)
    assert {name: (tmp_path / "run" / name).read_bytes() for name in before} == before


def test_the_pages_of_another_run_are_not_replaced(tmp_path: Path) -> None:
    for name in ("run", "other"):
        write_reports(example.bare(), tmp_path / name)
    with pytest.raises(OutputError, match="contains the report of another run"):
        write_pages(tmp_path / "run", tmp_path / "other")


def test_importing_and_printing_a_report_needs_neither_torch_nor_matplotlib(tmp_path: Path) -> None:
    write_reports(example.example(), tmp_path)
    code = (
        "import sys; from pathlib import Path; from rich.console import Console; import compressor.report as r; "
        "report = r.read_report(Path(sys.argv[1])); r.print_report(report, Console()); r.to_markdown(report); "
        "assert not {'torch', 'matplotlib'} & sys.modules.keys(); "
        "r.to_html(report); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True)
