"""report.json: it can be read back unchanged, and errors in it name the key."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import example
import pytest

from compressor.errors import CompressError, UsageError
from compressor.report import VERSION, Profile, Report, from_json, json_schema, to_json

EVERY = [example.example, example.restoration, example.without_data, example.bare, example.nasty, example.deep]


def edited(edit: Callable[[dict[str, Any]], object]) -> str:
    data = json.loads(to_json(example.example()))
    edit(data)
    return json.dumps(data)


@pytest.mark.parametrize("make", EVERY)
def test_a_report_comes_back_as_it_was(make: Callable[[], Report]) -> None:
    assert from_json(to_json(make())) == make()


def test_whole_and_broken_numbers_and_truth_keep_their_type() -> None:
    settings = from_json(to_json(example.example())).settings
    assert [type(settings[name]) for name in ("epochs", "rate", "amp", "keep")] == [int, float, bool, type(None)]


def test_a_whole_number_is_read_where_a_number_is_expected() -> None:
    text = edited(lambda data: data["stages"][0].update(seconds=1))
    assert type(from_json(text).stages[0].seconds) is float


def test_the_sign_of_a_score_is_no_key_of_the_file() -> None:
    report = example.restoration()
    assert report.baseline.scores[0].sign == 1 == -replace(report.baseline.scores[0], more_is_better=False).sign
    assert "more_is_better" in to_json(report) and '"sign"' not in to_json(report)


def test_a_text_does_not_steer_what_it_is_printed_on() -> None:
    def spoil(data: dict[str, Any]) -> None:
        data.update(name="a\x1b[2J\r\n::error::x\u202e\ud800é")
        data["versions"]["b\n"] = data["stages"][0]["note"] = "\0"

    report = from_json(edited(spoil))
    assert report.name == r"a\x1b[2J\r\n::error::x\u202e\ud800é"
    assert report.versions[r"b\n"] == report.stages[0].note == r"\x00"


def test_keys_with_a_default_may_be_absent() -> None:
    text = edited(lambda data: data["baseline"].pop("latency"))
    assert from_json(text).baseline.latency == []


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("baseline.scores[0].value", "x", 'expected a number, found "x"'),
        ("baseline.scores[0].n", 1.5, "expected a whole number, found 1.5"),
        ("baseline.scores[0].n", True, "expected a whole number, found true"),
        ("baseline.scores[0].low", [], "expected a number or null, found a list"),
        ("baseline.scores[0].name", "top 1", 'expected a letter, then letters, digits and _, found "top 1"'),
        ("baseline.scores[0].name", "passed=true\n", 'expected a letter, then letters, digits and _, found "passed=true\\\\n"'),
        ("baseline.scores[0].places", 1_000_000_000, "expected a whole number from 0 to 9, found 1000000000"),
        ("baseline", 3, "expected an object, found 3"),
        ("baseline.scores[0]", 3, "expected an object, found 3"),
        ("layers", {}, "expected a list, found an object"),
        ("layers[2].shape[1]", "a", 'expected a whole number, found "a"'),
        ("epochs[1].losses.cross_entropy", None, "expected a number, found null"),
        ("compressed.latency[1].median_ms", 0, "expected a time above 0, found 0.0"),
        ("seed", "n" * 99, 'expected a whole number, found "nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn...'),
        (
            "settings.rate",
            {},
            "expected a string or a number or a whole number or true or false or null, found an object",
        ),
    ],
)
def test_a_wrong_value_is_named_with_its_place(path: str, value: object, message: str) -> None:
    def spoil(data: Any) -> None:
        *way, last = [int(key) if key.isdigit() else key for key in re.findall(r"\w+", path)]
        for key in way:
            data = data[key]
        data[last] = value

    with pytest.raises(UsageError) as error:
        from_json(edited(spoil))
    assert str(error.value) == f"{path}: {message}"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda data: data["stages"][0].pop("macs"), 'stages[0]: the key "macs" is missing'),
        (lambda data: data.pop("name"), 'report: the key "name" is missing'),
        (lambda data: data["target"].update(colour=1), 'target: unknown key "colour"'),
    ],
)
def test_missing_and_unknown_keys_are_told(edit: Callable[[dict[str, Any]], object], message: str) -> None:
    with pytest.raises(UsageError) as error:
        from_json(edited(edit))
    assert str(error.value) == message


def test_a_misspelt_key_gets_a_suggestion() -> None:
    def misspell(data: dict[str, Any]) -> None:
        data["baseline"]["skores"] = data["baseline"].pop("scores")

    with pytest.raises(UsageError) as error:
        from_json(edited(misspell))
    assert str(error.value) == "baseline: unknown key \"skores\"; did you mean 'scores'?"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"not a report: Expecting value \(line 1, column 1\)"),
        ("[]", "not a report: expected an object, found a list"),
        ("{}", 'not a report: the key "version" is missing'),
        ('{"version": NaN}', "not a report: NaN is not JSON; write null"),
        ('{"version": 1, "seconds": 1e999}', "not a report: 1e999 is out of range"),
        (f'{{"version": 1, "seed": {"9" * 5000}}}', "not a report: 99999999999999999999... is out of range"),
        ("[" * 100_000, "not a report: its objects are nested too deeply"),
        ('{"version": 3}', f"the report has version 3, this release reads version {VERSION} and 1; read it with"),
        ('{"version": "1"}', 'the report has version "1", this release reads'),
        ('{"version": true}', "the report has version true, this release reads"),
    ],
)
def test_what_is_no_report_of_this_version_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        from_json(text)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_are_never_written(value: float) -> None:
    report = example.example()
    epochs = [replace(report.epochs[0], losses={"cross_entropy": value}), *report.epochs[1:]]
    with pytest.raises(CompressError, match=r"epochs\[0\]\.losses\.cross_entropy is (nan|inf)"):
        to_json(replace(report, epochs=epochs))


@pytest.mark.parametrize("make", EVERY)
def test_the_schema_accepts_what_is_written(make: Callable[[], Report]) -> None:
    assert list(problems(json_schema(), json.loads(to_json(make())))) == []


@pytest.mark.parametrize(
    "edit",
    [
        lambda d: d.pop("version"),
        lambda d: d.update(version=1),
        lambda d: d.update(colour=1),
        lambda d: d["stages"][0].pop("macs"),
        lambda d: d["baseline"]["scores"][0].update(value="x"),
        lambda d: d["baseline"]["accuracy"].update(top1="x"),
        lambda d: d["layers"][2]["shape"].append("a"),
        lambda d: d["epochs"][1]["losses"].update(cross_entropy=None),
    ],
)
def test_the_schema_refuses_what_the_reader_refuses(edit: Callable[[dict[str, Any]], object]) -> None:
    assert list(problems(json_schema(), json.loads(edited(edit))))


def test_the_schema_says_what_things_are() -> None:
    schema = json_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["description"] == Report.__doc__
    assert schema["$defs"]["Profile"]["description"] == Profile.__doc__
    profile = schema["$defs"]["Profile"]["properties"]
    assert profile["scores"] == {"type": "array", "items": {"$ref": "#/$defs/Score"}}
    assert profile["accuracy"]["anyOf"] == [{"$ref": "#/$defs/Accuracy"}, {"type": "null"}]
    assert json.loads(json.dumps(schema)) == schema


PYTHON_TYPES = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool}


def problems(schema: dict[str, Any], value: Any, root: dict[str, Any] | None = None) -> list[str]:
    """A JSON Schema validator for the keywords that the schema of the report uses."""
    root = root or schema
    if "$ref" in schema:
        return problems(root["$defs"][schema["$ref"].removeprefix("#/$defs/")], value, root)
    if "anyOf" in schema:
        return [] if any(not problems(part, value, root) for part in schema["anyOf"]) else ["fits none"]
    if "const" in schema:
        return [] if value == schema["const"] else [f"{value} is not {schema['const']}"]
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if not any(is_of(name, value) for name in types):
        return [f"{value!r} is none of {types}"]
    if isinstance(value, list):
        return [problem for part in value for problem in problems(schema["items"], part, root)]
    if not isinstance(value, dict):
        return []
    found = [f"{key} is missing" for key in schema.get("required", []) if key not in value]
    known, other = schema.get("properties", {}), schema["additionalProperties"]
    for key, part in value.items():
        if key in known or other:
            found += problems(known.get(key, other), part, root)
        else:
            found.append(f"{key} is unknown")
    return found


def is_of(name: str, value: object) -> bool:
    if name == "null" or value is None:
        return name == "null" and value is None
    return isinstance(value, PYTHON_TYPES[name]) and (name == "boolean" or not isinstance(value, bool))
