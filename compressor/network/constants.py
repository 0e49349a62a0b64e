"""Constants of `forward`, such as the `scale` of `forward(x, scale)`, bound to a network once.

Everything else then calls the network with its inputs alone, as it calls any other. They are bound by a hook, so that copies
and pruned copies of the network have them too.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from compressor.errors import UsageError, did_you_mean

Constant = bool | int | float | str
LONGEST = 200  # characters of a text


class Bound:
    """A hook that runs before `forward` and passes the constants by name; a value given in the call takes precedence."""

    def __init__(self, values: Mapping[str, Constant]) -> None:
        self.values = dict(values)

    def __call__(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**self.values, **kwargs}


def bind(model: nn.Module, constants: Mapping[str, object]) -> None:
    """Bind constants to `model`, in place of those of the same name. Raises UsageError if `forward` does not take one."""
    values = checked(constants)
    known = takes(model)
    for name in values:
        if known is not None and name not in known:
            near = did_you_mean(name, known) or "."
            raise UsageError(
                f"--constant {name}: forward of {type(model).__name__} has no argument of this name{near}\n"
                f"It takes {', '.join(known) or 'none'}."
            )
    if not values:
        return
    if (hook := _hook(model)) is not None:
        hook.values.update(values)
    else:
        model.register_forward_pre_hook(Bound(values), with_kwargs=True)


def constants_of(model: nn.Module) -> dict[str, Constant]:
    """The constants that are bound to `model`."""
    hook = _hook(model)
    return {} if hook is None else dict(hook.values)


def takes(model: nn.Module) -> list[str] | None:
    """The names of the arguments of `forward`; None if it takes any."""
    parameters = inspect.signature(model.forward).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return [one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]


def checked(constants: Mapping[str, object]) -> dict[str, Constant]:
    """The same constants. Raises UsageError for a value that is not a finite number, true, false, or a short text."""
    found: dict[str, Constant] = {}
    for name, value in constants.items():
        is_plain = isinstance(value, bool | int | float | str) and (not isinstance(value, float) or math.isfinite(value))
        if not str(name).isidentifier() or not is_plain or len(str(value)) > LONGEST:
            raise UsageError(
                f"--constant {name}={str(value)[:80]} is not a constant: write NAME=VALUE, where the value is a number, true, "
                "false, or a text, as in --constant scale=2."
            )
        assert isinstance(value, bool | int | float | str)
        found[str(name)] = value
    return found


def _hook(model: nn.Module) -> Bound | None:
    return next((hook for hook in model._forward_pre_hooks.values() if isinstance(hook, Bound)), None)
