"""Distributed training: processes started by torchrun, one per GPU, on one or several machines, train one network.

    torchrun --nproc-per-node 2 -m compressor prune model.pt --rate 0.5 --data imagefolder:photos

The first process (rank 0) does everything that is done once: it reads the model, selects channels, measures, exports,
verifies, and writes. The others build the same network, by the same steps and with the decisions of the first, and train it
together with it, each on its own part of every batch. This is PyTorch's DistributedDataParallel, through Accelerate.

Without torchrun, or before `join` is called, there is one process: every function here then returns its input, and Accelerate
is neither needed nor imported.
"""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

from compressor.errors import Stopped, UsageError, VerificationFailed

if TYPE_CHECKING:
    from torch import nn

WAIT = timedelta(hours=4)  # the first process may work alone for long, for example to score channels on all images
PATIENCE = 5.0  # seconds, well within which torchrun ends the other processes when one has failed

T = TypeVar("T")

_engine: Any = None  # the Accelerator, if there are several processes; it is a singleton by design


# Processes ------------------------------------------------------------------------------------------------------------


def started() -> int:
    """The number of processes that torchrun, or a similar launcher, has started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1


def speaks() -> bool:
    """Whether this process is the one that prints."""
    return started() == 1 or os.environ.get("RANK", "0") == "0"


def let_the_first_speak() -> None:
    """Wait before printing an error: if the first process has the same error, this process is terminated meanwhile."""
    if not speaks():
        time.sleep(PATIENCE)


def join(device: str = "auto") -> None:
    """Join the process group, if several processes were started: on one GPU per process, or on the CPU.

    Raises UsageError if that is not possible, or not on that device.
    """
    global _engine
    if started() == 1 or _engine is not None:
        return
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else a warning about unused parameters is printed
    try:
        from accelerate import Accelerator
        from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
    except ImportError:
        raise UsageError(
            f"{started()} processes were started, and training in several processes needs Accelerate, which is not installed: "
            "pip install 'compressor[distributed]'."
        ) from None
    on_gpu = place(device).startswith("cuda")
    _engine = Accelerator(
        cpu=not on_gpu,
        mixed_precision="no",  # precision is up to the training loop
        kwargs_handlers=[
            InitProcessGroupKwargs(backend="cuda:nccl,cpu:gloo" if on_gpu else "gloo", timeout=WAIT),
            DistributedDataParallelKwargs(find_unused_parameters=True),  # such as those of a loss term of weight 0
        ],
    )
    atexit.register(_engine.end_training)


def refuse(what: str) -> None:
    """Raise UsageError if several processes were started for a command that runs in one."""
    if started() > 1:
        raise UsageError(f"`compress {what}` runs in one process, but {started()} were started: run it without torchrun.")


def count() -> int:
    """The number of processes."""
    return 1 if _engine is None else int(_engine.num_processes)


def index() -> int:
    """The rank of this process, from 0."""
    return 0 if _engine is None else int(_engine.process_index)


def is_first() -> bool:
    """Whether this process is the first, which does everything that is done once."""
    return index() == 0


def local(device: str) -> str:
    """The device of this process for the value `device` of --device."""
    return device if _engine is None else place(device)


def place(device: str) -> str:
    """The same for one of several processes. Raises UsageError unless there is a device for each."""
    import torch

    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device {device} is one device, but {started()} processes were started: use auto, cuda or cpu.")
    gpus, here = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if device == "cpu" or (device == "auto" and gpus == 0):
        return "cpu"
    if gpus < here:
        raise UsageError(
            f"{here} processes were started on a machine with {gpus} GPUs: start one per GPU, or use --device cpu."
        )
    return f"cuda:{os.environ['LOCAL_RANK']}"


# Communication ---------------------------------------------------------------------------------------------------------


def agreed(value: T) -> T:
    """The first process's `value`, broadcast to all. Its tensors must be on the CPU."""
    if _engine is None:
        return value
    from accelerate.utils import broadcast_object_list

    (found,) = broadcast_object_list([value])
    return found  # type: ignore[no-any-return]  # Accelerate has no types


def check_alike(what: str, value: object) -> None:
    """Raise VerificationFailed if the value of a process differs from that of the first."""
    if agreed(value) != value:
        raise VerificationFailed(f"{what} differs between processes: they cannot train together.")


def mean(values: dict[str, float]) -> dict[str, float]:
    """The mean of each value over all processes."""
    if _engine is None:
        return values
    import torch
    from accelerate.utils import reduce

    means = reduce(torch.tensor(list(values.values()), dtype=torch.float64), "mean")
    return dict(zip(values, means.tolist(), strict=True))


def synchronise(module: nn.Module) -> None:
    """Copy all parameters and buffers from the first process."""
    if _engine is not None:
        from accelerate.utils import broadcast

        broadcast([tensor.data for tensor in chain(module.parameters(), module.buffers())])


# Training together ----------------------------------------------------------------------------------------------------


def part(n: int, group: int, process: int, processes: int) -> tuple[slice, int]:
    """The part of a batch of `n` images for one of several processes, and the weight of its mean, in images.

    With these weights, the mean over processes is the mean over the batch. Groups of `group` images stay together, and no part
    has a single image, on which batch norm fails. If there are too few images for all, the last processes repeat the images of
    others, with a weight of 0.
    """
    parts = max(1, min(processes, n // max(2, group)))
    ends = [n // group * place // parts * group for place in range(parts)] + [n]
    first, last = ends[process % parts], ends[process % parts + 1]
    return slice(first, last), processes * (last - first) if process < parts else 0


def together(loss: nn.Module) -> nn.Module:
    """`loss` wrapped so that its backward pass averages the gradients of all processes.

    Valid until a parameter of `loss` is replaced. The module returned before must not be used any more.
    """
    if _engine is None:
        return loss
    _engine.free_memory()  # releases the one before, whose hooks on the same parameters would still run
    return _engine.prepare_model(loss, device_placement=False)  # type: ignore[no-any-return]


@contextmanager
def at_work(loss: nn.Module, gathers: bool, *numbers: int) -> Iterator[None]:
    """Context of one batch. Gradients are accumulated in the process; with `gathers`, the sum is averaged over all processes.

    Inside, random numbers such as those of dropout depend on `numbers` and on the process; outside, where methods draw theirs,
    they are the same in all processes.
    """
    if _engine is None:
        yield
        return
    import torch

    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng([_engine.device] if _engine.device.type == "cuda" else []))
        torch.manual_seed(hash((*numbers, index())))  # hashes of integers are the same everywhere
        if not gathers:
            stack.enter_context(_engine.no_sync(loss))
        yield


@contextmanager
def ending_together() -> Iterator[None]:
    """Raise Stopped for an error that only means that another process has ended."""
    try:
        yield
    except BaseException as error:
        if _engine is None:
            raise
        atexit.unregister(_engine.end_training)  # it would wait for processes that have failed
        if not _is_loss(error):
            raise
        raise Stopped(
            "another process ended early: its own error message, if any, is printed near this one.\n"
            "--resume continues after the last finished epoch."
        ) from error


def _is_loss(error: BaseException) -> bool:
    """Whether it means that the connection to another process was lost."""
    import torch.distributed

    return isinstance(error, torch.distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
