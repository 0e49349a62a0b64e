"""The settings of a run as `config.toml`: what was decided is written down, and compared when the run is taken up again.

The keys are the command line's options, and a setting that was left open is left out: TOML has no word for it.
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
    """TOML writes numbers, lists and strings as JSON does, but for the letter 127, and has no halves of letters."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False).replace("\x7f", "\\u007f")
    return text.encode("utf-8", "replace").decode("utf-8")  # a path that is no text has halves


def first_change(before: str, now: str) -> str | None:
    """The first setting in which two config files differ: `lr was 0.1 and is 0.2`. None when they say the same."""
    try:
        old, new = tomllib.loads(before), tomllib.loads(now)
    except (ValueError, RecursionError):  # the file may be anyone's
        return "its config.toml cannot be read"
    for key in [*old, *new]:
        if old.get(key) != new.get(key):
            was, is_now = (_shown(table[key]) if key in table else "not given" for table in (old, new))
            return f"{key} was {was} and is {is_now}"
    return None


def _shown(value: object) -> str:
    """As the file has it; of dates, tables, NaN and endless numbers, which no setting of ours is, the type alone."""
    try:
        return _value(cast(Setting, value))
    except (TypeError, ValueError):
        return f"a {type(value).__name__}"
