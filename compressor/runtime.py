"""ONNX files run in ONNX Runtime, quietly, and on the processor that was asked for.

ONNX Runtime answers a missing GPU with a page of log lines and then carries on on the CPU. A figure measured like that
would lie, so a session is opened here only on the provider that was asked for; otherwise it is an error.
"""

import contextlib
import functools
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from compressor.errors import UsageError

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

_INPUT_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
_FATAL, _ERROR, _WARNING = 4, 3, 2  # ONNX Runtime's log levels


def open_session(path: Path, provider: str = "cpu", threads: int = 0) -> Any:
    """An `onnxruntime.InferenceSession` of the file at `path` that really runs on `provider`, "cpu" or "cuda".

    `threads` CPU threads share one operator's work; 0 takes one for each core.
    Raises UsageError when the file is not a network for images, or the provider is unknown or does not work here.
    """
    if provider not in PROVIDERS:
        raise UsageError(f"{path} was to run on {provider!r}, but ONNX Runtime is used on 'cpu' and 'cuda' alone.")
    onnxruntime = _onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = _ERROR
    # Threads that wait for the next batch by spinning would slow down the network that is measured in turn with this.
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
            f"{path} was to run on {provider!r}, but ONNX Runtime cannot use that on this machine.\n"
            "Use 'cpu', or a machine with a GPU and onnxruntime-gpu for the CUDA version that PyTorch has."
        )
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type not in _INPUT_TYPES:
        found = ", ".join(f"{entry.name}: {entry.type}" for entry in inputs) or "nothing"
        raise UsageError(f"{path} should take one tensor of images, but takes {found}: give a network for images.")
    return session


def run_session(session: Any, images: np.ndarray) -> list[np.ndarray]:
    """All outputs for `images` [n, channels, height, width]. Raises UsageError when the network cannot take them."""
    entry = session.get_inputs()[0]
    with _named(images):
        outputs: list[np.ndarray] = session.run(None, {entry.name: _cast(session, images)})
    return outputs


def bound_run(session: Any, images: np.ndarray, provider: str) -> Callable[[], None]:
    """A function that answers for `images` and waits until that is done, with inputs and outputs kept on the provider.

    It leaves out the copies between CPU and GPU, which say nothing about the network.
    """
    binding = session.io_binding()
    value = _onnxruntime().OrtValue.ortvalue_from_numpy(_cast(session, images), provider, 0)
    binding.bind_ortvalue_input(session.get_inputs()[0].name, value)
    for output in session.get_outputs():
        binding.bind_output(output.name, provider)

    def run() -> None:
        with _named(images):
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()

    return run


def first_line(error: BaseException) -> str:
    """What went wrong in the first place, on one line: the first of the deepest cause, and more where that ends in ":"."""
    while error.__cause__ is not None:
        error = error.__cause__
    message = " ".join(re.split(r"(?<!:)\n", str(error).strip())[0].split())
    return f"{type(error).__name__}: {message[:300]}" if message else type(error).__name__


def _cast(session: Any, images: np.ndarray) -> np.ndarray:
    return images.astype(_INPUT_TYPES[session.get_inputs()[0].type], copy=False)


@contextlib.contextmanager
def _named(images: np.ndarray) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        shape = " x ".join(map(str, images.shape))
        raise UsageError(f"The ONNX network cannot answer for images of {shape}.\n{first_line(error)}") from error


@functools.cache
def _onnxruntime() -> Any:
    import torch  # noqa: F401  # brings the CUDA libraries that ONNX Runtime would otherwise not find

    # While it is imported, ONNX Runtime looks for GPUs, and warns of every screen that is not one.
    with _silent_stderr():
        import onnxruntime
    return onnxruntime


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Turns the file descriptor itself away: what C++ prints never passes through `sys.stderr`."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
