"""The one training loop. It knows devices, precision, progress and resuming, and no paper.

Every epoch draws its order, its augmentation and its dropout from (seed, epoch) alone. So the state saved at the end of an
epoch is all there is to save: a run that was stopped anywhere, and resumed, ends with the weights of one that was not.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from compressor.data import Data
from compressor.errors import UsageError
from compressor.files import write_whole
from compressor.method import Batch, Method, Progress
from compressor.report.schema import Epoch
from compressor.task import logits_of


@dataclass(frozen=True)
class Recipe:
    """How to train. Learning rates are for one optimizer step, whatever the batch."""

    epochs: int = 0
    batch_size: int = 128
    lr: float | None = None  # None: 0.02 for SGD, 5e-4 for AdamW
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.9
    weight_decay: float | None = None  # None: 1e-4 for SGD, 0.05 for AdamW
    schedule: Literal["cosine", "step"] = "cosine"
    warmup: float = 0.0  # epochs of linear warm-up
    milestones: tuple[float, ...] = (0.5, 0.75)  # shares of the training after which a step schedule divides by ten
    amp: Literal["auto", "none", "bf16", "fp16"] = "auto"
    channels_last: bool | None = None  # None: on a GPU
    accumulate: int = 1  # batches to one optimizer step
    ema: float | None = None  # decay of the averaged weights, None: no average
    label_smoothing: float = 0.0
    seed: int = 0

    def checked(self) -> Self:
        """Itself, or UsageError naming the setting that makes no sense."""
        rules = {
            "--epochs": (self.epochs, self.epochs >= 0, "0 or more"),
            "--batch-size": (self.batch_size, self.batch_size >= 1, "1 or more"),
            "--lr": (self.lr, self.lr is None or 0 < self.lr < math.inf, "above 0"),
            "--weight-decay": (self.weight_decay, self.weight_decay is None or 0 <= self.weight_decay < math.inf, "0 or more"),
            "--warmup": (self.warmup, 0 <= self.warmup < math.inf, "0 or more epochs"),
            "--accumulate": (self.accumulate, self.accumulate >= 1, "1 or more"),
            "--ema": (self.ema, self.ema is None or 0 < self.ema < 1, "between 0 and 1, for example 0.999"),
            "--label-smoothing": (self.label_smoothing, 0 <= self.label_smoothing < 1, "from 0 to below 1"),
        }
        for name, (value, fine, wanted) in rules.items():
            if not fine:
                raise UsageError(f"{name} must be {wanted}; found {value}.")
        return self

    def rate(self, step: int, steps_per_epoch: int) -> float:
        """The learning rate of optimizer step `step`, counted from 0."""
        top = self.lr if self.lr is not None else {"sgd": 0.02, "adamw": 5e-4}[self.optimizer]
        total, warm = self.epochs * steps_per_epoch, self.warmup * steps_per_epoch
        if step < warm:
            return top * (step + 1) / (warm + 1)
        if self.schedule == "cosine":
            return top * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1.0, total - warm)))
        return top * 0.1 ** sum(step >= share * total for share in self.milestones)

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        if self.optimizer == "sgd":
            decay = 1e-4 if self.weight_decay is None else self.weight_decay
            return torch.optim.SGD(trained, lr=0.0, momentum=self.momentum, nesterov=self.momentum > 0, weight_decay=decay)
        # Norms and biases are one-dimensional; decaying them is not what AdamW's decay is meant for.
        flat = [p for p in trained if p.dim() < 2]
        decay = 0.05 if self.weight_decay is None else self.weight_decay
        groups = [
            {"params": [p for p in trained if p.dim() >= 2], "weight_decay": decay},
            {"params": flat, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=0.0)


class Watcher(Protocol):
    """Someone who looks on; see `journal.py`."""

    def epoch_began(self, epoch: int, epochs: int, batches: int) -> None: ...
    def step_ended(self, losses: Callable[[], dict[str, float]]) -> None: ...
    def epoch_ended(self, epoch: Epoch, epochs: int) -> None: ...


def seed_all(seed: int, epoch: int = 0) -> None:
    """Seed every random number generator for one epoch."""
    mixed = (seed * 1_000_003 + epoch * 7919) % 2**32
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)


@dataclass
class Precision:
    """Mixed precision on a GPU: the type of autocast, and the scaler that fp16 needs."""

    device: torch.device
    dtype: torch.dtype | None
    scaler: torch.amp.GradScaler = field(init=False)

    def __post_init__(self) -> None:
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)

    @classmethod
    def of(cls, amp: str, device: torch.device) -> Precision:
        if amp == "auto":
            fast = device.type == "cuda" and torch.cuda.is_bf16_supported()
            amp = "bf16" if fast else "none"
        if amp == "fp16" and device.type == "cpu":
            raise UsageError("--amp fp16 needs a GPU, and this run is on the CPU: use --amp bf16 or none.")
        return cls(device, {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp])

    def autocast(self) -> Any:
        return nullcontext() if self.dtype is None else torch.autocast(self.device.type, self.dtype)


def top1(model: nn.Module, batches: Iterable[Batch]) -> float | None:
    """Share of `batches` that `model` in eval mode gets right; None when there are none."""
    right = torch.zeros((), dtype=torch.int64)
    n, was_training = 0, model.training
    model.eval()
    with torch.inference_mode():
        for batch in batches:
            right = right.to(batch.images.device) + (logits_of(model(batch.images)).argmax(1) == batch.targets).sum()
            n += len(batch.targets)
    model.train(was_training)
    return int(right) / n if n else None


class Training:
    """Training of one method: `run()` goes from where the saved state left off, or from the start, to the last epoch."""

    def __init__(self, method: Method, data: Data, recipe: Recipe, device: torch.device, state: Path | None) -> None:
        self.method, self.data, self.recipe, self.device, self.state = method, data, recipe, device, state
        self.precision = Precision.of(recipe.amp, device)
        self.optimizer = recipe.build(method.parameters())
        self.history: list[Epoch] = []
        # torch leaves this one untyped
        average = get_ema_multi_avg_fn(recipe.ema) if recipe.ema is not None else None  # type: ignore[no-untyped-call]
        self.ema = AveragedModel(method.model, multi_avg_fn=average, use_buffers=True) if average else None
        self.last = recipe.channels_last if recipe.channels_last is not None else device.type == "cuda"
        if self.last:
            method.to(memory_format=torch.channels_last)

    def resume(self) -> bool:
        """Take up the saved state. False when there is none."""
        if self.state is None or not self.state.exists():
            return False
        saved = torch.load(self.state, map_location=self.device, weights_only=True)
        self.method.load_state_dict(saved["method"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.precision.scaler.load_state_dict(saved["scaler"])
        if self.ema is not None:
            self.ema.load_state_dict(saved["ema"])
        self.history = [Epoch(**row) for row in saved["history"]]
        return True

    def save(self) -> None:
        if self.state is None:
            return
        saved = {
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.precision.scaler.state_dict(),
            "ema": self.ema.state_dict() if self.ema is not None else None,
            "history": [asdict(row) for row in self.history],
        }
        write_whole(self.state, lambda path: torch.save(saved, path))

    def run(self, watcher: Watcher) -> list[Epoch]:
        for epoch in range(len(self.history), self.recipe.epochs):
            self.history.append(self._epoch(epoch, watcher))
            self.save()
            watcher.epoch_ended(self.history[-1], self.recipe.epochs)
        if self.ema is not None and self.recipe.epochs:
            self.method.model.load_state_dict(self.ema.module.state_dict())
        return self.history

    def _epoch(self, epoch: int, watcher: Watcher) -> Epoch:
        method, recipe = self.method, self.recipe
        seed_all(recipe.seed, epoch + 1)
        progress, began = Progress(epoch, recipe.epochs), time.perf_counter()
        batches = self.data.batches("train", batch_size=recipe.batch_size, device=self.device, epoch=epoch, seed=recipe.seed)
        count = len(batches)
        watcher.epoch_began(epoch, recipe.epochs, count)
        steps = math.ceil(count / recipe.accumulate)
        method.train()
        method.begin_epoch(progress)
        totals: dict[str, Tensor] = {}
        images = 0
        for number, batch in enumerate(self._laid_out(batches)):
            step = epoch * steps + number // recipe.accumulate
            rate = recipe.rate(step, steps)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            first = number % recipe.accumulate == 0
            final = number % recipe.accumulate == recipe.accumulate - 1 or number == count - 1
            if first:
                self.optimizer.zero_grad(set_to_none=True)
                share = min(recipe.accumulate, count - number)
            with self.precision.autocast():
                losses = method.loss(batch)
            loss = torch.stack([term.float() for term in losses.values()]).sum()
            self.precision.scaler.scale(loss / share).backward()  # type: ignore[no-untyped-call]  # untyped in torch
            if final:
                self.precision.scaler.unscale_(self.optimizer)
                method.edit_gradients()
                self.precision.scaler.step(self.optimizer)
                self.precision.scaler.update()
                method.end_step(batch)
                if self.ema is not None:
                    self.ema.update_parameters(method.model)
            for name, term in losses.items():  # kept on the device: reading them would stall a GPU
                value = term.detach().float() * len(batch.images)
                totals[name] = totals[name] + value if name in totals else value
            images += len(batch.images)
            watcher.step_ended(lambda seen=images: {name: float(total) / seen for name, total in totals.items()})  # type: ignore[misc]
        method.end_epoch(progress)
        averages = {name: float(total) / images for name, total in totals.items()}
        if not all(map(math.isfinite, averages.values())):
            raise UsageError(
                f"training diverged in epoch {epoch + 1}: the loss is {sum(averages.values())}.\n"
                f"Lower --lr (it was {recipe.rate(epoch * steps, steps):.3g}), or add --warmup."
            )
        seconds = time.perf_counter() - began
        held_out = self.data.batches("held_out", batch_size=500, device=self.device)
        network = self.ema.module if self.ema is not None else method.model
        return Epoch(epoch + 1, rate, averages, None, top1(network, self._laid_out(held_out)), seconds, images / seconds)

    def _laid_out(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            yield batch._replace(images=batch.images.to(memory_format=torch.channels_last)) if self.last else batch
