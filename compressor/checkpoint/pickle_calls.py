"""Check the calls of a pickle without executing them.

PyTorch's weights-only unpickler allows a few dozen functions. None of them runs code, but some use as much memory or time as
their arguments say: a pickle of sixty bytes can call `bytearray(10**11)`. `torch.save` calls them in few ways only. So the
pickle is interpreted first, with values for its numbers, strings, names and tuples only, and all other calls are refused.
"""

from __future__ import annotations

import math
import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING  # names that differ in Python 2, as unpicklers map them
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
# (storage, offset, size, strides, ...): a storage that is too small for these would be resized.
SIZED = {f"torch._utils._rebuild_{kind}" for kind in ("tensor", "tensor_v2", "tensor_v3", "qtensor")}
TEXTS = {"_codecs.encode", "builtins.bytearray"}  # how bytes are pickled: ("text", "latin1")
TYPED = "torch._tensor._rebuild_from_type_v2"  # (function, type, arguments, state)
DEEPEST = 100  # nesting of tuples: Python hashes a dictionary key recursively, without a limit
SHARED = 10_000_000  # items of memoised tuples: fifty tuples that each contain the one before twice would never end


class Excessive(ValueError):
    """The pickle could fill the memory or never end."""


@dataclass(frozen=True)
class _Name:
    """A function or a class."""

    name: str


DONE = _Name("")  # a tensor, or the result of another allowed call


class _Tuple(NamedTuple):
    """A tuple with `size` items in total, nested `depth` deep."""

    parts: list[Any]
    size: int
    depth: int


def check_calls(pickled: bytes, closed: Container[str], most: int) -> None:
    """Raise Excessive when a pickle could fill the memory or never end, and another error when it is damaged.

    `closed` are the names that are replaced by inert classes. `most` is the maximum number of elements of a tensor, or of all
    storages.
    """
    stack: list[Any] = []
    below: list[list[Any]] = []  # the stack below each mark
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
                raise Excessive("its nested tuples are too large")
        elif kind in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif kind == "BINPERSID":
            if isinstance(named := stack.pop(), _Tuple) and len(named.parts) > 4:  # ("storage", type, key, device, numbers, ..)
                key = named.parts[2] if isinstance(named.parts[2], str) else None
                numbers = named.parts[4] if isinstance(named.parts[4], int) else most + 1
                declared += numbers - storages.get(key, 0)
                storages[key] = numbers
            if declared > most:
                raise Excessive(f"it declares storages with more elements than the file has bytes, {most:,}")
            stack.append(None)
        elif kind in ("REDUCE", "NEWOBJ"):
            arguments, function = stack.pop(), stack.pop()
            stack.append(_called(function, arguments, closed, most))
        elif kind == "BUILD":
            state = stack.pop()
            if stack[-1] is DONE and not (isinstance(state, _Tuple) and len(state.parts) == 3):  # as in torch of 2017
                raise Excessive("it modifies a tensor after creating it, which torch.save never does")
        else:
            taken: list[Any] = []
            if pickletools.markobject in before:
                taken, stack = stack, below.pop()
                before = before[: before.index(pickletools.markobject)]  # the dictionary or list that they are added to
            if len(before) > len(stack):
                raise ValueError("it pops more items than the stack has")
            first = len(stack) - len(before)
            taken = stack[first:] + taken
            stack[first:] = _made(kind, argument, taken, opcode.stack_after)


def _made(kind: str, argument: Any, taken: list[Any], after: list[pickletools.StackObject]) -> list[Any]:
    """The values that an operation pushes on the stack."""
    if kind == "GLOBAL":
        module, _, name = str(argument).partition(" ")
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        return [_Name(f"{module}.{name}")]
    if kind in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_TUPLE"):
        inner = [part for part in taken if isinstance(part, _Tuple)]
        depth = 1 + max((part.depth for part in inner), default=0)
        if depth > DEEPEST:
            raise Excessive(f"its tuples are nested more than {DEEPEST} deep")
        return [_Tuple(taken, len(taken) + sum(part.size for part in inner), depth)]
    if isinstance(argument, int | str) and len(after) == 1:
        return [argument]
    return [None] * len(after)


def _called(function: Any, arguments: Any, closed: Container[str], most: int) -> Any:
    """The result of a call, as far as it matters. Raises Excessive for a call that torch.save does not write."""
    name = function.name if isinstance(function, _Name) else ""
    parts = arguments.parts if isinstance(arguments, _Tuple) else [None]
    if name == "torch.Size" and len(parts) == 1 and isinstance(parts[0], _Tuple):
        return parts[0]
    if name in closed or not name:  # torch itself refuses calls of unnamed objects
        return None
    if name in PLAIN or (name in SIZED and len(parts) > 3 and _reach(*parts[1:4]) <= most):
        return None if name.startswith("collections.") else DONE
    if name in TEXTS and all(isinstance(part, str) for part in parts) and parts[1:] in ([], ["latin1"], ["latin-1"]):
        return ""  # as long as the text
    if name == TYPED and len(parts) > 2:
        return _called(parts[0], parts[2], closed, most)
    if name in SIZED:
        raise Excessive(f"it declares a tensor with more elements than the file has bytes, {most:,}")
    raise Excessive(f"it calls {name} in a way that torch.save never does")


def _reach(offset: Any, size: Any, strides: Any) -> float:
    """The number of elements of a tensor, or the offset of its last element if that is more; infinity if it is not explicit."""
    if not (isinstance(offset, int) and isinstance(size, _Tuple) and isinstance(strides, _Tuple)):
        return math.inf
    if not all(isinstance(number, int) for number in (*size.parts, *strides.parts)):
        return math.inf
    numbers: int = math.prod(size.parts)
    last: int = offset + sum(
        max(length - 1, 0) * abs(stride) for length, stride in zip(size.parts, strides.parts, strict=False)
    )
    return max(numbers, last)
