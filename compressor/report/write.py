"""Write the report files of a run, and those of a comparison.

write_reports(report, directory)         the report files of a run
write_pages(path, directory)             rewrite the pages of a run, and its plots as CSV
compare_runs(paths, directory)           compare finished runs
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from compressor.errors import OutputError
from compressor.files import write_whole
from compressor.report.comparison import Comparison, collect, comparison_to_csv, comparison_to_json
from compressor.report.html import comparison_to_html, to_html
from compressor.report.markdown import comparison_to_markdown, to_markdown
from compressor.report.read import read_report, report_file, to_json
from compressor.report.schema import Report

EXAMPLES = "examples.png"  # test images and what becomes of them, if there is something to look at
LARGEST = 2**24  # bytes of this picture in a page


def write_reports(report: Report, directory: Path) -> None:
    """Write report.json, report.md and report.html. Each file is written atomically.

    Raises OutputError if the directory cannot be created or written to.
    """
    texts = {
        "report.json": to_json(report),
        "report.md": to_markdown(report),
        "report.html": to_html(report, examples=_examples(directory)),
    }
    _write_all(texts, directory)


def _examples(directory: Path) -> bytes | None:
    """The picture of test images, if the run has one."""
    path = directory / EXAMPLES
    return path.read_bytes() if path.is_file() and path.stat().st_size <= LARGEST else None


def write_pages(path: Path, directory: Path | None) -> tuple[Report, Path]:
    """Rewrite report.md and report.html of the run at `path`, and write the data of every plot to plots/NAME.csv.

    They go into `directory`, or the run's own; report.json is never written. Returns the report and the directory of its pages.
    Raises UsageError if there is no report, OutputError if the directory cannot be written to or belongs to another run.
    """
    from compressor.report.plots import plots

    report, own = read_report(path), path if path.is_dir() else path.parent
    directory = own if directory is None else directory
    if (directory / "report.json").exists() and not (directory / "report.json").samefile(report_file(path)):
        raise OutputError(f"{directory} contains the report of another run, whose page would be lost: use another --out.")
    sections = plots(report)
    texts = {"report.md": to_markdown(report), "report.html": to_html(report, sections, _examples(own))}
    _write_all(texts | {f"plots/{plot.name}.csv": plot.csv for found in sections.values() for plot in found}, directory)
    return report, directory


def compare_runs(paths: Sequence[Path], directory: Path) -> Comparison:
    """Compare finished runs, and write the files of `write_comparison`.

    Duplicate paths count once; runs whose directories have the same name are named by as much of the path as is needed.
    Raises UsageError if one is not a finished run, OutputError if the directory cannot be written to.
    """
    given: dict[Path, Path] = {}
    for path in paths:
        given.setdefault(report_file(path).resolve(), path)
    reports = dict(zip(_names(list(given)), map(read_report, given.values()), strict=True))
    beside = {name: file.with_name("report.html") for name, file in zip(reports, given, strict=True)}
    pages = {name: os.path.relpath(page, directory.resolve()) for name, page in beside.items() if page.exists()}
    compared = collect(reports, pages=pages)
    write_comparison(compared, directory)
    return compared


def _names(files: Sequence[Path]) -> list[str]:
    """For each report the name of its directory, with as many parent directories as make it unique."""
    whole = [(file.parent if file.name == "report.json" else file).parts for file in files]

    def name(own: tuple[str, ...]) -> str:
        alone = (n for n in range(1, len(own)) if sum(other[-n:] == own[-n:] for other in whole) == 1)
        return "/".join(own[-next(alone, len(own)) :])

    return [name(own) for own in whole]


def write_comparison(compared: Comparison, directory: Path) -> None:
    """Write comparison.md, .html, .csv and .json, and each plot as .svg and .csv. Each file is written atomically.

    Raises OutputError if the directory cannot be created or written to.
    """
    from compressor.report.plots import accuracy_and_cost, as_file

    plots = accuracy_and_cost(compared)
    texts = {
        "comparison.csv": comparison_to_csv(compared),
        "comparison.md": comparison_to_markdown(compared),
        "comparison.html": comparison_to_html(compared, plots),
        "comparison.json": comparison_to_json(compared),
    }
    for plot in plots:
        texts |= {f"{plot.name}.svg": as_file(plot), f"{plot.name}.csv": plot.csv}
    _write_all(texts, directory)


def _write_all(texts: Mapping[str, str], directory: Path) -> None:
    """Write each text to the file of its name."""
    for name, text in texts.items():
        _write(directory / name, text)


def _write(path: Path, text: str) -> None:
    # A path that is not valid in the encoding of the command line has surrogates; \udc.. is also how JSON writes them.
    write_whole(path, lambda unfinished: unfinished.write_text(text, encoding="utf-8", errors="backslashreplace"))
