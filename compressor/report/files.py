"""The report's three files in a run's directory, those of several runs side by side, and reading a run's report back."""

from collections.abc import Mapping
from pathlib import Path

from compressor.errors import UsageError
from compressor.files import write_whole
from compressor.report.comparison import Comparison, comparison_to_csv, comparison_to_json
from compressor.report.html import comparison_to_html, to_html
from compressor.report.markdown import comparison_to_markdown, to_markdown
from compressor.report.read import from_json, to_json
from compressor.report.schema import Report


def write_reports(report: Report, directory: Path) -> None:
    """Write report.json, report.md and report.html. Each file is written whole or not at all.

    Raises OutputError when the directory cannot be made or written to.
    """
    texts = {
        "report.json": to_json(report),
        "report.md": to_markdown(report),
        "report.html": to_html(report),
    }
    _write_all(texts, directory)


def write_comparison(compared: Comparison, directory: Path) -> None:
    """Write comparison.md, .html, .csv and .json, and the plot, where there is one, as .svg. Each file is written whole.

    Raises OutputError when the directory cannot be made or written to.
    """
    from compressor.report.plots import accuracy_by_macs, as_file

    texts = {
        "comparison.csv": comparison_to_csv(compared),
        "comparison.md": comparison_to_markdown(compared),
        "comparison.html": comparison_to_html(compared),
        "comparison.json": comparison_to_json(compared),
    }
    if plot := accuracy_by_macs(compared):
        texts["comparison.svg"] = as_file(plot)
    _write_all(texts, directory)


def _write_all(texts: Mapping[str, str], directory: Path) -> None:
    """Each text into the file of its name."""
    for name, text in texts.items():
        _write(directory / name, text)


def _write(path: Path, text: str) -> None:
    # A path that is no valid text in the command line's encoding becomes \udc.., which is also how JSON writes it.
    write_whole(path, lambda unfinished: unfinished.write_text(text, encoding="utf-8", errors="backslashreplace"))


def read_report(path: Path) -> Report:
    """The report of a run's directory, or of a report.json.

    Raises UsageError when there is none or it cannot be read; the message names the file.
    """
    file = path / "report.json" if path.is_dir() else path
    try:
        return from_json(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{file} does not exist: give the directory of a finished run, or its report.json") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read as a report: {error}") from None
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from None
