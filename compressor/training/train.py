"""The training loop of all methods: devices, precision, progress and resuming. It contains no code of any paper.

The order of images, augmentation and dropout of an epoch depend only on (seed, epoch). So the state saved at the end of an
epoch is complete: a run that is interrupted anywhere and resumed ends with the same weights as one that was not.

Several processes (see `distributed.py`) run the same epochs and the same batches, each with its own part of every batch.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._pytree import tree_map_only

from compressor.data import Batch, Batches, Data
from compressor.data.readers import seed_from
from compressor.errors import CheckpointError, UsageError, first_line
from compressor.files import write_whole
from compressor.network.meta_device import frozen
from compressor.report.read import epoch_from, score_from
from compressor.report.schema import Epoch, Score
from compressor.tasks import Task
from compressor.training import distributed
from compressor.training.method import Method, Progress
from compressor.training.recipe import Recipe

LOOK_EVERY = 50  # batches, after which the loss is checked
GROWN = 100  # a loss of so many times that of the first batch (or times 1, if that is more) has diverged
HELD_OUT_BATCH = 500


class Watcher(Protocol):
    """Receives the progress of training; see `journal.py`."""

    def epoch_began(self, epoch: int, epochs: int, batches: int) -> None: ...
    def step_ended(self, losses: Callable[[], dict[str, float]]) -> None: ...
    def epoch_ended(self, epoch: Epoch, epochs: int) -> None: ...


def seed_all(seed: int, epoch: int = 0) -> None:
    """Seed every random number generator for one epoch."""
    mixed = seed_from(seed, epoch)
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)


def guide(recipe: Recipe, task: Task, original: nn.Module, device: torch.device) -> nn.Module | None:
    """The original as the teacher of its compressed network, if the recipe asks for it and the task has a loss of its own."""
    taught = recipe.teacher == "self" and recipe.epochs > 0 and task.labels
    return frozen(original, device) if taught else None


class Precision:
    """Mixed precision: the type of autocast, and the scaler that fp16 needs."""

    def __init__(self, amp: str, device: torch.device) -> None:
        if amp == "auto":
            # Older GPUs emulate bf16, which is slower than float32.
            has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
            amp = "bf16" if has_bf16 else "none"
        if amp == "fp16" and device.type == "cpu":
            raise UsageError("--amp fp16 needs a GPU, and this run is on the CPU: use --amp bf16 or none.")
        self.device = device
        self.dtype = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)

    def autocast(self) -> AbstractContextManager[object]:
        return nullcontext() if self.dtype is None else torch.autocast(self.device.type, self.dtype)


def to_channels_last(module: nn.Module) -> None:
    """Store the 4-D parameters and buffers, which are all that have such a layout, in channels-last format."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """A copy of `model` with exponential moving averages of its weights and statistics; integers are copied."""
    average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]  # torch leaves it untyped

    def follow(means: Sequence[Tensor], values: Sequence[Tensor], steps: Tensor | int) -> None:
        if means[0].is_floating_point():
            average(means, values, steps)
        else:  # torch would round an average of 7 and 7 down to 6
            for mean, value in zip(means, values, strict=True):
                mean.copy_(value)

    return AveragedModel(model, multi_avg_fn=follow, use_buffers=True)


class Loss(nn.Module):
    """A method's loss as a module, as DistributedDataParallel needs it."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return self.method.loss(batch)


class Training:
    """Training of one method: `run()` trains from the saved state, or from the start, to the last epoch.

    `state` is the file of the latest state; None saves none. Of several processes, the first one reads and writes it.
    """

    def __init__(
        self,
        method: Method,
        data: Data,
        recipe: Recipe,
        device: torch.device,
        state: Path | None = None,
        shrink: bool = True,
    ) -> None:
        self.method, self.data, self.recipe, self.device = method, data, recipe.checked(), device
        self.state = state if distributed.is_first() else None
        self.shrinks = shrink and recipe.ema_decay is None  # averaged weights keep their shape
        self.precision = Precision(recipe.amp, device)
        self.channels_last = recipe.channels_last if recipe.channels_last is not None else device.type == "cuda"
        if self.channels_last:
            to_channels_last(method)
        self.optimizer = self.recipe.build(method.parameters())
        self.ema = averaged(method.model, recipe.ema_decay) if recipe.ema_decay is not None else None
        self.loss: nn.Module | None = None  # as trained; None: to be made again, after parameters have changed
        self.history: list[Epoch] = []
        self.start: Score | None = None  # the headline score on the held-out images before training
        self.first: float | None = None  # the loss of the first batch
        self.best: dict[str, Any] | None = None  # with --select best, the state of the method after the best epoch

    def run(self, watcher: Watcher) -> list[Epoch]:
        """Train to the last epoch; `method.model` is then the result. Raises UsageError if training diverges."""
        if distributed.count() > 1:
            self._meet()
        if not self.history:
            self._shrink()
            self.start = self._held_out(intervals=True)
            self._keep_best()
        for epoch in range(len(self.history), self.recipe.epochs):
            if self._out_of_patience():
                break
            self.history.append(self._epoch(epoch, watcher))
            if epoch + 1 < self.recipe.epochs:
                self._shrink()
            self._keep_best()
            self.save()
            watcher.epoch_ended(self.history[-1], self.recipe.epochs)
        if self.best is not None:
            self.method.load_state_dict(self.best)
        elif self.ema is not None and self.history:
            self.method.model.load_state_dict(self.ema.module.state_dict())
        if self.recipe.select == "best" or self.ema is not None:
            distributed.synchronise(self.method)
        return self.history

    @property
    def chosen(self) -> int:
        """The epoch whose weights are the result, counted from 1; 0 are those before training."""
        last = len(self.history)
        return last if self.best is None or self.start is None else _best_epoch(self.start, self.history)

    def _keep_best(self) -> None:
        """With --select best, copy the state if it is the best so far. Averaged weights are copied as the network's."""
        if self.recipe.select != "best" or self.start is None or _best_epoch(self.start, self.history) < len(self.history):
            return
        state = self.method.state_dict()
        if self.ema is not None:
            state |= {f"model.{name}": value for name, value in self.ema.module.state_dict().items()}
        self.best = tree_map_only(Tensor, lambda value: value.detach().cpu().clone(), dict(state))

    def _out_of_patience(self) -> bool:
        patience = self.recipe.patience
        if patience is None:
            return False
        worse = self.start is not None and len(self.history) - _best_epoch(self.start, self.history) >= patience
        return distributed.agreed(worse)

    def _meet(self) -> None:
        """Start from the first process's network. Raises VerificationFailed if networks or numbers of images differ."""
        distributed.check_alike("the network", {name: tensor.shape for name, tensor in self.method.state_dict().items()})
        distributed.check_alike("the number of images", self.data.counts)
        distributed.synchronise(self.method)

    # The state between two epochs -------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the state atomically. Raises OutputError if it cannot be written."""
        if self.state is None:
            return
        saved = {
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.precision.scaler.state_dict(),
            "ema": self.ema.state_dict() if self.ema is not None else None,
            "history": [asdict(row) for row in self.history],
            "start": None if self.start is None else asdict(self.start),
            "first": self.first,
            "best": self.best,
        }

        def write(path: Path) -> None:
            with path.open("wb") as file:  # given a path, torch would hide the error of a full disk
                torch.save(saved, file)

        write_whole(self.state, write)

    def resume(self) -> bool:
        """Load the saved state. Returns False if there is none. Raises CheckpointError if it cannot be read."""
        saved = distributed.agreed(self._saved())
        if saved is None:
            return False
        with self._told_as_damaged():
            self.method.load_state_dict(saved["method"])
            self.optimizer = self.recipe.build(self.method.parameters())  # they have changed if the method shrank
            self.optimizer.load_state_dict(saved["optimizer"])
            self.precision.scaler.load_state_dict(saved["scaler"])
            if self.ema is not None:
                self.ema.load_state_dict(saved["ema"])
            self.history = [epoch_from(row) for row in saved["history"]]
            self.start = None if saved.get("start") is None else score_from(saved["start"])
            self.first, self.best = saved.get("first"), saved.get("best")
        return True

    def _saved(self) -> dict[str, Any] | None:
        """The saved state, on the CPU, so that it can be sent to all processes; None if there is none."""
        if self.state is None or not self.state.exists():
            return None
        with self._told_as_damaged():
            saved: dict[str, Any] = torch.load(self.state, map_location="cpu", weights_only=True)
        return saved

    @contextmanager
    def _told_as_damaged(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError, ValueError, KeyError, TypeError, EOFError, UnpicklingError) as error:
            raise CheckpointError(
                f"--resume: {self.state} is damaged or of another network ({first_line(error)}). --force starts over."
            ) from error

    def _shrink(self) -> None:
        """Let the method remove channels that cannot recover; optimizer state such as momentum is sliced, too."""
        if not self.shrinks:
            return
        states = {name: self.optimizer.state[p] for name, p in self.method.named_parameters() if p.requires_grad}
        selection = self.method.shrink()
        if selection is None:
            return
        self.loss = None
        if self.channels_last:
            to_channels_last(self.method)
        self.optimizer = self.recipe.build(self.method.parameters())
        parameters = dict(self.method.named_parameters())
        for name, state in states.items():
            self.optimizer.state[parameters[name]] = {
                key: _selected(value, selection.get(name, {})) for key, value in state.items()
            }

    # One epoch --------------------------------------------------------------------------------------------------------

    def _epoch(self, epoch: int, watcher: Watcher) -> Epoch:
        recipe, progress, began = self.recipe, Progress(epoch, self.recipe.epochs), time.perf_counter()
        seed_all(recipe.seed, epoch + 1)
        batches = self.data.batches(
            "train",
            batch_size=recipe.batch_size,
            device=self.device,
            epoch=epoch,
            seed=recipe.seed,
            augment=recipe.augment and self.method.augments,
            cutout=recipe.cutout,
            views=self.method.views,
            by_class=self.method.by_class,
        )
        sizes = [len(positions) for positions in batches.plan]
        batches, counts = _own(batches, self.method.by_class)
        steps = math.ceil(len(sizes) / recipe.accumulate)
        watcher.epoch_began(epoch, recipe.epochs, len(sizes))
        self.method.train()
        self.method.begin_epoch(progress)
        loss = self.loss = self.loss or distributed.together(Loss(self.method))
        losses = Losses()
        for number, batch in enumerate(self._laid_out(batches)):
            step, turn = divmod(number, recipe.accumulate)
            together = sum(sizes[step * recipe.accumulate :][: recipe.accumulate])  # images of this optimizer step
            last = turn == recipe.accumulate - 1 or number == len(sizes) - 1
            if turn == 0:
                self._set_rate(recipe.rate(epoch * steps + step, steps))
                self.optimizer.zero_grad(set_to_none=True)
            with distributed.at_work(loss, last, recipe.seed, epoch, number):
                terms = self._backward(loss, batch, share=counts[number] / together)
            losses.add(terms, counts[number], of=sizes[number])
            if self.first is None:
                self.first = sum(distributed.mean(losses.averages()).values())
            if last:
                self._step(batch)
            watcher.step_ended(losses.averages)
            if number % LOOK_EVERY == LOOK_EVERY - 1:
                self._check(distributed.mean(losses.averages()), epoch)
        averages = distributed.mean(losses.averages())
        self._check(averages, epoch)
        self.method.end_epoch(progress)
        distributed.synchronise(self.method)
        seconds = time.perf_counter() - began
        rate = recipe.rate(epoch * steps + steps - 1, steps)
        return Epoch(epoch + 1, rate, averages, self._held_out(), seconds, losses.images / seconds)

    def _backward(self, loss: nn.Module, batch: Batch, share: float) -> dict[str, Tensor]:
        """Add the gradients of `batch`, which is this share of the images of its optimizer step. Returns the loss terms."""
        with self.precision.autocast():
            terms: dict[str, Tensor] = loss(batch)
        total = torch.stack([term.float() for term in terms.values()]).sum()
        self.precision.scaler.scale(total * share).backward()  # type: ignore[no-untyped-call]  # untyped in torch
        return terms

    def _step(self, batch: Batch) -> None:
        scaler = self.precision.scaler
        scaler.unscale_(self.optimizer)
        self.method.edit_gradients()
        scaler.step(self.optimizer)
        scaler.update()
        self.method.end_step(batch)
        if self.ema is not None:
            self.ema.update_parameters(self.method.model)

    def _set_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _check(self, losses: dict[str, float], epoch: int) -> None:
        """Raise UsageError, and delete the saved state, if the loss is not finite or has grown by orders of magnitude."""
        total = sum(losses.values())
        if math.isfinite(total) and (self.first is None or total <= GROWN * max(1.0, self.first)):
            return
        if self.state is not None:
            self.state.unlink(missing_ok=True)  # resumed, it would diverge again
        began = f", and was {self.first:.4g} at first" if math.isfinite(total) and self.first is not None else ""
        raise UsageError(
            f"training diverged in epoch {epoch + 1} of {self.recipe.epochs}: the loss is {total:.4g}{began}.\n"
            f"Lower --lr (it was {self.recipe.lr:g}), or add --warmup."
        )

    def _held_out(self, intervals: bool = False) -> Score | None:
        """The headline score on the held-out images; None if there are none."""
        if not distributed.is_first() or not self.data.counts.get("held_out"):
            return None
        network = self.ema.module if self.ema is not None else self.method.model
        batches = self._laid_out(self.data.batches("held_out", batch_size=HELD_OUT_BATCH, device=self.device))
        return self.method.job.task.measured(network, batches).compute(intervals=intervals)[0]

    def _laid_out(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        layout = torch.channels_last if self.channels_last else torch.contiguous_format

        def laid_out(tensor: Tensor) -> Tensor:
            return tensor.to(memory_format=layout) if tensor.dim() == 4 else tensor

        for batch in batches:
            inputs, *further = tree_map_only(Tensor, laid_out, batch.views or (batch.inputs,))
            yield batch._replace(inputs=inputs, views=(inputs, *further) if batch.views else ())


def _best_epoch(start: Score, history: Sequence[Epoch]) -> int:
    """The last of the epochs with the best score on the held-out images; 0 is before training."""
    values = [
        score.sign * score.value if score is not None else -math.inf for score in (start, *(row.held_out for row in history))
    ]
    return max(range(len(values)), key=lambda number: (values[number], number))


def _selected(value: Any, places: Mapping[int, npt.NDArray[np.int64]]) -> Any:
    """The remaining optimizer state of one parameter: momentum is sliced, a step count is unchanged."""
    if isinstance(value, Tensor) and value.dim():
        for dim, stays in places.items():
            value = value.index_select(dim, torch.from_numpy(stays).to(value.device))
    return value


def _own(batches: Batches, group: int) -> tuple[Batches, list[int]]:
    """This process's part of each batch, and its weight there: see `distributed.part`."""
    here, of = distributed.index(), distributed.count()
    parts = [distributed.part(len(positions), group, here, of) for positions in batches.plan]
    if of > 1:
        plan = [positions[where] for positions, (where, _) in zip(batches.plan, parts, strict=True)]
        batches = batches.with_plan(plan)
    return batches, [count for _, count in parts]


class Losses:
    """The average of each loss term over the images so far, kept on the device, because reading it synchronises a GPU."""

    def __init__(self) -> None:
        self.images = 0
        self._sums: dict[str, Tensor] = {}

    def add(self, terms: dict[str, Tensor], count: int, of: int) -> None:
        """Add the terms of a batch `of` this many images, of which this process's part counts as `count`."""
        self.images += of
        for name, term in terms.items():
            value = term.detach().float() * count
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def averages(self) -> dict[str, float]:
        return {name: float(total) / self.images for name, total in self._sums.items()}
