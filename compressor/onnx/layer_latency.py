"""Latency of a single layer, or of its possible replacement, in ONNX Runtime: shows whether fewer MACs take less time.

A layer is measured alone, as an ONNX file of its own, for one image on one thread. This is an approximation: the file also
converts its input to the memory layout of convolutions, and activations that would run on a smaller feature map are missing.
The latency in the report is that of whole networks.

Machines are busy at times. So the runs of every measurement are interleaved with those of a fixed reference convolution, and
times are scaled by its first measured latency over its present one.
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
from compressor.onnx.latency import clock_of_thread, take_turns
from compressor.onnx.runtime import bound_run, open_session

RUNS, SECONDS, WARMUP = 30, 2.0, 3  # limits for each measurement
YARDSTICK, SIZE = nn.Conv2d(32, 32, 3, padding=1), (32, 28, 28)
LISTS = ("index", "places")  # only the number of positions matters, not which

Shape = tuple[int, ...]


def _read(file: Path) -> dict[str, float]:
    """Measurements stored in `file`. Raises UsageError when it cannot be read."""
    try:
        known = {str(key): float(ms) for key, ms in json.loads(read_text(file)).items()}
        if all(0 < ms < math.inf for ms in known.values()):
            return known
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        pass
    raise UsageError(f"--resume: {file} is damaged. --force starts the run over.")


class Clock:
    """Latency in milliseconds of a module for one image: `clock(module, (1, 64, 32, 32))`.

    Only the type and sizes of a module matter, not its weights, so it may be on `meta`. Measurements are stored in `file`, if
    given, so that later calls, also after an interruption, return the same value.
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
        turns = take_turns(calls, most=RUNS, least=5, seconds=SECONDS, clock=clock_of_thread)
        ms, now = (float(np.median(times)) for times in turns)
        return ms * self.known.setdefault("yardstick", now) / now

    @cached_property
    def _yardstick(self) -> Callable[[], None]:
        return _call(YARDSTICK, SIZE)


def _kind(parts: list[Part]) -> list[Part]:
    """The parts of a chain, with the number of spatial positions in place of their list."""
    return [{name: len(value) if name in LISTS else value for name, value in part.items()} for part in parts]


def _call(module: nn.Module, shape: Shape) -> Callable[[], None]:
    """A function that runs `module` once for a random sample of `shape`."""
    with tempfile.TemporaryDirectory() as folder:
        export_onnx(module, shape, file := Path(folder) / "module.onnx")
        session = open_session(file, threads=1)
    return bound_run(session, [tensor.numpy() for tensor in Inputs.of(shape).random(1)], "cpu")
