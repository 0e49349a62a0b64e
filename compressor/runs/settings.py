"""The settings of a run as `config.toml`: written when it starts, and compared when it is resumed.

The keys are the command line's options. Settings that are None are left out: TOML has no null.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from typing import cast

Setting = str | float | int | bool | list[str] | list[int] | list[float] | None


def to_toml(settings: Mapping[str, Setting]) -> str:
    """One `key = value` line for each setting that is not None. Floats must be finite."""
    return "".join(f"{key} = {_value(value)}\n" for key, value in settings.items() if value is not None)


def _value(value: Setting) -> str:
    """TOML writes numbers, lists and strings as JSON does, except for the character 127, and allows no lone surrogates."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False).replace("\x7f", "\\u007f")
    return text.encode("utf-8", "replace").decode("utf-8")  # a path that is not valid text has them


def first_change(before: str, now: str) -> str | None:
    """The first setting in which two config files differ: `lr was 0.1 and is 0.2`. None when they are equal."""
    try:
        old, new = tomllib.loads(before), tomllib.loads(now)
    except (ValueError, RecursionError):  # an untrusted file
        return "its config.toml cannot be read"
    for key in [*old, *new]:
        if old.get(key) != new.get(key):
            was, is_now = (_shown(table[key]) if key in table else "not given" for table in (old, new))
            return f"{key} was {was} and is {is_now}"
    return None


def _shown(value: object) -> str:
    """As in the file; for dates, tables, NaN and huge numbers, which no setting of ours is, only the type."""
    try:
        return _value(cast(Setting, value))
    except (TypeError, ValueError):
        return f"a {type(value).__name__}"
