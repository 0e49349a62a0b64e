"""Custom methods: the examples of docs/own_methods.md run, for each family; errors in one are reported in one line."""

import json
import re
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from small import compress, interrupt_at

from compressor.methods import catalogue
from compressor.report import read_report
from compressor.training.train import Training

PAGE = Path(__file__).parents[2] / "docs" / "own_methods.md"
SHOWN = {
    found[1]: found[2]
    for found in re.finditer(r"```python\n# (\w+\.py)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
}
NET = ("net.pt", "--arch", "net.py:Net", "--data", "digits", "--device", "cpu", "-q")
PRUNE = ("prune", *NET, "--rate", "0.5", "--method", "own/outliers.py:Outliers")


@pytest.fixture(autouse=True)
def own(project: Path) -> Iterator[None]:
    """The methods of the page, in a folder of the project."""
    for name, text in SHOWN.items():
        (project / "own").mkdir(exist_ok=True)
        (project / "own" / name).write_text(text)
    yield
    catalogue.installed.cache_clear()


def refused(*arguments: str) -> str:
    result = compress(*arguments)
    assert result.exit_code == 2, result.output
    return result.stderr


def test_a_criterion_prunes_with_its_settings() -> None:
    result = compress(*PRUNE, "--epochs", "0", "--set", "power=2", "--out", "half")
    assert result.exit_code == 0, result.output
    report = read_report(Path("half"))
    assert report.method == "own/outliers.py:Outliers" and report.settings["set"] == "power=2.0"
    assert abs(report.target.reached - 0.5) < 0.02
    assert len(str(report.settings["method_sha256"])) == 64


def test_results_lie_under_the_name_of_the_class() -> None:
    assert compress(*PRUNE, "--epochs", "0").exit_code == 0
    assert Path("runs/net-outliers/report.json").is_file()


def test_a_low_rank_method_factors_as_it_says() -> None:
    result = compress("lowrank", *NET, "--rate", "0.2", "--epochs", "0", "--method", "own/inputs.py:Inputs", "--out", "low")
    assert result.exit_code == 0, result.output
    chained = [layer for layer in read_report(Path("low")).layers if layer.factors]
    assert chained and all(layer.group.startswith(("input, rank", "linear, rank")) for layer in chained)


def test_a_distillation_trains_by_its_terms() -> None:
    teacher = ("--teacher", *NET, "--rate", "0.5", "--epochs", "1")
    result = compress("distill", *teacher, "--method", "own/logits.py:Logits", "--set", "mse=2", "--out", "student")
    assert result.exit_code == 0, result.output
    assert read_report(Path("student")).epochs[0].losses.keys() == {"cross_entropy", "mse"}
    alone = ("--model", "net.pt", "--student-arch", "net.py:Net", "--data", "digits", "--epochs", "1")
    assert "needs a teacher" in refused("distill", *alone, "--method", "own/logits.py:Logits")


def test_it_is_resumed_unless_its_file_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (*PRUNE, "--epochs", "3", "--out", "half")
    with monkeypatch.context() as patched:
        patched.setattr(Training, "_step", interrupt_at(16, Training._step))
        assert compress(*arguments).exit_code == 130
    file = Path("own/outliers.py")
    text = file.read_text()
    file.write_text(text + "\n# changed\n")
    assert "started with other settings: method_sha256 was" in refused(*arguments, "--resume")
    file.write_text(text)
    result = compress(*arguments, "--resume")
    assert result.exit_code == 0, result.output


def test_methods_are_compared_and_come_out_of_files_of_settings() -> None:
    methods = ("--methods", "magnitude,own/outliers.py:Outliers", "--set", "own/outliers.py:Outliers.power=3")
    result = compress("compare", *NET[:-1], "--rates", "0.5", "--epochs", "0", *methods, "--out", "both", "--json")
    assert result.exit_code == 0, result.output
    assert {row["method"] for row in json.loads(result.stdout)["rows"]} == {"magnitude", "own/outliers.py:Outliers"}
    assert Path("both/outliers-0.5-seed0/report.json").is_file()
    Path("compress.toml").write_text('[prune]\nmethod = "own/outliers.py:Outliers"\nset = ["power=2"]\n')
    assert compress("prune", *NET, "--rate", "0.4", "--epochs", "0", "--out", "again").exit_code == 0
    assert read_report(Path("again")).settings["set"] == "power=2.0"


def test_a_run_s_settings_make_the_same_run() -> None:
    assert compress(*PRUNE, "--epochs", "0", "--out", "half").exit_code == 0
    result = compress("run", "half/config.toml", "--out", "pipe", "-q")
    assert result.exit_code == 0, result.output
    assert read_report(Path("pipe")).compressed.macs == read_report(Path("half")).compressed.macs


def test_it_is_described_as_built_in_ones_are() -> None:
    told = compress("methods", "own/outliers.py:Outliers").stdout
    assert "Usage: compress prune MODEL --method own/outliers.py:Outliers" in told
    assert "Prunes the channels without large weights." in told and "exponent of the scores" in told


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ("own/outlier.py:Outliers", "there is no file own/outlier.py; did you mean 'outliers.py'?"),
        ("own/outliers.py:Outlier", "own/outliers.py has no class 'Outlier'; did you mean 'Outliers'?"),
        ("own/logits.py:Logits", "belongs to `compress distill`, not to `compress prune`"),
        ("net.py:Net", "Net is not a method: derive it from one of FilterPruning, Method, OneShot, SoftPruning"),
        ("bad.py:Bad", "bad.py cannot be read as Python"),
        ("odd.py:Odd", "setting power has the type list: use bool, int, float or str"),
        ("loud.py:Loud", "loud.py:Loud cannot be created: ZeroDivisionError"),
        ("late.py:Late", "late.py:Late failed in line 6 of late.py.\nKeyError: 'no such group'"),
    ],
)
def test_what_is_wrong_is_told(project: Path, method: str, told: str) -> None:
    head = "from compressor.methods.prune.filters import OneShot\n"
    (project / "bad.py").write_text("class Bad(:\n")
    (project / "odd.py").write_text(f"{head}class Odd(OneShot):\n    def __init__(self, job, *, power: list = 1): pass\n")
    (project / "loud.py").write_text(f"{head}1 / 0\nclass Loud(OneShot): pass\n")
    late = '    """Fails."""\n\n    def scores(self, channels):\n        raise KeyError("no such group")\n'
    (project / "late.py").write_text(f"{head}class Late(OneShot):\n{late}")
    assert told in refused("prune", *NET, "--rate", "0.5", "--epochs", "0", "--method", method)


def test_installed_packages_offer_methods_that_are_listed_unimported(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = project / "offering"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('imported too early')\n")
    (package / "outliers.py").write_text(SHOWN["outliers.py"])
    points = [EntryPoint(name, "offering.outliers:Outliers", catalogue.GROUP) for name in ("outliers", "magnitude")]
    monkeypatch.setattr(catalogue, "entry_points", lambda group: points)
    monkeypatch.syspath_prepend(str(project))
    catalogue.installed.cache_clear()
    assert "outliers" in compress("methods").stdout and "offering" not in sys.modules
    assert catalogue.find("magnitude", "prune").code == ""  # a built-in name wins
    (package / "__init__.py").write_text("")
    result = compress("prune", *NET, "--rate", "0.5", "--epochs", "0", "--method", "outliers", "--out", "half")
    assert result.exit_code == 0, result.output
    assert read_report(Path("half")).method == "outliers"
    catalogue.installed.cache_clear()
    (package / "outliers.py").unlink()
    listed = compress("methods")
    assert listed.exit_code == 0 and "warning: --method outliers: there is no file offering.outliers" in listed.stderr
    assert "there is no file offering.outliers" in refused("prune", *NET, "--rate", "0.5", "--method", "outliers")
