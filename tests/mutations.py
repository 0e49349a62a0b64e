"""Mutations of valid files, and malicious pickle payloads. All randomness comes from the given `Random`."""

from __future__ import annotations

import builtins
import codecs
import contextlib
import functools
import io
import json
import os
import pickle
import random
import re
import struct
import subprocess
import warnings
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from small import make_net
from torch import nn

Random = random.Random
CANARY = "canary"  # the file or folder that payloads try to create in the working directory

# Mutations of bytes ---------------------------------------------------------------------------------------------------

EXTREMES = (0, 1, -1, 127, 255, 2**15, 2**16 - 1, 2**31 - 1, -(2**31), 2**32 - 1, 2**40, 2**63 - 1, -(2**63), 2**64 - 1)


def _somewhere(data: bytearray, rng: Random) -> int:
    """A random position, half of the time near the beginning or the end, where the headers are."""
    near = rng.choice((0, 0, 64, 512))
    size = len(data)
    if not near or size <= near:
        return rng.randrange(size + 1)
    return rng.randrange(near) if rng.random() < 0.7 else size - rng.randrange(near)


def _flip(data: bytearray, rng: Random, other: bytes) -> None:
    for _ in range(rng.choice((1, 2, 8))):
        if data:
            data[min(_somewhere(data, rng), len(data) - 1)] ^= 1 << rng.randrange(8)


def _truncate(data: bytearray, rng: Random, other: bytes) -> None:
    del data[_somewhere(data, rng) :]


def _insert(data: bytearray, rng: Random, other: bytes) -> None:
    place = _somewhere(data, rng)
    data[place:place] = rng.randbytes(rng.choice((1, 4, 300)))


def _zero(data: bytearray, rng: Random, other: bytes) -> None:
    place = _somewhere(data, rng)
    size = min(rng.choice((1, 8, 100)), len(data) - place)
    data[place : place + size] = bytes(size)


def _splice(data: bytearray, rng: Random, other: bytes) -> None:
    place, start = _somewhere(data, rng), rng.randrange(len(other) + 1)
    part = other[start : start + rng.choice((4, 40, 400))]
    data[place : place + rng.choice((0, len(part)))] = part


def _extreme(data: bytearray, rng: Random, other: bytes) -> None:
    place, size = _somewhere(data, rng), rng.choice((1, 2, 4, 8))
    number = rng.choice(EXTREMES) % 2 ** (8 * size)
    data[place : place + size] = number.to_bytes(size, rng.choice(("little", "big")))


BYTES = (_flip, _flip, _extreme, _extreme, _truncate, _insert, _zero, _splice)


def broken(data: bytes, rng: Random, other: bytes = b"") -> bytes:
    """`data` after one or several mutations; parts of `other` may be spliced in."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        rng.choice(BYTES)(changed, rng, other or data)
    return bytes(changed)


# Mutations of JSON and of text ----------------------------------------------------------------------------------------

NAMES = (
    *("../escaped", "../../escaped", "/tmp/escaped-from-a-name", "a/../../b", ".", "..", "", "é" * 50, "0" * 30, "x" * 300_000),
    *("con\0trol", "\x1b[2J\x1b]0;x\x07", "a\r\nb", "::error::x\n::stop-commands::y", "\u202egnp.exe", "\ud800"),
    *("<script>", "%s{0}", "torchvision:resnet18", "pickle:a.pt", "os:system"),
)
RAW = (
    *("[" * 100_000, '{"a":' * 50_000, "[" + "0," * 99_999 + "0]", "9" * 5000, "1" + "0" * 400, "1e999", "-1e999", "1.0e-400"),
    *("-0", "NaN", "Infinity", '"\\ud800"', "01", "'a'", "", "nul"),
)
VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        [],
        {},
        [[]],
        [None],
        "8",
        0,
        1,
        -1,
        1.5,
        2**31 - 1,
        2**31,
        2**62,
        2**63,
        2**64,
        10**30,
        1e308,
        -1e308,
    ),
    *(10**6, 10**9, [10**9, 10**9], [2**40], [-1], [0], {"a": 1}, [1, 2, 3]),
)


def broken_json(value: Any, rng: Random, numbers_alone: bool = False) -> str:
    """The text of `value` after some mutations of its parts."""
    value, raw = json.loads(json.dumps(value)), {}
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        places = list(_places(value))
        if not places:
            break
        container, key = rng.choice(places)
        kind = "value" if numbers_alone else rng.choice(("value", "value", "name", "delete", "twice", "rename", "raw", "swap"))
        if kind == "value":
            container[key] = _strange(container[key], rng)
        elif kind == "name":
            container[key] = rng.choice(NAMES)
        elif kind == "delete":
            del container[key]
        elif kind == "swap":
            other, place = rng.choice(places)
            with contextlib.suppress(KeyError, IndexError):  # a deleted entry
                container[key] = json.loads(json.dumps(other[place]))
        elif kind == "raw":
            mark = f"\0raw{len(raw)}"
            container[key], raw[json.dumps(mark)] = mark, rng.choice(RAW)
        elif isinstance(container, dict):
            mark = f"\0key{len(raw)}"
            raw[json.dumps(mark)] = json.dumps(key if kind == "twice" else rng.choice(NAMES))
            container[mark] = _strange(container[key], rng) if kind == "twice" else container.pop(key)
    text = json.dumps(value)
    for mark, meant in raw.items():
        text = text.replace(mark, meant)
    return text


def _strange(value: Any, rng: Random) -> Any:
    """A replacement for this value: a similar one, or any."""
    if type(value) is int and rng.random() < 0.5:
        return rng.choice((value + 1, value - 1, -value, value * 2, value * 10**6, float(value), str(value), bool(value)))
    if isinstance(value, list) and value and rng.random() < 0.5:
        return rng.choice((value[::-1], value * 2, value[:-1], value[0], [value], [*value, value[-1]], [0] * 1000))
    return json.loads(json.dumps(rng.choice(VALUES)))


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in entries:
        yield value, key
        yield from _places(part)


WORDS = (
    *(
        "nan",
        "inf",
        "-inf",
        "-1",
        "0",
        "1e999",
        "9" * 5000,
        "1_000_000_000_000",
        "0x",
        "0x" + "f" * 5000,
        "true",
        "é",
        "\u202e",
    ),
    *(
        "[" * 3000,
        "{a={a=" * 500,
        "[[a]]",
        "[a.b.c]",
        "a.b.c.d = 1",
        "[1, {a = nan}]",
        "{}",
        '"',
        "'''",
        ",",
        "\n",
        "=",
        "# \x07",
    ),
    *("\0", "\x1b[2J", "\\u0000", "\\ud800", "1979-05-27T07:32:00Z", "07:32:00", "x" * 200_000, "../escaped"),
)


def broken_text(text: str, rng: Random) -> bytes:
    """A text with words replaced, lines repeated or deleted, and sometimes mutated bytes."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        words = list(re.finditer(r"[\w.+-]+|\S", text))
        if not words:
            break
        word, kind = rng.choice(words), rng.randrange(4)
        if kind < 2:
            text = text[: word.start()] + rng.choice(WORDS) + text[word.end() :]
        elif kind == 2:
            lines = text.splitlines(keepends=True)
            lines.insert(rng.randrange(len(lines) + 1), rng.choice(lines))
            text = "".join(lines)
        else:
            text = text[: word.start()] + text[rng.choice(words).end() :]
    data = text.encode("utf-8", "surrogatepass")
    return broken(data, rng) if rng.random() < 0.3 else data


# Mutations of archives, pickles and images ----------------------------------------------------------------------------


def members_of(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(members: Sequence[tuple[str, bytes]], packed: bool = False, comment: bytes = b"") -> bytes:
    """An archive of these members, whose names are not checked."""
    made = io.BytesIO()
    with (
        warnings.catch_warnings(),
        zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as archive,
    ):
        warnings.simplefilter("ignore")  # of names that come twice
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data, archive.compression)
        archive.comment = comment
    return made.getvalue()


def broken_zip(data: bytes, rng: Random, spoil: Callable[[str, bytes], bytes | None]) -> bytes:
    """An archive with one member replaced by `spoil(name, content)`, or with an invalid list of members."""
    members = list(members_of(data).items())
    place = rng.randrange(len(members))
    name, content = members[place]
    kind = rng.choice(("member", "member", "member", "name", "lost", "twice", "packed", "grown", "comment", "header", "prefix"))
    if kind == "member":
        spoilt = [(name, spoil(name, content)) for name, content in members]
        changed = [i for i, (_, content) in enumerate(spoilt) if content is not None]
        place = rng.choice(changed or [place])
        members[place] = members[place][0], spoilt[place][1] or b""
    elif kind == "name":
        members[place] = rng.choice(NAMES).encode("utf-8", "replace").decode()[:60000], content
    elif kind == "lost":
        del members[place]
    elif kind == "twice":
        members.append((name, broken(content, rng)))
    elif kind == "packed":
        return zipped(members, packed=True)
    elif kind == "grown":
        members[place] = name, content + bytes(30_000_000)
        return zipped(members, packed=True)
    elif kind == "comment":  # a second central directory within the comment
        return zipped(members, comment=zipped([(name, broken(content, rng)) for name, content in members])[-60000:])
    made = bytearray(zipped(members))
    if kind == "header":
        marks = [m.start() for m in re.finditer(b"PK(\x01\x02|\x03\x04|\x05\x06)", made)]
        place = rng.choice(marks[-len(members) - 1 :]) + rng.randrange(4, 46)
        size = rng.choice((2, 4))
        made[place : place + size] = (rng.choice(EXTREMES) % 2 ** (8 * size)).to_bytes(size, "little")
    elif kind == "prefix":
        made[:0] = rng.choice((b"PK\x03\x04", bytes(made), rng.randbytes(50)))
    return bytes(made)


GLOBALS = [
    name.replace(" ", "\n").encode()
    for name in (
        *(
            "os system",
            "builtins exec",
            "builtins bytearray",
            "builtins set",
            "_codecs encode",
            "collections Counter",
            "numpy dtype",
        ),
        *("torch Tensor", "torch Size", "torch device", "torch HalfStorage", "torch BoolStorage", "torch ComplexFloatStorage"),
        *("torch.storage UntypedStorage", "torch.nn.parameter Parameter", "torch._tensor _rebuild_from_type_v2"),
        *(f"torch._utils _rebuild_{kind}" for kind in ("sparse_tensor", "qtensor", "meta_tensor_no_storage")),
    )
]


def broken_pickle(data: bytes, rng: Random) -> bytes:
    """A pickle with a number, name or text replaced."""
    kind = rng.choice(("number", "number", "global", "global", "text", "bytes"))
    if kind == "number":
        put = b"J" + (rng.choice(EXTREMES) % 2**32).to_bytes(4, "little")
        put = put if rng.random() < 0.7 else b"\x8a\x08" + (rng.choice(EXTREMES) % 2**64).to_bytes(8, "little")
        return _put(data, rb"K.|M..|J....", put, rng)
    if kind == "global":
        return _put(data, rb"c[\w.]+\n\w+\n", b"c" + rng.choice(GLOBALS) + b"\n", rng)
    if kind == "text":
        name = rng.choice(NAMES).encode("utf-8", "surrogatepass")
        return _put(data, rb"X\x06\0\0\0.{6}|X\x0b\0\0\0.{11}|X\x01\0\0\0.", b"X" + struct.pack("<I", len(name)) + name, rng)
    return broken(data, rng)


def _put(data: bytes, pattern: bytes, put: bytes, rng: Random) -> bytes:
    """`data` with one of the matches replaced by `put`."""
    matches = list(re.finditer(pattern, data, re.S))
    if not matches:
        return broken(data, rng)
    match = rng.choice(matches)
    return data[: match.start()] + put + data[match.end() :]


def broken_safetensors(data: bytes, rng: Random) -> bytes:
    """A mutated header, with a correct or a wrong length."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    kind = rng.choice(("json", "json", "json", "type", "length", "bytes", "numbers", "many"))
    if kind == "bytes":
        return broken(data, rng)
    if kind == "numbers":
        place = rng.randrange(8 + size, len(data))
        return data[:place] + rng.randbytes(1) + data[place + 1 :]
    if kind == "length":
        return (rng.choice((*EXTREMES, size - 1, size + 1, len(data))) % 2**64).to_bytes(8, "little") + data[8:]
    if kind == "many":
        name, entry = list(header.items())[-1]
        header.update({f"{name}{i}": entry for i in range(5000)})
    text = broken_json(header, rng) if kind == "json" else json.dumps(header)
    if kind == "type":
        lie = rng.choice(("F4", "C64", "F8_E5M2", "U64", "BOOL", "F64", "I8", "X"))
        text = text.replace('"F32"', f'"{lie}"', rng.choice((1, 99)))
    coded = text.encode("utf-8", "surrogatepass")
    return len(coded).to_bytes(8, "little") + coded + data[8 + size :]


SIDES = (0, 1, 10_000, 13_000, 65_535, 10**6, 2**31 - 1, 2**32 - 1)


def broken_image(data: bytes, rng: Random) -> bytes:
    """Another size or depth in a header with a correct checksum, or mutated bytes."""
    changed, frame = bytearray(data), data.find(b"\xff\xc0")
    if data.startswith(b"\x89PNG") and rng.random() < 0.6:
        if rng.random() < 0.5:
            place = rng.choice((16, 20))
            changed[place : place + 4] = rng.choice(SIDES).to_bytes(4, "big")
        else:
            changed[rng.choice((24, 25, 26, 28))] = rng.choice((0, 1, 2, 3, 4, 6, 16, 255))
        changed[29:33] = zlib.crc32(changed[12:29]).to_bytes(4, "big")
        return bytes(changed)
    if frame > 0 and rng.random() < 0.5:
        place = frame + rng.choice((4, 5, 7, 9))
        changed[place : place + 2] = rng.choice((0, 1, 255, 9000, 65_535)).to_bytes(2, "big")
        return bytes(changed)
    return broken(data, rng)


# Payloads -------------------------------------------------------------------------------------------------------------


class Call:
    """Is pickled as a call of `function`, which may itself be the result of a `Call`."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.function, self.arguments

    def __call__(self) -> None:
        """Pickle requires a callable."""


def _nested() -> bytes:
    made = io.BytesIO()
    torch.save(Call(os.system, f"touch {CANARY}"), made)
    return made.getvalue()


TOWER = (
    b"(X\1\0\0\0at" + b"r\xff\xff\0\0j\xff\xff\0\0\x86" * 60
)  # a tuple of two of a tuple of two of ...: hashing it has no end
DEEP = b"(t" + b"\x85" * 500_000  # a tuple in a tuple in ...: hashing it takes more stack than there is


class SetAnew:
    """A tensor whose state is set after construction, which would resize its storage."""

    def __reduce__(self) -> Any:
        tensor = torch.ones(4)
        arguments = (tensor.untyped_storage(), 0, (4,), (1,), False, OrderedDict())
        return torch._utils._rebuild_tensor_v2, arguments, (tensor.untyped_storage(), 10**11, (4,), (1,))


def _hexed(times: int) -> Call:
    text: Any = "a" * 1000
    for _ in range(times):
        text = Call(codecs.encode, text, "hex")
    return Call(codecs.encode, text, "hex")


def _rebuilt(kind: str, *arguments: object) -> Call:
    return Call(getattr(torch._utils, f"_rebuild_{kind}"), *arguments)


_by_type = torch._tensor._rebuild_from_type_v2
PAYLOADS: dict[str, Callable[[], object]] = {
    # would run code
    "os.system": lambda: Call(os.system, f"touch {CANARY}"),
    "exec": lambda: Call(exec, f"open({CANARY!r}, 'w')"),
    "eval": lambda: Call(eval, f"open({CANARY!r}, 'w')"),
    "open": lambda: Call(open, CANARY, "w"),
    "Popen": lambda: Call(subprocess.Popen, ["touch", CANARY]),
    "mkdir": lambda: Call(os.mkdir, CANARY),
    "import": lambda: Call(Call(getattr, Call(builtins.__import__, "os"), "mkdir"), CANARY),
    "partial": lambda: Call(functools.partial, os.mkdir, CANARY),
    "nested pickle": lambda: Call(pickle.loads, pickle.dumps(Call(os.mkdir, CANARY))),
    "nested archive": lambda: Call(torch.storage._load_from_bytes, _nested()),
    "nested load": lambda: Call(torch.load, Call(io.BytesIO, _nested())),
    "by a type": lambda: Call(_by_type, os.system, torch.Tensor, (f"touch {CANARY}",), {}),
    "a parameter": lambda: _rebuilt("parameter", Call(os.mkdir, CANARY), False, OrderedDict()),
    "from numpy": lambda: _rebuilt("device_tensor_from_numpy", Call(os.mkdir, CANARY), torch.float32, "cpu", False),
    "numpy's reconstruct": lambda: Call(np._core.multiarray._reconstruct, Call(os.mkdir, CANARY), (0,), b"b"),
    "numpy's object": lambda: np.array([Call(os.mkdir, CANARY)], dtype=object),
    "torch.hub": lambda: Call(torch.hub.load, "a/b", "c"),
    # would exhaust memory, or never end
    "a bytearray": lambda: Call(bytearray, 10**11),
    "a bytearray by a type": lambda: Call(_by_type, bytearray, bytearray, (10**11,), {}),
    "text that doubles": lambda: _hexed(40),
    "a huge tensor": lambda: Call(torch.Tensor, 10**11),
    "a huge storage": lambda: Call(torch.UntypedStorage, 10**12),
    "an expanded tensor": lambda: torch.ones(1).expand(10**6, 10**6),
    "an expanded parameter": lambda: nn.Parameter(torch.ones(1).expand(10**5, 10**5)),
    "another type": lambda: _rebuilt(
        "device_tensor_from_cpu_tensor", torch.ones(1).expand(10**10), torch.float64, "cpu", False
    ),
    "a tensor set anew": SetAnew,
    "a meta tensor": lambda: torch.empty(10**6, 10**6, device="meta"),
    "a sparse tensor": lambda: torch.sparse_coo_tensor([[0], [0]], torch.ones(1), (10**6, 10**6), check_invariants=True),
    "a tower of tuples": lambda: "TOWER",
    "tuples without a bottom": lambda: "DEEP",
    # not a weight
    "a quantised tensor": lambda: torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8),
    "a complex tensor": lambda: torch.ones(4, dtype=torch.complex64),
    "a number of eight bits": lambda: torch.ones(4).to(torch.float8_e5m2),
}


def payload(rng: Random, legacy: bool) -> bytes:
    """A file of torch.save with a payload somewhere in it."""
    weights, made = make_net().state_dict(), io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # quantized tensors are deprecated in torch
        harm: Any = PAYLOADS[rng.choice(sorted(PAYLOADS))]()
        places = (
            harm,
            {"state_dict": weights, "x": harm},
            {**weights, rng.choice(sorted(weights)): harm},
            {"state_dict": harm},
            {"state_dict": {**weights, "head.weight": harm, "head.bias": harm}, "epoch": [harm]},
        )
        torch.save(rng.choice(places), made, _use_new_zipfile_serialization=not legacy)
    if not isinstance(harm, str):
        return made.getvalue()
    mark = b"X" + struct.pack("<I", len(harm)) + harm.encode()  # a placeholder for a dictionary that Python cannot create
    keyed = b"}" + {"TOWER": TOWER, "DEEP": DEEP}[harm] + b"K\1s"
    if legacy:
        return made.getvalue().replace(mark, keyed)
    return zipped([(name, data.replace(mark, keyed)) for name, data in members_of(made.getvalue()).items()])
