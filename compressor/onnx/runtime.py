"""Inference in ONNX Runtime, without its log output, and only on the requested execution provider.

If the GPU is missing, ONNX Runtime logs warnings and falls back to the CPU. A latency measured like that would be wrong, so
a session is opened here only on the requested provider; otherwise an error is raised.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compressor.errors import UsageError, first_line
from compressor.network.outputs import Predict

if TYPE_CHECKING:
    from torch import Tensor

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

_INPUT_TYPES = {
    "tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64,
    "tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(bool)": np.bool_,
}  # fmt: skip
_FATAL, _WARNING = 4, 2  # ONNX Runtime's log levels


def open_session(path: Path, provider: str = "cpu", threads: int = 0) -> Any:
    """An `onnxruntime.InferenceSession` of the file at `path` that runs on `provider`, "cpu" or "cuda", without fallback.

    `threads` is the number of CPU threads for an operator; 0 uses one for each core.
    Raises UsageError when the file takes anything but tensors of numbers, or the provider is unknown or not available.
    """
    if provider not in PROVIDERS:
        raise UsageError(f"{path} cannot run on {provider!r}: choose 'cpu' or 'cuda'.")
    onnxruntime = _onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = _FATAL  # errors are raised anyway, and logs may contain any name from the file
    # Threads that spin while they wait for the next batch would slow down the networks that are measured interleaved with it.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    onnxruntime.set_default_logger_severity(_FATAL)
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[PROVIDERS[provider]])
    except Exception as error:
        raise UsageError(f"{path} cannot be opened in ONNX Runtime.\n{first_line(error)}") from error
    finally:
        onnxruntime.set_default_logger_severity(_WARNING)
    session.disable_fallback()
    if session.get_providers()[0] != PROVIDERS[provider]:
        raise UsageError(
            f"{path} cannot run on {provider!r}: ONNX Runtime does not support it on this machine.\n"
            "Use 'cpu', or a machine with a GPU and the onnxruntime-gpu build for the CUDA version of PyTorch."
        )
    inputs = session.get_inputs()
    if not inputs or any(entry.type not in _INPUT_TYPES for entry in inputs):
        found = ", ".join(f"{entry.name}: {entry.type}" for entry in inputs) or "nothing"
        raise UsageError(f"{path} should take tensors of numbers, but takes {found}: give a network for images.")
    return session


Samples = Sequence[np.ndarray] | Mapping[str, np.ndarray]  # an array [n, ...] for each input: in the file's order, or by name


def fixed_batch(session: Any) -> int | None:
    """The batch size that the network was exported for; None if it takes any."""
    sizes = {entry.shape[0] for entry in session.get_inputs() if entry.shape and isinstance(entry.shape[0], int)}
    return min(sizes, default=None)


def run_session(session: Any, samples: Samples) -> list[np.ndarray]:
    """All outputs for `samples`, in several runs if the batch size of the network is fixed.

    Raises UsageError when the network rejects them.
    """
    feed, size = _feed(session, samples), fixed_batch(session)
    n = len(next(iter(feed.values())))
    if size is None or size == n:
        return _run(session, feed)
    parts = []
    for first in range(0, n, size):
        chosen = np.minimum(np.arange(first, first + size), n - 1)  # the last image fills up the last batch
        parts.append(_run(session, {name: array[chosen] for name, array in feed.items()}))
    if any(part.shape[:1] != (size,) for part in parts[0]):
        raise UsageError(f"The ONNX network has a fixed batch size of {size} and outputs that are not one row per image.")
    return [np.concatenate(outputs)[:n] for outputs in zip(*parts, strict=True)]


def _run(session: Any, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    with _named(feed):
        outputs: list[np.ndarray] = session.run(None, dict(feed))
    return outputs


def bound_run(session: Any, samples: Samples, provider: str) -> Callable[[], None]:
    """A function that runs the network on `samples` and waits for the result; inputs and outputs stay on the provider.

    So a latency does not include copies between CPU and GPU.
    """
    binding, feed = session.io_binding(), _feed(session, samples)
    for name, array in feed.items():
        binding.bind_ortvalue_input(name, _onnxruntime().OrtValue.ortvalue_from_numpy(array, provider, 0))
    for output in session.get_outputs():
        binding.bind_output(output.name, provider)

    def run() -> None:
        with _named(feed):
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()

    return run


def onnx_predict(path: Path, provider: str = "cpu", threads: int = 0) -> Predict:
    """A function that runs the ONNX file at `path` in ONNX Runtime and returns its main output on the CPU, in float32.

    It takes the inputs by name, or the others in the order of the file, for any number of images.
    """
    import torch

    session = open_session(path, provider, threads)
    names = [entry.name for entry in session.get_inputs()]

    def predict(*inputs: Tensor, **named: Tensor) -> Tensor:
        return torch.from_numpy(run_session(session, by_name(names, *inputs, **named))[0]).float()

    return predict


def by_name(names: Sequence[str], /, *inputs: Tensor, **named: Tensor) -> dict[str, np.ndarray]:
    """Input name -> array: those of `named`, and the `inputs` for the other names in order. Raises UsageError for too many."""
    if (count := len(inputs) + len(named)) > len(names):
        raise UsageError(f"The ONNX network takes {len(names)} inputs ({', '.join(names)}), but got {count}.")
    others = zip((name for name in names if name not in named), inputs, strict=False)
    return {name: tensor.numpy(force=True) for name, tensor in (*others, *named.items())}


def _feed(session: Any, samples: Samples) -> dict[str, np.ndarray]:
    """Input name -> array, cast to the type of the input."""
    inputs = session.get_inputs()
    names = ", ".join(entry.name for entry in inputs)
    if len(inputs) != len(samples):
        raise UsageError(f"The ONNX network takes {len(inputs)} inputs ({names}), but got {len(samples)}.")
    if not isinstance(samples, Mapping):
        samples = {entry.name: array for entry, array in zip(inputs, samples, strict=True)}
    if other := [name for name in samples if name not in {entry.name for entry in inputs}]:
        raise UsageError(f"The ONNX network takes {names}, but got {', '.join(other)}.")
    return {entry.name: samples[entry.name].astype(_INPUT_TYPES[entry.type], copy=False) for entry in inputs}


@contextlib.contextmanager
def _named(feed: Mapping[str, np.ndarray]) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        shapes = ", ".join("x".join(map(str, array.shape)) for array in feed.values())
        raise UsageError(f"The ONNX network does not run on inputs of {shapes}.\n{first_line(error)}") from error


@functools.cache
def _onnxruntime() -> Any:
    import torch  # noqa: F401  # loads the CUDA libraries that ONNX Runtime would otherwise not find

    # On import, ONNX Runtime looks for GPUs, and warns about every display adapter that is not one.
    with _silent_stderr():
        import onnxruntime
    return onnxruntime


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Redirect the file descriptor itself: output of C++ does not pass through `sys.stderr`."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
