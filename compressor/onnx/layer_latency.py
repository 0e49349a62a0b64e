"""How long ONNX Runtime takes for a layer, or for what could take its place: whether fewer multiply-adds are less time.

A layer is measured alone, as its own ONNX file, for one image on one thread. What stands around it in a network is missing: a
file of its own pays for bringing its input into the layout that convolutions are computed in, and an activation that would run
on a smaller plane is not there. The report's latency, of whole networks, has the last word.

Machines are busy now and then. So every measurement takes turns with a yardstick, a convolution that is always the same, and
times are told as if the yardstick had always taken as long as it did at first.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np
from torch import nn

from compressor.errors import UsageError
from compressor.files import read_text, write_text
from compressor.network.inputs import Inputs
from compressor.network.replacements import Part, describe, make
from compressor.onnx.export import export_onnx
from compressor.onnx.latency import take_turns
from compressor.onnx.runtime import bound_run, open_session

RUNS, SECONDS, WARMUP = 30, 2.0, 3  # at most, of each measurement
YARDSTICK, SIZE = nn.Conv2d(32, 32, 3, padding=1), (32, 28, 28)
LISTS = ("index", "places")  # which places are taken matters little, only how many

Shape = tuple[int, ...]


def _read(file: Path) -> dict[str, float]:
    """What was measured. Raises UsageError when it cannot be read."""
    try:
        known = {str(key): float(ms) for key, ms in json.loads(read_text(file)).items()}
        if all(0 < ms < math.inf for ms in known.values()):
            return known
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        pass
    raise UsageError(f"--resume: {file} is damaged. --force starts the run anew.")


class Clock:
    """Milliseconds for a module that reads one image: `clock(module, (1, 64, 32, 32))`.

    Only the kind of a module counts, not its weights, so a module on `meta` is as good. What was measured is kept in `file`, if
    there is one, so that whoever asks again, after an interruption too, gets the same answer.
    """

    def __init__(self, file: Path | None = None) -> None:
        self.file = file
        self.known = _read(file) if file and file.exists() else {}

    def __call__(self, module: nn.Module, shape: Shape) -> float:
        key = json.dumps([_kind(describe(module)), list(shape)])
        if key not in self.known:
            self.known[key] = self._measured(module, shape)
            if self.file is not None:
                write_text(self.file, json.dumps(self.known))
        return self.known[key]

    def _measured(self, module: nn.Module, shape: Shape) -> float:
        calls = [_call(make(describe(module)), shape[1:]), self._yardstick]
        take_turns(calls, most=WARMUP, least=1, seconds=SECONDS / 4)
        ms, now = (float(np.median(times)) for times in take_turns(calls, most=RUNS, least=5, seconds=SECONDS))
        return ms * self.known.setdefault("yardstick", now) / now

    @cached_property
    def _yardstick(self) -> Callable[[], None]:
        return _call(YARDSTICK, SIZE)


def _kind(parts: list[Part]) -> list[Part]:
    """What a chain is, but for which places of a plane it takes."""
    return [{name: len(value) if name in LISTS else value for name, value in part.items()} for part in parts]


def _call(module: nn.Module, shape: Shape) -> Callable[[], None]:
    """A function that runs `module` once for a random sample of `shape`."""
    with tempfile.TemporaryDirectory() as folder:
        export_onnx(module, shape, file := Path(folder) / "module.onnx")
        session = open_session(file, threads=1)
    return bound_run(session, [tensor.numpy() for tensor in Inputs.of(shape).random(1)], "cpu")
