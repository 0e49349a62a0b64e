"""Shared by self-supervised distillation methods: rotated images, auxiliary heads for joint labels, and their teacher.

    rotated(images)            [n, c, h, w] -> [4n, c, h, w]: rotated by 0, 90, 180 and 270 degrees, image by image
    joint_labels(targets)      [n] -> [4n]: the joint label of class and rotation
    Heads(model, anatomy)      the features at each tap -> logits [4n, 4 classes] of the joint labels
    JointTeacher(job, joint)   trains the auxiliary heads of a teacher, before the student is trained
    SelfSupervised             a student with auxiliary heads, and a teacher prepared in this way

The heads are branches: each is a copy of the layers after its tap, with new weights; the one at the last tap repeats the
last stage. They are discarded after training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compressor.data import Batch
from compressor.errors import UsageError
from compressor.methods.distill.branches import Branch
from compressor.methods.distill.taps import Anatomy, Answer
from compressor.methods.distill.teaching import Distillation, Frozen, Teacher, above, total
from compressor.network.outputs import main_first
from compressor.tasks.likeness import softened
from compressor.training.method import Job

TURNS = 4
HEADS_ALONE = 100 / 240  # epochs for a teacher's heads, as a share of the student's, as in Yang et al.


def rotated(images: Tensor) -> Tensor:
    """[n, channels, height, width] -> [4n, ...]: each image rotated by 0, 90, 180 and 270 degrees, image by image.

    Raises UsageError for images that are not square.
    """
    if images.dim() != 4 or images.shape[2] != images.shape[3]:
        found = " x ".join(map(str, images.shape[1:]))
        raise UsageError(f"This method rotates images by 90 degrees, so they must be square. Found {found}: crop them.")
    return torch.stack([images.rot90(turn, (2, 3)) for turn in range(TURNS)], dim=1).flatten(0, 1)


def joint_labels(targets: Tensor) -> Tensor:
    """Classes [n] -> [4n], class x 4 + rotation, in the order of `rotated`."""
    return (targets[:, None] * TURNS + torch.arange(TURNS, device=targets.device)).flatten()


class Heads(nn.Module):
    """An auxiliary head at each tap that predicts the joint label: features, each [4n, ...] -> logits, each [4n, 4 classes].

    Interpretation: the head at the last tap repeats the last stage as copies of its last block, one for each block of the
    stage whose output has the same shape. Raises UsageError for a network without taps.
    """

    def __init__(self, model: nn.Module, anatomy: Anatomy) -> None:
        super().__init__()
        if not anatomy.taps:
            raise UsageError("This method compares features at taps, and found none in this network: name some with --taps.")
        deeper = [0] * (len(anatomy.taps) - 1) + [anatomy.depth(model)]
        outputs = TURNS * anatomy.classes
        self.branches = nn.ModuleList(
            Branch(model, anatomy, tap, outputs, more) for tap, more in zip(anatomy.taps, deeper, strict=True)
        )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        return [branch(feature).logits for branch, feature in zip(self.branches, features, strict=True)]


@dataclass
class Told:
    """The outputs of a network for rotated images."""

    answer: Answer  # of 4n rows
    heads: Callable[[Sequence[Tensor]], list[Tensor]]

    @property
    def logits(self) -> Tensor:
        """[4n, classes]"""
        return self.answer.logits

    @cached_property
    def joint(self) -> list[Tensor]:
        """Logits of the auxiliary heads, [4n, 4 classes] each; computed on first use."""
        return self.heads(self.answer.features)

    @property
    def upright(self) -> Answer:
        """The outputs for the n images that are not rotated, with those of auxiliary classifiers, if any."""
        output = [tensor[::TURNS] for tensor in main_first(self.answer.output) if tensor.shape == self.logits.shape]
        logits, embedding = self.logits[::TURNS], self.answer.embedding[::TURNS]
        return Answer(output, logits, embedding, [feature[::TURNS] for feature in self.answer.features])

    def joint_cross_entropy(self, targets: Tensor) -> Tensor:
        """The cross-entropy with the joint labels of classes [n], summed over heads."""
        labels = joint_labels(targets)
        return total([F.cross_entropy(logits, labels) for logits in self.joint])


class JointTeacher(Distillation):
    """Trains the auxiliary heads of a teacher, `job.model`, on joint labels; with `joint`, the teacher together with them.

        L = CE(z of images that are not rotated, y) + sum over heads CE(q, joint labels)

    Without `joint`, the teacher is frozen, in eval mode, and the first term, which is then constant, is omitted.
    """

    def __init__(self, job: Job, joint: bool) -> None:
        super().__init__(job, {"cross_entropy": float(joint), "joint_labels": 1.0})
        self.joint = joint
        self.model.requires_grad_(joint)
        self.heads = Heads(self.model, self.student).requires_grad_(True)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.model.train(mode and self.joint)
        return self

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        told = Told(self.student.ask(self.model, rotated(batch.inputs)), self.heads)
        return self.weigh(
            {
                "cross_entropy": lambda: self.labels(told.upright, batch),
                "joint_labels": lambda: told.joint_cross_entropy(batch.targets),
            }
        )


class SelfSupervised(Distillation):
    """Abstract. A student with auxiliary heads for joint labels; those of its teacher, if any, are trained first.

    Interpretation: if teacher and student have different numbers of taps, they are matched from the last one backwards, and
    only matched taps have heads. Raises UsageError for images that are not square.
    """

    def __init__(self, job: Job, weights: Mapping[str, float], temperature: float, joint: bool) -> None:
        super().__init__(job, weights)
        above(0, temperature=temperature)
        rotated(self.student.inputs.random(1, like=self.model)[0])  # raises before hours of training
        self.temperature, self.joint, self.earlier = temperature, joint, 1.0 if joint else HEADS_ALONE
        if self.teacher is not None:
            self.student = replace(self.student, taps=tuple(self.student.taps[ours] for ours, _ in self.pairs()))
        self.heads = Heads(self.model, self.student)
        self.teachers_heads: nn.Module = nn.Identity()
        self._ready: tuple[JointTeacher, ...] = ()  # a tuple: a module would be trained and saved with the student

    def first(self) -> JointTeacher | None:
        if self.teacher is None or not (self.joint or self.weights["joint_kd"]):  # the heads would not be used
            return None
        network, anatomy = self.teacher.network, self.teacher.anatomy
        taps = tuple(anatomy.taps[theirs] for _, theirs in self.pairs())
        self._ready = (JointTeacher(replace(self.job, model=network, taps=taps, teacher=None), self.joint),)
        return self._ready[0]

    def prepare(self) -> None:
        """Replace the teacher by what `first` returned, whether or not that was trained."""
        if (ready := self._ready[0] if self._ready else self.first()) is not None:
            self.teacher = Teacher(replace(self.job, teacher=ready.model, teacher_taps=ready.student.taps))
            self.teachers_heads = Frozen(ready.heads)
            self._ready = ()

    def from_teacher(self, images: Tensor) -> tuple[Told, Told]:
        """The outputs of student and teacher for rotated images [4n, ...]."""
        student = Told(self.student.ask(self.model, images), self.heads)
        return student, Told(self.taught().ask(images), self.teachers_heads)

    def imitate(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """T^2 KL of lists of logits, summed; the teacher's logits are detached."""
        pairs = zip(student, teacher, strict=True)
        return total([softened(ours, theirs.detach(), self.temperature) for ours, theirs in pairs])
