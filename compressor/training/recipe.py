"""The training recipe: epochs, learning rate, optimizer. Built once, checked once, the same for every method.

Predefined recipes: `Recipe.paper` of the papers on soft filter pruning, `Recipe.taught` and `Recipe.mutual` of those on
distillation, and `Recipe.quick`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from compressor.data.images import SMALL
from compressor.errors import UsageError

DENSE_BATCH = 16  # usual batch size for images with masks, or to be restored: crops are larger than whole images elsewhere
POWER = 0.9  # of a poly schedule


@dataclass(frozen=True)
class Recipe:
    """How to train. Learning rates are per optimizer step, whatever the batch size."""

    recipe: str | None = None  # the predefined recipe it is based on: paper, quick
    epochs: int = 0
    batch_size: int = 128
    lr: float | None = None  # None: 0.02 for SGD, 5e-4 for AdamW
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.9  # of SGD
    weight_decay: float | None = None  # None: 1e-4 for SGD, 0.05 for AdamW
    schedule: Literal["cosine", "step", "poly"] = "cosine"
    warmup: float = 0.0  # epochs of linear warm-up
    milestones: tuple[float, ...] = (0.5, 0.75)  # of a step schedule, as shares of the training
    gamma: float = 0.1  # factor of the learning rate at each milestone
    amp: Literal["auto", "none", "bf16", "fp16"] = "auto"
    channels_last: bool | None = None  # None: on a GPU
    accumulate: int = 1  # batches per optimizer step
    ema_decay: float | None = None  # decay of the averaged (EMA) weights; None: no averaging
    label_smoothing: float = 0.0
    cutout: float = 0.0  # side of the square masked in each training image, as a share of the image's side
    augment: bool = True  # whether training images are augmented (random crops and flips)
    select: Literal["last", "best"] = "last"  # the epoch whose weights are kept; the best by the held-out score
    patience: int | None = None  # epochs without a better held-out score after which training ends; None: never
    teacher: Literal["self", "none"] = "self"  # distil from the original in addition to the task's loss, or not
    seed: int = 0

    @classmethod
    def paper(cls, side: int, cutout: float = 0.0) -> Recipe:
        """The recipe of the papers on soft filter pruning for a pretrained network, for images of `side` pixels.

        He et al., IJCAI 2018, arXiv 1808.06866, and Cai et al., arXiv 2010.09498, as in their training code for CIFAR and for
        ImageNet. From scratch, the learning rate was 0.1. `cutout` is used only by the code of Cai et al. for CIFAR.
        """
        sgd = cls(recipe="paper", optimizer="sgd", momentum=0.9, schedule="step", lr=0.01, teacher="none")
        if side <= SMALL:
            milestones = (0.3, 0.6, 0.8)  # 60, 120 and 160 of 200 epochs
            return replace(sgd, epochs=200, batch_size=128, weight_decay=5e-4, milestones=milestones, gamma=0.2, cutout=cutout)
        return replace(sgd, epochs=100, batch_size=256, weight_decay=1e-4, milestones=(0.3, 0.6, 0.9), gamma=0.1)

    @classmethod
    def taught(cls, side: int) -> Recipe:
        """The usual recipe of papers for a student with a teacher, trained from scratch.

        For CIFAR since Tian et al., ICLR 2020, arXiv 1910.10699; for ImageNet since Zagoruyko and Komodakis, ICLR 2017,
        arXiv 1612.03928.
        """
        sgd = cls(recipe="paper", schedule="step", gamma=0.1, teacher="none")
        if side <= SMALL:
            milestones = (150 / 240, 180 / 240, 210 / 240)
            return replace(sgd, epochs=240, batch_size=64, lr=0.05, weight_decay=5e-4, milestones=milestones)
        return replace(sgd, epochs=100, batch_size=256, lr=0.1, weight_decay=1e-4, milestones=(0.3, 0.6, 0.9))

    @classmethod
    def mutual(cls, side: int) -> Recipe:
        """The recipe for networks that teach each other, as in Yang et al., AAAI 2022, arXiv 2104.12565."""
        sgd = cls(recipe="paper", teacher="none", lr=0.1)
        if side <= SMALL:
            return replace(sgd, epochs=300, batch_size=128, weight_decay=5e-4)
        return replace(sgd, epochs=90, batch_size=256, weight_decay=1e-4, schedule="step", milestones=(1 / 3, 2 / 3), gamma=0.1)

    @classmethod
    def quick(cls, epochs: int = 20) -> Recipe:
        """A good result in a tenth of the time: cosine schedule from the default learning rate, 5 % of the epochs as warm-up.

        A starting point: it has not been tuned.
        """
        return cls(recipe="quick", epochs=epochs, schedule="cosine", warmup=epochs / 20)

    def with_sgd(self, lr: float | None, weight_decay: float | None) -> Recipe:
        """With these values, if the optimizer is SGD, where others were not given."""
        if self.optimizer != "sgd":
            return self
        return replace(
            self,
            lr=lr if self.lr is None else self.lr,
            weight_decay=weight_decay if self.weight_decay is None else self.weight_decay,
        )

    def checked(self) -> Recipe:
        """The recipe with all defaults filled in. Raises UsageError, which names the setting, for an invalid value."""
        sgd = self.optimizer == "sgd"
        lr = self.lr if self.lr is not None else (0.02 if sgd else 5e-4)
        weight_decay = self.weight_decay if self.weight_decay is not None else (1e-4 if sgd else 0.05)
        longest = self.epochs if self.epochs else math.inf
        rules = {
            "--epochs": (self.epochs, self.epochs >= 0, "0 or more"),
            "--batch-size": (self.batch_size, self.batch_size >= 1, "1 or more"),
            "--lr": (lr, 0 < lr < math.inf, "above 0"),
            "--momentum": (self.momentum, 0 <= self.momentum < 1, "from 0 to below 1"),
            "--weight-decay": (weight_decay, 0 <= weight_decay < math.inf, "0 or more"),
            "--milestones": (self.milestones, all(0 < share < 1 for share in self.milestones), "shares between 0 and 1"),
            "--gamma": (self.gamma, 0 < self.gamma <= 1, "above 0, and at most 1"),
            "--warmup": (self.warmup, 0 <= self.warmup < longest, "0 or more epochs, and fewer than --epochs"),
            "--accumulate": (self.accumulate, self.accumulate >= 1, "1 or more"),
            "--ema-decay": (
                self.ema_decay,
                self.ema_decay is None or 0 < self.ema_decay < 1,
                "between 0 and 1, for example 0.999",
            ),
            "--label-smoothing": (self.label_smoothing, 0 <= self.label_smoothing < 1, "from 0 to below 1"),
            "--patience": (self.patience, self.patience is None or self.patience >= 1, "1 or more epochs"),
            "--cutout": (self.cutout, 0 <= self.cutout <= 1, "a share of the image's side, from 0 to 1"),
        }
        for name, (value, fine, wanted) in rules.items():
            if not fine:
                raise UsageError(f"{name} must be {wanted}; found {value}.")
        return replace(self, lr=lr, weight_decay=weight_decay)

    def rate(self, step: int, steps_per_epoch: int) -> float:
        """The learning rate of optimizer step `step`, counted from 0."""
        assert self.lr is not None, "checked() fills it in"
        total, warm = self.epochs * steps_per_epoch, self.warmup * steps_per_epoch
        if step < warm:
            return self.lr * (step + 1) / (warm + 1)
        if self.schedule == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1.0, total - warm)))
        if self.schedule == "poly":  # Chen et al., DeepLab, TPAMI 2018, arXiv 1606.00915, section 4.1
            return self.lr * float((1 - (step - warm) / max(1.0, total - warm)) ** POWER)
        return self.lr * self.gamma ** sum(step >= round(share * total, 6) for share in self.milestones)

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer. AdamW does not decay one-dimensional parameters, which are those of norms and biases."""
        assert self.weight_decay is not None, "checked() fills it in"
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        if self.optimizer == "sgd":
            nesterov = self.momentum > 0
            return torch.optim.SGD(trained, lr=0.0, momentum=self.momentum, nesterov=nesterov, weight_decay=self.weight_decay)
        groups = [
            {"params": [p for p in trained if p.dim() >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=0.0)
