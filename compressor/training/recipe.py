"""How to train: epochs, learning rate, optimizer. Built once, checked once, the same for every method.

Two recipes are ready: `Recipe.paper`, what the papers on soft filter pruning trained with, and `Recipe.quick`.
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


@dataclass(frozen=True)
class Recipe:
    """How to train. Learning rates are for one optimizer step, whatever the batch."""

    recipe: str | None = None  # the ready recipe that this began as: paper, quick
    epochs: int = 0
    batch_size: int = 128
    lr: float | None = None  # None: 0.02 for SGD, 5e-4 for AdamW
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.9  # of SGD
    weight_decay: float | None = None  # None: 1e-4 for SGD, 0.05 for AdamW
    schedule: Literal["cosine", "step"] = "cosine"
    warmup: float = 0.0  # epochs of linear warm-up
    milestones: tuple[float, ...] = (0.5, 0.75)  # shares of the training after which a step schedule falls
    gamma: float = 0.1  # by which the rate is multiplied at each milestone
    amp: Literal["auto", "none", "bf16", "fp16"] = "auto"
    channels_last: bool | None = None  # None: on a GPU
    accumulate: int = 1  # batches to one optimizer step
    ema_decay: float | None = None  # of the averaged weights; None: no average
    label_smoothing: float = 0.0
    cutout: float = 0.0  # side of the square that is hidden in each training image, as a share of the image's
    augment: bool = True  # whether training images are moved and mirrored
    teacher: Literal["self", "none"] = "self"  # what is learned from beside the labels: the original's answers, or nothing
    seed: int = 0

    @classmethod
    def paper(cls, side: int, cutout: float = 0.0) -> Recipe:
        """What the papers on soft filter pruning trained a pretrained network with, on images of `side` pixels.

        He et al., IJCAI 2018, arXiv 1808.06866, and Cai et al., arXiv 2010.09498, as their training code has it for CIFAR and
        for ImageNet. From scratch, the learning rate was 0.1. `cutout` belongs to the code for CIFAR of Cai et al. alone.
        """
        sgd = cls(recipe="paper", optimizer="sgd", momentum=0.9, schedule="step", lr=0.01, teacher="none")
        if side <= SMALL:
            milestones = (0.3, 0.6, 0.8)  # 60, 120 and 160 of 200 epochs
            return replace(sgd, epochs=200, batch_size=128, weight_decay=5e-4, milestones=milestones, gamma=0.2, cutout=cutout)
        return replace(sgd, epochs=100, batch_size=256, weight_decay=1e-4, milestones=(0.3, 0.6, 0.9), gamma=0.1)

    @classmethod
    def taught(cls, side: int) -> Recipe:
        """What papers train a student with that has a teacher, from new weights.

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
        """What papers train networks with that teach each other, as Yang et al., AAAI 2022, arXiv 2104.12565, have it."""
        sgd = cls(recipe="paper", teacher="none", lr=0.1)
        if side <= SMALL:
            return replace(sgd, epochs=300, batch_size=128, weight_decay=5e-4)
        return replace(sgd, epochs=90, batch_size=256, weight_decay=1e-4, schedule="step", milestones=(1 / 3, 2 / 3), gamma=0.1)

    @classmethod
    def quick(cls, epochs: int = 20) -> Recipe:
        """A good result in a tenth of the time: a cosine from the usual learning rate, one epoch in twenty to warm up.

        A point to start from: it has not been tuned.
        """
        return cls(recipe="quick", epochs=epochs, schedule="cosine", warmup=epochs / 20)

    def with_sgd(self, lr: float | None, weight_decay: float | None) -> Recipe:
        """With these, which are for SGD, where it is the optimizer and others were not asked for."""
        if self.optimizer != "sgd":
            return self
        return replace(
            self,
            lr=lr if self.lr is None else self.lr,
            weight_decay=weight_decay if self.weight_decay is None else self.weight_decay,
        )

    def checked(self) -> Recipe:
        """The same with every number filled in, or UsageError naming the setting that makes no sense."""
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
        return self.lr * self.gamma ** sum(step >= round(share * total, 6) for share in self.milestones)

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer. Norms and biases, which are one-dimensional, are not what AdamW's decay is meant for."""
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
