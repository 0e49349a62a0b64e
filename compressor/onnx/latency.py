"""Latency of ONNX files in ONNX Runtime, as they are deployed.

The runs of files that are compared are interleaved, so that a machine that warms up or gets busy slows them all alike. Times
are milliseconds for one batch. `inputs` is the shape of one image (channels, height, width), or anything `Inputs.of` accepts.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from compressor.errors import UsageError
from compressor.network.inputs import AnyInputs, Inputs
from compressor.onnx.runtime import bound_run, fixed_batch, open_session
from compressor.report.schema import Latency

SLOWEST = 10_000.0  # ms for one batch


def latency(
    path: Path,
    inputs: AnyInputs,
    *,
    batches: Sequence[int] = (1, 32),
    threads: int = 1,
    provider: str = "cpu",
    runs: int = 100,
    warmup: int = 10,
    seconds: float = 5.0,
) -> list[Latency]:
    """`compare_latency` of one file."""
    return compare_latency(
        [path],
        inputs,
        batches=batches,
        threads=threads,
        provider=provider,
        runs=runs,
        warmup=warmup,
        seconds=seconds,
    )[0]


def compare_latency(
    paths: Sequence[Path],
    inputs: AnyInputs,
    *,
    batches: Sequence[int] = (1, 32),
    threads: int = 1,
    provider: str = "cpu",
    runs: int = 100,
    warmup: int = 10,
    seconds: float = 5.0,
) -> list[list[Latency]]:
    """For each file, the latency of one batch of each size in ONNX Runtime; the runs of all files are interleaved.

    Each file has `runs` runs for a batch size, or as many (at least five) as fit into `seconds`. Warm-up takes at most `warmup`
    runs and a quarter of that time. On "cuda" the images are on the GPU before the timing starts. Files with a fixed batch size
    are timed at that size alone; batches of more than one that would take longer than `SLOWEST` are left out. Raises UsageError
    when files have different fixed batch sizes.
    """
    sessions = [open_session(path, provider, threads) for path in paths]
    fixed = {size for session in sessions if (size := fixed_batch(session)) is not None}
    if len(fixed) > 1:
        raise UsageError(f"Files with the fixed batch sizes {', '.join(map(str, sorted(fixed)))} cannot be timed together.")
    batches = list(fixed) or batches
    by_batch: list[list[Latency]] = []
    for batch in batches:
        if by_batch and max(one.median_ms / one.batch for one in by_batch[0]) * batch > SLOWEST:
            continue
        samples = [tensor.numpy() for tensor in Inputs.of(inputs).random(batch)]
        calls = [bound_run(session, samples, provider) for session in sessions]
        warm = len(take_turns(calls, most=warmup, least=1, seconds=seconds / 4)[0])
        by_batch.append(
            [
                Latency(batch, float(np.median(ms)), float(np.percentile(ms, 90)), len(ms), warm, provider, threads)
                for ms in take_turns(calls, most=runs, least=5, seconds=seconds)
            ]
        )
    return [list(of_one_file) for of_one_file in zip(*by_batch, strict=True)]


def take_turns(calls: Sequence[Callable[[], None]], most: int, least: int, seconds: float) -> list[list[float]]:
    """Milliseconds of each call's runs, interleaved. Every second round is in reverse order, so that none is always first."""
    milliseconds: list[list[float]] = [[] for _ in calls]
    turns = list(zip(calls, milliseconds, strict=True))
    start = time.perf_counter()
    for done in range(most):
        if done >= least and time.perf_counter() - start > seconds:
            break
        for call, of_call in turns if done % 2 == 0 else reversed(turns):
            before = time.perf_counter()
            call()
            of_call.append((time.perf_counter() - before) * 1000)
    return milliseconds
