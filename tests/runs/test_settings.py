"""config.toml: every setting is read back as it was written."""

import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.runs.settings import Setting, first_change, to_toml

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
FLOATS = st.floats(allow_nan=False, allow_infinity=False)


@settings(deadline=None)  # a busy machine proves nothing
@given(st.one_of(TEXTS, FLOATS, st.integers(-(2**63), 2**63 - 1), st.booleans(), st.lists(TEXTS), st.lists(FLOATS)))
def test_a_setting_is_read_back_as_it_was(value: Setting) -> None:
    assert tomllib.loads(to_toml({"key": value})) == {"key": value}


def test_settings_that_are_none_are_left_out() -> None:
    assert to_toml({"a": None, "b": 0, "c": False, "d": []}) == "b = 0\nc = false\nd = []\n"


def test_a_path_that_is_not_valid_text_can_be_written() -> None:
    assert tomllib.loads(to_toml({"model": "caf\udce9.pt"})) == {"model": "caf?.pt"}


@pytest.mark.parametrize(
    ("before", "now", "change"),
    [
        ("lr = 0.1\nseed = 0\n", "lr = 0.1\nseed = 1\n", "seed was 0 and is 1"),
        ("rate = 0.5\nlr = 0.1\n", 'target = "size<=1MB"\nlr = 0.2\n', "rate was 0.5 and is not given"),
        ("lr = 0.1\n", "lr = 0.1\nema_decay = 0.9\n", "ema_decay was not given and is 0.9"),
        ("lr = 0.1\nseed = 0\n", "seed = 0\nlr = 0.1\n", None),
        ("lr = ", "lr = 0.1\n", "its config.toml cannot be read"),
    ],
)
def test_the_first_change_is_named(before: str, now: str, change: str | None) -> None:
    assert first_change(before, now) == change


@pytest.mark.parametrize("text", ["a = " + "[" * 100_000, "a = " + "9" * 5000, "a = \x00", "a = 1\na = 2", "é = 1"])
def test_a_file_that_no_run_wrote_cannot_be_read(text: str) -> None:
    assert first_change(text, "lr = 0.1\n") == "its config.toml cannot be read"


@pytest.mark.parametrize(
    ("value", "kind"),
    [("1979-05-27T07:32:00Z", "datetime"), ("nan", "float"), ("{a = 1979-05-27}", "dict"), ("0x" + "f" * 5000, "int")],
)
def test_a_value_that_no_setting_has_is_shown_by_its_type(value: str, kind: str) -> None:
    assert first_change(f"lr = {value}\n", "lr = 0.1\n") == f"lr was a {kind} and is 0.1"
