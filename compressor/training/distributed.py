"""Several processes that train one network together, as torchrun starts them: one for each GPU, on one machine or on several.

    torchrun --nproc-per-node 2 -m compressor prune model.pt --rate 0.5 --data imagefolder:photos

What is done once is done by the first process: it reads the model, decides what goes, measures, exports, proves, and writes.
The others make the same network, by the same steps and with the first one's decisions, and train it with it, each on its own
part of every batch. That is PyTorch's DistributedDataParallel, reached through Accelerate.

In a program that torchrun has not started, or that has not called `join`, there is one process: every function here then gives
back what it is given, and Accelerate is neither needed nor imported.
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

WAIT = timedelta(hours=4)  # what the first process does alone, such as to score channels on all images, takes its time
PATIENCE = 5.0  # seconds: torchrun ends the others well within this when one has failed

T = TypeVar("T")

_engine: Any = None  # the Accelerator, once there are several processes; it is one for the whole program by its own design


# Who is there ---------------------------------------------------------------------------------------------------------


def started() -> int:
    """How many processes torchrun has started, or one like it; 1 without."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1


def speaks() -> bool:
    """Whether this process is the one that tells the user what happens."""
    return started() == 1 or os.environ.get("RANK", "0") == "0"


def let_the_first_speak() -> None:
    """Wait before an error is told: when the first process has met it, too, this one is ended meanwhile."""
    if not speaks():
        time.sleep(PATIENCE)


def join(device: str = "auto") -> None:
    """Meet the processes that were started with this one, if there are any, on a GPU each or on the CPU.

    Raises UsageError when they cannot meet, or not on that device.
    """
    global _engine
    if started() == 1 or _engine is not None:
        return
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # it would say at the first step that it looks for unused parameters
    try:
        from accelerate import Accelerator
        from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
    except ImportError:
        raise UsageError(
            f"{started()} processes were started, and they train together by means of Accelerate, which is not installed: "
            "pip install 'compressor[distributed]'."
        ) from None
    on_gpu = place(device).startswith("cuda")
    _engine = Accelerator(
        cpu=not on_gpu,
        mixed_precision="no",  # the training loop sees to precision
        kwargs_handlers=[
            InitProcessGroupKwargs(backend="cuda:nccl,cpu:gloo" if on_gpu else "gloo", timeout=WAIT),
            DistributedDataParallelKwargs(find_unused_parameters=True),  # as of a term of the loss that is off
        ],
    )
    atexit.register(_engine.end_training)


def refuse(what: str) -> None:
    """Raise UsageError where several processes were started for what one process does."""
    if started() > 1:
        raise UsageError(f"`compress {what}` is done by one process, and {started()} were started: run it without torchrun.")


def count() -> int:
    """How many processes there are."""
    return 1 if _engine is None else int(_engine.num_processes)


def index() -> int:
    """The number of this process, from 0."""
    return 0 if _engine is None else int(_engine.process_index)


def is_first() -> bool:
    """Whether this process is the one that does what is done once."""
    return index() == 0


def local(device: str) -> str:
    """What `device` of --device is in this process, alone or not."""
    return device if _engine is None else place(device)


def place(device: str) -> str:
    """What `device` of --device is for one of several processes. Raises UsageError when it is not one for each."""
    import torch

    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device {device} is one device, and {started()} processes were started: say auto, cuda or cpu.")
    gpus, here = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if device == "cpu" or (device == "auto" and gpus == 0):
        return "cpu"
    if gpus < here:
        raise UsageError(
            f"{here} processes were started on a machine with {gpus} GPUs: start one for each, or say --device cpu."
        )
    return f"cuda:{os.environ['LOCAL_RANK']}"


# What is the same everywhere -------------------------------------------------------------------------------------------


def agreed(value: T) -> T:
    """The first process's `value`, for all. Tensors in it lie on the CPU."""
    if _engine is None:
        return value
    from accelerate.utils import broadcast_object_list

    (found,) = broadcast_object_list([value])
    return found  # type: ignore[no-any-return]  # Accelerate has no types


def check_alike(what: str, value: object) -> None:
    """Raise VerificationFailed when a process has something else than the first one."""
    if agreed(value) != value:
        raise VerificationFailed(f"{what} of one process is not that of the first: they cannot train together.")


def mean(values: dict[str, float]) -> dict[str, float]:
    """Of each number, over all processes."""
    if _engine is None:
        return values
    import torch
    from accelerate.utils import reduce

    means = reduce(torch.tensor(list(values.values()), dtype=torch.float64), "mean")
    return dict(zip(values, means.tolist(), strict=True))


def synchronise(module: nn.Module) -> None:
    """Give all parameters and buffers the values that they have in the first process."""
    if _engine is not None:
        from accelerate.utils import broadcast

        broadcast([tensor.data for tensor in chain(module.parameters(), module.buffers())])


# Training together ----------------------------------------------------------------------------------------------------


def part(n: int, group: int, process: int, processes: int) -> tuple[slice, int]:
    """Which of the `n` images of a batch are for one of so many processes, and as how many of them its means count there.

    The mean over processes is then the mean over the batch. Groups of so many images stay together, and no part has a single
    image, which a batch norm could make nothing of. Where there is not enough for all, the last processes repeat what others
    have, and that counts as none.
    """
    parts = max(1, min(processes, n // max(2, group)))
    ends = [n // group * place // parts * group for place in range(parts)] + [n]
    first, last = ends[process % parts], ends[process % parts + 1]
    return slice(first, last), processes * (last - first) if process < parts else 0


def together(loss: nn.Module) -> nn.Module:
    """`loss`, whose backward pass gives every process the mean of all processes' gradients.

    It is good as long as no parameter of it is replaced by another. The one before is of no use any more.
    """
    if _engine is None:
        return loss
    _engine.free_memory()  # lets go of the one before, which would still listen to the same parameters
    return _engine.prepare_model(loss, device_placement=False)  # type: ignore[no-any-return]


@contextmanager
def at_work(loss: nn.Module, gathers: bool, *numbers: int) -> Iterator[None]:
    """Around one batch. Gradients stay in the process unless it `gathers`, with those that it kept before.

    What a network draws by chance, as dropout does, follows from the `numbers` and is each process's own; what is drawn outside
    of this, by a method, is the same in all of them.
    """
    if _engine is None:
        yield
        return
    import torch

    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng([_engine.device] if _engine.device.type == "cuda" else []))
        torch.manual_seed(hash((*numbers, index())))  # of whole numbers, hashes are the same everywhere
        if not gathers:
            stack.enter_context(_engine.no_sync(loss))
        yield


@contextmanager
def ending_together() -> Iterator[None]:
    """Raise Stopped for what is nothing but the end of another process."""
    try:
        yield
    except BaseException as error:
        if _engine is None:
            raise
        atexit.unregister(_engine.end_training)  # it would wait for processes that do not end as they should
        if not _is_loss(error):
            raise
        raise Stopped(
            "another of the processes ended before its time: what it said of that, if anything, stands near this.\n"
            "--resume goes on after the last finished epoch."
        ) from error


def _is_loss(error: BaseException) -> bool:
    """Whether it tells that the other side of a connection is gone."""
    import torch.distributed

    return isinstance(error, torch.distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
