"""Latency of ONNX files in ONNX Runtime, as they are deployed.

The runs of files that are compared are interleaved, so that a machine that warms up or gets busy slows them all alike. With one
thread on a CPU, the clock is the processor time of that thread, which does not advance while other processes run: medians of
wall times of two networks are several times too far apart on a busy machine, when one network fits into a time slice of the
scheduler and the other does not. Times are milliseconds for one batch.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compressor.errors import UsageError
from compressor.network.inputs import AnyInputs, Inputs
from compressor.onnx.runtime import PROVIDERS, bound_run, fixed_batch, open_session
from compressor.report import formatting
from compressor.report.schema import PROCESSOR, WALL, Latency

BATCHES = (1, 32)
LONGEST = 1000.0  # ms of a run at more than the first batch size, unless batch sizes are given
LEAST, WARMUP = 3, 10  # runs
COARSEST = 1e-4  # seconds: a clock whose resolution is coarser is not used, as on Windows
clock_of_thread = time.thread_time if time.get_clock_info("thread_time").resolution <= COARSEST else time.perf_counter


@dataclass(frozen=True)
class Timing:
    """How latency is measured.

    Each file has `runs` runs for a batch size, or as many (at least three) as fit into `seconds`. Warm-up takes at most ten
    runs and a quarter of that time. `batches`: the batch sizes; by default 1, and 32 where a run takes a second at most.
    Raises UsageError for a provider that does not exist and for counts below 1.
    """

    batches: tuple[int, ...] | None = None
    threads: int = 1
    provider: str = "cpu"
    runs: int = 100
    seconds: float = 2.0

    def __post_init__(self) -> None:
        if self.batches is not None and (not self.batches or min(self.batches) < 1):
            found = ",".join(map(str, self.batches)) or "none"
            raise UsageError(f"--latency-batches are batch sizes, 1 or more, as in 1,8; found {found}.")
        for option, value in (("threads", self.threads), ("runs", self.runs)):
            if value < 1:
                raise UsageError(f"--latency-{option} must be 1 or more; found {value}.")
        if self.provider not in PROVIDERS:
            raise UsageError(f"--latency-provider {self.provider} is unknown: use {' or '.join(PROVIDERS)}.")

    @staticmethod
    def parse(batches: str | None, threads: int, provider: str, runs: int) -> "Timing":
        """From the options of the command line. Raises UsageError."""
        try:
            sizes = None if batches is None else tuple(dict.fromkeys(int(size) for size in batches.split(",")))
        except ValueError:
            raise UsageError(f"--latency-batches are batch sizes, 1 or more, as in 1,8; found {batches!r}.") from None
        return Timing(sizes, threads, provider, runs)

    @property
    def settings(self) -> dict[str, str | int | None]:
        """Under the names of the command line's options; None is the default."""
        usual = Timing()
        return {
            "latency_batches": None if self.batches is None else ",".join(map(str, self.batches)),
            "latency_threads": None if self.threads == usual.threads else self.threads,
            "latency_provider": None if self.provider == usual.provider else self.provider,
            "latency_runs": None if self.runs == usual.runs else self.runs,
        }

    @property
    def clock(self) -> str:
        return PROCESSOR if self.provider == "cpu" and self.threads == 1 and clock_of_thread is time.thread_time else WALL

    def left_out(self, measured: Sequence[Latency], image_bytes: int = 0) -> list[str]:
        """Why batch sizes are not among the `measured` ones of a file with an open batch size: notes for the report."""
        if not measured:
            return []
        first, found = measured[0], {latency.batch for latency in measured}
        notes = []
        for batch in [size for size in self.batches or BATCHES if size not in found]:
            if not _fits(batch, image_bytes):
                reason = f"activations take about {formatting.size(batch * image_bytes)}, more than half of the memory"
            elif self.batches is None and first.batch == BATCHES[0]:
                predicted = formatting.milliseconds(first.median_ms * batch)
                reason = f"a run would take about {predicted} (--latency-batches {first.batch},{batch} measures it)"
            else:
                continue  # the file has a fixed batch size, which other notes tell
            notes.append(f"latency at batch {batch} was not measured: {reason}")
        return notes


def latency(path: Path, inputs: AnyInputs, timing: Timing | None = None) -> list[Latency]:
    """`compare_latency` of one file."""
    return compare_latency([path], inputs, timing)[0]


def compare_latency(
    paths: Sequence[Path], inputs: AnyInputs, timing: Timing | None = None, *, image_bytes: int = 0
) -> list[list[Latency]]:
    """For each file, the latency of one batch of each size in ONNX Runtime; the runs of all files are interleaved.

    `inputs` is the shape of one image (channels, height, width), or anything `Inputs.of` accepts. On "cuda" the images are on
    the GPU before the timing starts. Files with a fixed batch size are timed at that size alone. Batch sizes above the first
    one are left out if their activations, `image_bytes` for an image, would fill more than half of the memory. Raises
    UsageError when files have different fixed batch sizes.
    """
    timing = timing or Timing()
    sessions = [open_session(path, timing.provider, timing.threads) for path in paths]
    fixed = {size for session in sessions if (size := fixed_batch(session)) is not None}
    if len(fixed) > 1:
        raise UsageError(f"Files with the fixed batch sizes {', '.join(map(str, sorted(fixed)))} cannot be timed together.")
    by_batch: list[list[Latency]] = []
    for batch in list(fixed) or timing.batches or BATCHES:
        if by_batch and not _fits(batch, image_bytes):
            continue
        if by_batch and timing.batches is None and batch * max(one.median_ms / one.batch for one in by_batch[0]) > LONGEST:
            continue
        samples = [tensor.numpy() for tensor in Inputs.of(inputs).random(batch)]
        calls = [bound_run(session, samples, timing.provider) for session in sessions]
        warm = len(take_turns(calls, most=WARMUP, least=1, seconds=timing.seconds / 4)[0])
        clock = clock_of_thread if timing.clock == PROCESSOR else time.perf_counter
        by_batch.append(
            [
                Latency(
                    batch,
                    float(np.median(ms)),
                    float(np.percentile(ms, 90)),
                    len(ms),
                    warm,
                    timing.provider,
                    timing.threads,
                    timing.clock,
                )
                for ms in take_turns(calls, most=timing.runs, least=LEAST, seconds=timing.seconds, clock=clock)
            ]
        )
    return [list(of_one_file) for of_one_file in zip(*by_batch, strict=True)]


def _fits(batch: int, image_bytes: int) -> bool:
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on Windows
        return True
    return batch * image_bytes <= memory / 2


def take_turns(
    calls: Sequence[Callable[[], None]],
    most: int,
    least: int,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> list[list[float]]:
    """Milliseconds of each call's runs, interleaved. Every second round is in reverse order, so that none is always first."""
    milliseconds: list[list[float]] = [[] for _ in calls]
    turns = list(zip(calls, milliseconds, strict=True))
    start = time.perf_counter()
    for done in range(most):
        if done >= least and time.perf_counter() - start > seconds:
            break
        for call, of_call in turns if done % 2 == 0 else reversed(turns):
            before = clock()
            call()
            of_call.append((clock() - before) * 1000)
    return milliseconds
