"""Settings from compress.toml and pyproject.toml: their meaning, their precedence, and errors."""

import json
import tomllib
from pathlib import Path

import pytest
import typer
from small import compress

from compressor.cli import app
from compressor.cli.config_file import FILE, STEPS, Configuration, commands, json_schema, options_of
from compressor.errors import UsageError
from compressor.methods.catalogue import catalogue
from compressor.report import read_report

WHOLE = """\
model = "net.pt"
arch = "net.py:Net"
data = "digits"
batch-size = 64

[prune]
method = "sfp"

[[steps]]
do = "prune"
rate = 0.5
epochs = 1

[[steps]]
do = "check"
budget = ["macs<=60%"]
"""


def configuration(text: str) -> Configuration:
    return Configuration(Path(FILE), text)


def test_a_command_gets_the_shared_settings_and_its_own() -> None:
    found = configuration(WHOLE)
    shared = {"model": "net.pt", "arch": "net.py:Net", "data": "digits", "batch_size": "64"}
    assert found.of("prune") == shared | {"method": "sfp"}
    assert found.of("lowrank") == shared
    assert found.of("inspect") == {"model": "net.pt", "arch": "net.py:Net"}
    assert found.of("distill") == {"arch": "net.py:Net", "data": "digits", "batch_size": "64"}  # --model is its student there
    assert configuration('teacher = "none"').of("prune") == {"teacher": "none"}
    assert configuration('teacher = "none"').of("distill") == {}  # where it is a file


def test_a_step_has_its_own_settings_above_those_of_its_command() -> None:
    first, second = configuration(WHOLE).steps
    assert (first.command, first.own) == ("prune", {"rate", "epochs"})
    assert first.settings["method"] == "sfp" and first.settings["epochs"] == "1"
    assert second.settings == {"budget": ["macs<=60%"]}


def test_the_text_of_a_configuration_is_equivalent() -> None:
    found = configuration(WHOLE)
    assert tomllib.loads(found.text) == tomllib.loads(WHOLE)
    assert configuration(found.text).steps == found.steps


def test_lists_are_repeated_options_or_comma_separated_values() -> None:
    found = configuration('keep = "head"\nmean = [0.5, 0.25, 1]\nset = ["a=1", "b=2"]\naugment = false').of("prune")
    assert found == {"keep": ["head"], "mean": "0.5,0.25,1", "set_": ["a=1", "b=2"], "augment": "false"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("epoch = 3", "compress.toml, line 1: there is no setting 'epoch'; did you mean 'epochs'?"),
        ("\n\nepochs = 'x'", "compress.toml, line 3: epochs must be a whole number; found 'x'."),
        ("epochs = 2.5", "compress.toml, line 1: epochs must be a whole number; found 2.5."),
        ("epochs = true", "compress.toml, line 1: epochs must be a whole number; found True."),
        ("epochs = [1]", "compress.toml, line 1: epochs must be a whole number, not a list."),
        ("ema = 1", "compress.toml, line 1: ema must be true or false; found 1."),
        ("data = {a = 1}", "compress.toml, line 1: data must be a string; found {'a': 1}."),
        ("schedule = 'cosin'", "line 1: schedule must be one of cosine, step, poly; found 'cosin'; did you mean 'cosine'?"),
        ("[prun]\nrate = 1", "compress.toml, line 1: there is no setting 'prun'; did you mean 'prune'?"),
        ("[prune]\n\nratio = 1", "compress.toml, line 3: compress prune has no setting 'ratio'; did you mean 'rate'?"),
        ("[[step]]\ndo='prune'", "compress.toml, line 1: there is no setting 'step'; did you mean 'steps'?"),
        ("steps = 3", "compress.toml, line 1: steps is a list of tables: write [[steps]] above each."),
        ("[[steps]]\nrate = 1", "compress.toml, line 1: do is missing: it can be prune, lowrank,"),
        (
            "[[steps]]\ndo = 'prune'\n[[steps]]\ndo = 'prun'",
            "compress.toml, line 4: do = 'prun' is not a step; did you mean 'prune'?",
        ),
        (
            "[[steps]]\ndo = 'prune'\nrat = 1",
            "compress.toml, line 3: compress prune has no setting 'rat'; did you mean 'rate'?",
        ),
        ("[[steps]]\ndo = 'prune'\njson = true", "compress.toml, line 3: compress prune has no setting 'json'"),
        ("rate = ", "compress.toml is not TOML: "),
    ],
)
def test_a_mistake_is_reported_with_its_line_and_the_nearest_valid_word(text: str, told: str) -> None:
    with pytest.raises(UsageError) as error:
        configuration(text)
    assert told in str(error.value) and len(str(error.value).splitlines()) <= 2


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(UsageError, match=r"compress\.toml"):
        configuration("a = " + "[" * 100_000)


def test_the_schema_describes_what_is_read() -> None:
    schema = json_schema()
    assert {"model", "data", "epochs", "steps", "prune", "check"} <= schema["properties"].keys()
    steps = {step["properties"]["do"]["const"]: step for step in schema["properties"]["steps"]["items"]["oneOf"]}
    assert set(steps) <= set(STEPS)
    assert steps["prune"]["properties"]["schedule"]["enum"] == ["cosine", "step", "poly"]
    assert steps["prune"]["properties"]["epochs"]["type"] == "integer"
    assert json.loads(compress("run", "--schema").stdout) == schema


def test_every_step_is_a_command_and_every_method_can_be_named() -> None:
    assert set(STEPS) <= set(commands())
    assert all("method" in options_of(commands()[entry.family]) for entry in catalogue().values())
    assert set(typer.main.get_command(app).commands) == set(commands())  # type: ignore[attr-defined]  # it is a group


# In a working directory -----------------------------------------------------------------------------------------------


@pytest.fixture
def told_once(project: Path) -> Path:
    """A project whose settings file names its model and data."""
    (project / FILE).write_text('model = "net.pt"\narch = "net.py:Net"\ndata = "digits"\nepochs = 0\nrepair = false\n')
    return project


def test_settings_of_the_project_need_not_be_given_again(told_once: Path) -> None:
    result = compress("prune", "--rate", "0.5", "--out", "half")
    assert result.exit_code == 0, result.output
    assert "settings from compress.toml: model, arch, data, epochs, repair" in result.stdout.replace("\n", " ")
    report = read_report(told_once / "half")
    assert (report.model, report.data, report.epochs) == ("net.pt", "digits", [])


def test_the_command_line_wins_over_config_and_config_over_the_working_directory(told_once: Path) -> None:
    (told_once / "other.toml").write_text('model = "net.pt"\narch = "net.py:Net"\n[prune]\nrate = 0.3\n')
    result = compress("prune", "--config", "other.toml", "--rate", "0.5", "--dry-run", "--json")
    assert result.exit_code == 0, result.output
    foreseen = json.loads(result.stdout)
    assert foreseen["macs_after"] / foreseen["macs"] == pytest.approx(0.5, abs=0.01)
    less = json.loads(compress("prune", "--config", "other.toml", "--dry-run", "--json").stdout)
    assert less["macs_after"] / less["macs"] == pytest.approx(0.7, abs=0.01)


def test_pyproject_has_a_section_for_it(project: Path) -> None:
    (project / "pyproject.toml").write_text('[project]\nname = "x"\n[tool.compress]\nmodel = "net.pt"\narch = "net.py:Ne"\n')
    result = compress("prune", "--rate", "0.5", "--dry-run")
    assert result.exit_code == 2 and "Ne" in result.output
    (project / "pyproject.toml").write_text('[project]\nname = "x"\n[tool.compress]\nmodle = "net.pt"\n')
    result = compress("prune", "--rate", "0.5", "--dry-run")
    assert result.exit_code == 2
    assert "pyproject.toml, line 4: there is no setting 'modle'; did you mean 'model'?" in result.stderr
    (project / "pyproject.toml").write_text("[tool]\ncompress = 3")
    assert "[tool.compress] must be a table" in compress("prune", "--rate", "0.5").stderr


def test_a_dry_run_writes_nothing(told_once: Path) -> None:
    before = sorted(told_once.iterdir())
    result = compress("prune", "--rate", "0.5", "--method", "pgmpf", "--epochs", "3", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "pgmpf: " in result.stdout and " MACs (-" in result.stdout
    assert sorted(told_once.iterdir()) == before
