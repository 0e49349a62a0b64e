"""What a pickle would call, found without calling it.

PyTorch's weights-only reader knows a few dozen functions. None of them runs code, but some take as much memory or time as they
are told: a pickle of sixty bytes may ask for `bytearray(10**11)`. Files of `torch.save` call them in few ways. So the pickle is
gone through first, with its numbers, texts, names and tuples for values and nothing for all else, and other calls are refused.
"""

from __future__ import annotations

import math
import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING  # what Python 2 called by another name, as the readers do
from collections.abc import Container
from dataclasses import dataclass
from typing import Any, NamedTuple

PLAIN = {
    "collections.Counter",
    "collections.OrderedDict",
    "torch.Size",
    "torch.device",
    "torch.nn.parameter.Parameter",
    "torch.serialization._get_layout",
    "torch._utils._rebuild_meta_tensor_no_storage",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch._utils._rebuild_sparse_tensor",
    "torch._utils._rebuild_wrapper_subclass",
    "builtins.complex",
    "builtins.set",
}
# (storage, offset, size, strides, ...): a storage that is too small for them would grow.
SIZED = {f"torch._utils._rebuild_{kind}" for kind in ("tensor", "tensor_v2", "tensor_v3", "qtensor")}
TEXTS = {"_codecs.encode", "builtins.bytearray"}  # how bytes are pickled: ("text", "latin1")
TYPED = "torch._tensor._rebuild_from_type_v2"  # (function, type, arguments, state)
DEEPEST = 100  # tuples in tuples: Python goes through a key of a dictionary without looking how deep it is
SHARED = 10_000_000  # parts of tuples that are named again: twice the same one in each of fifty has no end


class Excessive(ValueError):
    """What a pickle does that could fill the memory or never end."""


@dataclass(frozen=True)
class _Name:
    """A function or a class."""

    name: str


DONE = _Name("")  # a tensor, or what comes with one


class _Tuple(NamedTuple):
    """`size` parts in all, in tuples that lie `depth` deep."""

    parts: list[Any]
    size: int
    depth: int


def check_calls(pickled: bytes, closed: Container[str], most: int) -> None:
    """Raise Excessive when a pickle calls what could fill the memory or never end, another error when it is damaged.

    `closed` are the names that are not opened: they do nothing. `most` is how many numbers a tensor, or all storages, may have.
    """
    stack: list[Any] = []
    below: list[list[Any]] = []  # what lies below each mark
    memo: dict[object, Any] = {}
    storages: dict[object, int] = {}
    declared = shared = 0
    for opcode, argument, _ in pickletools.genops(pickled):
        kind, before = opcode.name, opcode.stack_before
        if kind == "MARK":
            below.append(stack)
            stack = []
        elif kind in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
            shared += stack[-1].size if isinstance(stack[-1], _Tuple) else 0
            if shared > SHARED:
                raise Excessive("its tuples of tuples have no end")
        elif kind in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif kind == "BINPERSID":
            if isinstance(named := stack.pop(), _Tuple) and len(named.parts) > 4:  # ("storage", type, key, device, numbers, ..)
                key = named.parts[2] if isinstance(named.parts[2], str) else None
                numbers = named.parts[4] if isinstance(named.parts[4], int) else most + 1
                declared += numbers - storages.get(key, 0)
                storages[key] = numbers
            if declared > most:
                raise Excessive(f"it declares storages of more numbers than the file has bytes, {most:,}")
            stack.append(None)
        elif kind in ("REDUCE", "NEWOBJ"):
            arguments, function = stack.pop(), stack.pop()
            stack.append(_called(function, arguments, closed, most))
        elif kind == "BUILD":
            state = stack.pop()
            if stack[-1] is DONE and not (isinstance(state, _Tuple) and len(state.parts) == 3):  # as of the torch of 2017
                raise Excessive("it changes a tensor that is made, as no file of torch.save does")
        else:
            taken: list[Any] = []
            if pickletools.markobject in before:
                taken, stack = stack, below.pop()
                before = before[: before.index(pickletools.markobject)]  # the dictionary or the list that they go into
            if len(before) > len(stack):
                raise ValueError("it takes more than there is")
            first = len(stack) - len(before)
            taken = stack[first:] + taken
            stack[first:] = _made(kind, argument, taken, opcode.stack_after)


def _made(kind: str, argument: Any, taken: list[Any], after: list[pickletools.StackObject]) -> list[Any]:
    """What an operation leaves on the stack."""
    if kind == "GLOBAL":
        module, _, name = str(argument).partition(" ")
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        return [_Name(f"{module}.{name}")]
    if kind in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_TUPLE"):
        inner = [part for part in taken if isinstance(part, _Tuple)]
        depth = 1 + max((part.depth for part in inner), default=0)
        if depth > DEEPEST:
            raise Excessive(f"its tuples lie more than {DEEPEST} deep in one another")
        return [_Tuple(taken, len(taken) + sum(part.size for part in inner), depth)]
    if isinstance(argument, int | str) and len(after) == 1:
        return [argument]
    return [None] * len(after)


def _called(function: Any, arguments: Any, closed: Container[str], most: int) -> Any:
    """What comes of a call, as far as it matters. Raises Excessive for one that is not as torch.save writes it."""
    name = function.name if isinstance(function, _Name) else ""
    parts = arguments.parts if isinstance(arguments, _Tuple) else [None]
    if name == "torch.Size" and len(parts) == 1 and isinstance(parts[0], _Tuple):
        return parts[0]
    if name in closed or not name:  # torch itself refuses to call what has no name
        return None
    if name in PLAIN or (name in SIZED and len(parts) > 3 and _reach(*parts[1:4]) <= most):
        return None if name.startswith("collections.") else DONE
    if name in TEXTS and all(isinstance(part, str) for part in parts) and parts[1:] in ([], ["latin1"], ["latin-1"]):
        return ""  # as long as the text
    if name == TYPED and len(parts) > 2:
        return _called(parts[0], parts[2], closed, most)
    if name in SIZED:
        raise Excessive(f"it declares a tensor of more numbers than the file has bytes, {most:,}")
    raise Excessive(f"it calls {name} as no file of torch.save does")


def _reach(offset: Any, size: Any, strides: Any) -> float:
    """How many numbers a tensor has, or where the last one lies, whichever is more; infinity where that is not written out."""
    if not (isinstance(offset, int) and isinstance(size, _Tuple) and isinstance(strides, _Tuple)):
        return math.inf
    if not all(isinstance(number, int) for number in (*size.parts, *strides.parts)):
        return math.inf
    numbers: int = math.prod(size.parts)
    last: int = offset + sum(
        max(length - 1, 0) * abs(stride) for length, stride in zip(size.parts, strides.parts, strict=False)
    )
    return max(numbers, last)
